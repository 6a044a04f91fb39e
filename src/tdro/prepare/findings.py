"""What `tdro check` can find in a dataset: every kind with its level, its meaning and its remedy; and one finding."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]

KEPT = 1000
"""Findings that are kept of one kind in one dataset; the counts go on."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding.

    Args:
        level: error: must be fixed before training; warning: probably wrong; note: good to know.
        what: What is wrong, one sentence.
        do: What the user can do about it.
    """

    level: Level
    what: str
    do: str


_FIX = "tdro check --fix-copy DIR does it in a copy"

KINDS = {
    "unreadable": Kind("error", "a file cannot be read, or not to its end", "check the path and the file"),
    "bad-row": Kind("error", "a row that cannot be used", f"repair or remove the row; {_FIX}"),
    "no-rows": Kind("error", "no row of the dataset can be used", "give a file with usable rows, or drop the dataset"),
    "positive-among-negatives": Kind("error", "a negative is a positive of the row", f"remove it; {_FIX}"),
    "no-negatives": Kind(
        "error", "a row without negatives, and mining is off", f"set mining.when: missing, or remove the row; {_FIX}"
    ),
    "query-among-negatives": Kind("warning", "a negative repeats the query", f"remove it; {_FIX}"),
    "repeated-negative": Kind("warning", "a negative occurs twice in the row", f"remove one; {_FIX}"),
    "repeated-positive": Kind("warning", "a positive occurs twice in the row", f"remove one; {_FIX}"),
    "query-is-positive": Kind("warning", "query and positive are the same text", "remove the row: nothing is learned"),
    "repeated-row": Kind("warning", "the whole row occurred before", f"remove it; {_FIX}"),
    "repeated-pair": Kind(
        "warning", "query and positives of an earlier row, with other negatives", "merge the two rows"
    ),
    "query-id-twice": Kind("warning", "the query id stands for another query too", "give every query its own id"),
    "passage-id-twice": Kind(
        "warning", "the passage id stands for another text too", "give every passage its own id, or leave ids out"
    ),
    "replacement-characters": Kind(
        "warning", "the text has replacement characters: letters were lost", "decode the source anew, as what it is"
    ),
    "mojibake": Kind(
        "warning", "the text was decoded as Latin-1 or Windows-1252 but was UTF-8", "decode the source as UTF-8"
    ),
    "control-characters": Kind("warning", "the text has control characters", "remove them"),
    "no-words": Kind("warning", "the text has neither letter nor digit", "remove the row or the passage"),
    "small-dataset": Kind(
        "warning", "fewer rows than a batch takes from it", "a batch repeats its rows: use a smaller batch_size"
    ),
    "few-negatives": Kind(
        "warning", "fewer negatives than passages_per_query asks for", "mine more, or lower passages_per_query"
    ),
    "shared-pairs": Kind(
        "warning", "query and positives are also in another dataset", "keep them in one: both weights speak of them"
    ),
    "many-epochs": Kind("warning", "its rows are seen very often", "fewer steps, or more data"),
    "truncation": Kind("warning", "many texts are cut", "raise the limit in data, or shorten the texts"),
    "html": Kind("note", "the text has HTML tags or entities", "strip them, unless the text is about HTML"),
    "short-text": Kind("note", "a very short text", "look whether it says enough"),
    "long-text": Kind("note", "a very long text", "look whether it should be split"),
    "repeated-query": Kind("note", "the query of an earlier row, with other positives", "merge their positives"),
    "shared-queries": Kind("note", "the query is also in another dataset", "none needed if the positives are right"),
    "unread-column": Kind(
        "note", "a column, or a field of passages, that is not read", "none needed if it is of no use"
    ),
    "no-instruction": Kind("note", "queries get no instruction", "give one, or set data.instructions: auto"),
}
"""Code -> kind, the most important first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    Args:
        code: Which of `KINDS`.
        dataset: Where: the dataset.
        place: Where: `file:line:field`, or the option or the files that a finding about the whole dataset is about.
        what: What is wrong.
        saw: The value seen; long ones are cut.
        do: What the user can do about it.
    """

    code: str
    dataset: str
    place: str
    what: str
    saw: str
    do: str

    @property
    def level(self) -> Level:
        """How grave it is."""
        return KINDS[self.code].level


class Findings:
    """Collects what is found in one dataset: exact counts, and the first findings of every kind.

    Args:
        dataset: Name of the dataset.

    Attributes:
        counts: Code -> how often it was found.
        kept: The first `KEPT` of each kind, in the order of finding.

    Example:
        >>> findings = Findings("nq")
        >>> findings.add("html", "nq.jsonl:3:query", "a <b> tag")
        >>> findings.counts["html"], findings.kept[0].level
        (1, 'note')
    """

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.counts: Counter[str] = Counter()
        self.kept: list[Finding] = []

    def add(self, code: str, place: str, saw: str = "", *, what: str = "", do: str = "") -> None:
        """Count a finding and keep it if there is room; `what` and `do` are those of its kind unless given."""
        self.counts[code] += 1
        if self.counts[code] <= KEPT:
            kind = KINDS[code]
            self.kept.append(Finding(code, self.dataset, place, what or kind.what, saw[:200], do or kind.do))

    def count(self, code: str, number: int) -> None:
        """Count findings that are not kept; a number below 1 counts nothing."""
        if number > 0:
            self.counts[code] += number
