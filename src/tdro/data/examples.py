"""Which positive and which negatives a row shows at a visit, and how its texts are written. Pure functions."""

import numpy as np

from tdro.data.mixture import seeded

Places = tuple[list[int], list[int]]
"""Where the passages that are shown stand in their row, the positive first; and where its other positives stand.

A row's positives come first, then its negatives, counted from 0.
"""


def choose(
    positives: int,
    negatives: int,
    passages_per_query: int,
    *key: object,
    first_positive: bool = False,
    first_negatives: bool = False,
) -> Places:
    """Choose one positive and up to `passages_per_query` - 1 different negatives of a row.

    A row with fewer negatives gives what it has; nothing is repeated or padded.

    Args:
        positives: Positives of the row, at least 1.
        negatives: Negatives of the row.
        passages_per_query: Positive included, at least 1.
        key: What the choice depends on: seed, dataset, row number, visit.
        first_positive: Take the row's first positive instead of one by chance.
        first_negatives: Take the row's first negatives, in their order, instead of some by chance.

    Returns:
        Places of the passages, the positive first; places of the other positives, which must not count as negatives.

    Example:
        >>> choose(2, 3, 3, "seed", "nq", 0, 0)
        ([1, 3, 4], [0])

    Departure: the released code samples short lists with replacement, which loses negatives that are there.
    """
    random = seeded(*key)
    first = 0 if first_positive else int(random.integers(positives))
    order = np.arange(negatives) if first_negatives else random.permutation(negatives)
    chosen = order[: passages_per_query - 1] + positives
    return [first, *chosen.tolist()], [place for place in range(positives) if place != first]


def whole(positives: int, negatives: int) -> Places:
    """Return everything a row has: all positives, then all negatives."""
    return list(range(positives + negatives)), []


def draw_wording(wordings: int, share: float, *key: object) -> int:
    """Draw which of its dataset's instructions a row has at a visit.

    Args:
        wordings: How many there are, at least 1.
        share: Probability that there is one at all.
        key: What the draw depends on: seed, dataset, row number, visit.

    Returns:
        0 to `wordings` - 1; `wordings` for none.

    Example:
        >>> draw_wording(1, 1.0, "seed", "nq", 0, 0), draw_wording(1, 0.0, "seed", "nq", 0, 0)
        (0, 1)
    """
    random = seeded("instruction", *key)
    return int(random.integers(wordings)) if random.random() < share else wordings


def with_instruction(text: str, instruction: str, template: str) -> str:
    """Put a task description in front of a text; none leaves the text as it is.

    Example:
        >>> with_instruction("who?", "Find the answer", "Instruct: {instruction}; Query: {query}")
        'Instruct: Find the answer; Query: who?'
    """
    return template.replace("{instruction}", instruction).replace("{query}", text) if instruction else text
