"""What is known of a dataset after the check."""

from dataclasses import dataclass
from typing import Literal

from tdro.prepare.findings import Finding
from tdro.prepare.profile import Lengths

Role = Literal["query", "positive", "negative"]
ROLES: tuple[Role, ...] = ("query", "positive", "negative")


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What is known of a dataset after the check.

    Args:
        name: Of the dataset.
        paths: Its files and folders.
        layouts: Path -> layout of its rows.
        content: Hash of the bytes of its files; empty where they cannot be read.
        license: As the study has it.
        category: As the study has it.
        instruction: The one that its queries get; empty: none.
        suggestion: The one that the table of instructions has, where it gets none.
        rows: Rows that can be used.
        bad_rows: Records that cannot.
        distinct_queries: Queries that differ in more than case and white space.
        positives: Of all rows together.
        negatives: Of all rows together.
        fewest_negatives: Of a row.
        most_negatives: Of a row.
        without_negatives: Rows that have none.
        characters: Role -> characters of all texts.
        lengths: Role -> lengths of a sample.
        languages: Role -> language -> share of a sample.
        epochs: Stage -> how often the stage sees each row.
        samples: A few rows: query, first positive, first negative, cut.
        counts: Code of a finding -> how often it was found.
        findings: The first findings of each code.
    """

    name: str
    paths: tuple[str, ...]
    layouts: dict[str, str]
    content: str
    license: str
    category: str
    instruction: str
    suggestion: str
    rows: int
    bad_rows: int
    distinct_queries: int
    positives: int
    negatives: int
    fewest_negatives: int
    most_negatives: int
    without_negatives: int
    characters: dict[str, int]
    lengths: dict[str, Lengths]
    languages: dict[str, dict[str, float]]
    epochs: dict[str, float]
    samples: tuple[tuple[str, str, str], ...]
    counts: dict[str, int]
    findings: tuple[Finding, ...]
