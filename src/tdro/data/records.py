"""What a row of a retrieval dataset is, whatever file it came from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage of a corpus: its id, an optional title and its text."""

    id: str
    title: str
    text: str

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
    """One training row: a query, at least one positive passage, any number of negatives."""

    query_id: str
    query: str
    positives: tuple[Passage, ...]
    negatives: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What is known of a dataset once it was read.

    `layout` names the detected file layout, `fingerprint` is a hash of the file's content and of
    every option that changes which rows come out of it.
    """

    name: str
    path: str
    layout: str
    rows: int
    fingerprint: str
