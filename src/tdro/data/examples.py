"""Which positive and which negatives a row shows at a visit, and how its texts are written. Pure functions."""

from tdro.data.mixture import seeded
from tdro.data.records import Example, Row


def choose(row: Row, passages_per_query: int, *key: object) -> Example:
    """Choose one positive and up to `passages_per_query` - 1 different negatives of a row.

    A row with fewer negatives gives what it has; nothing is repeated or padded.

    Args:
        row: The row.
        passages_per_query: Positive included, at least 1.
        key: What the choice depends on: seed, dataset, row number, visit.

    Returns:
        Query and passages, the positive first.

    Departure: the released code samples short lists with replacement, which loses negatives that are there.
    """
    random = seeded(*key)
    texts = [positive.full_text for positive in row.positives]
    first = int(random.integers(len(texts)))
    positive = texts.pop(first)
    wanted = min(passages_per_query - 1, len(row.negatives))
    chosen = random.permutation(len(row.negatives))[:wanted].tolist()
    negatives = [row.negatives[i].full_text for i in chosen]
    places = (first, *(len(row.positives) + i for i in chosen))
    return Example(row.query, (positive, *negatives), tuple(texts), places)


def whole(row: Row) -> Example:
    """Return everything a row has: all positives, then all negatives."""
    passages = [passage.full_text for passage in (*row.positives, *row.negatives)]
    return Example(row.query, tuple(passages), (), tuple(range(len(passages))))


def with_instruction(text: str, instruction: str, template: str) -> str:
    """Put a task description in front of a text; none leaves the text as it is.

    Example:
        >>> with_instruction("who?", "Find the answer", "Instruct: {instruction}; Query: {query}")
        'Instruct: Find the answer; Query: who?'
    """
    return template.replace("{instruction}", instruction).replace("{query}", text) if instruction else text
