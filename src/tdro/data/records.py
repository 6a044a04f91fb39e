"""What a row of a retrieval dataset is, whatever file it came from."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage of a corpus: its id, an optional title and its text.

    Two passages are equal where these three are. The rest is what a file or the mining of negatives says about the
    passage as an answer to its row's query; it is written and read back. Stored rows are kept without it, but their
    scores lie in a table beside them (`data.scores`).

    Args:
        id: Its id, or a hash of what is encoded.
        title: Its title; empty for none.
        text: Its text.
        score: Similarity to the query, in the unit of `model`.
        rank: Place among the passages that were searched for the query, counted from 0.
        model: What gave score and rank.
    """

    id: str
    title: str
    text: str
    score: float | None = field(default=None, compare=False)
    rank: int | None = field(default=None, compare=False)
    model: str = field(default="", compare=False)

    @property
    def full_text(self) -> str:
        """The text that is encoded: title and text, separated by a space when there is a title.

        Example:
            >>> Passage("d1", "Bees", "They dance.").full_text
            'Bees They dance.'
        """
        return f"{self.title} {self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Row:
    """One training row: a query, at least one positive passage, any number of negatives.

    `prompt` is the row's own instruction (FlagEmbedding); it is written and read back, but not kept with stored rows:
    studies give instructions per dataset.
    """

    query_id: str
    query: str
    positives: tuple[Passage, ...]
    negatives: tuple[Passage, ...]
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What is known of a dataset once it was read.

    `layout` names the detected file layout (layouts, where its files differ), `fingerprint` is a hash of the files'
    content and of every option that changes which rows come out of them.
    """

    name: str
    path: str
    layout: str
    rows: int
    fingerprint: str
