"""What the released mining and dedup scripts had, and which arguments of `tdro mine` and `tdro dedup` it is here.

The tables are data, as those of `released_options`; docs/released-options.md prints them.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Prepared:
    """An argument, or a fixed setting, of the scripts that prepared data.

    Attributes:
        there: As it was called.
        ours: Arguments of the verb that does it here; empty where nothing is to be said.
        note: A sentence about it.
    """

    there: str
    ours: str
    note: str = ""


_MINING = (
    Prepared("--train_collection", "FILE", "the first argument, in any layout of docs/data.md"),
    Prepared(
        "--query_collection, --qrel_path", "FILE",
        "a folder in BEIR layout has queries and judgements, too; rows with ids only are mined by a study, see "
        "`data.datasets.*.queries` and `passages`",
    ),
    Prepared("--passage_collection", "--corpus PASSAGES", "without it, the passages of the rows"),
    Prepared("--model_name_or_path", "--encoder NAME"),
    Prepared("--save_to", "--out MINED.jsonl"),
    Prepared(
        "window [2, 100)", "--ranks 2 100",
        "the default; positives are taken out before ranks are counted, there after it",
    ),
    Prepared("16 negatives", "--negatives 16", "the default"),
    Prepared("max length 512", "--query-max-length 512 --passage-max-length 512", "queries have 128 by default"),
    Prepared("batch 128 per GPU", "", "found by itself; changes rounding only"),
)  # fmt: skip

_DEDUP = (
    Prepared("--train_collection", "FILE", "one or more"),
    Prepared("--query_collection", "--against EVAL", "BEIR folders, MIRACL topics, MKQA, or a query per row"),
    Prepared("--save_to", "--out FOLDER", "without it, the leaks are only reported"),
    Prepared("SimHash, k = 2", "--level simhash-k2", "for comparison; the default, near, finds far more"),
)

PREPARATION: Mapping[str, tuple[Prepared, ...]] = {"tdro mine": _MINING, "tdro dedup": _DEDUP}
"""Verb here -> what the script there had."""


def as_markdown() -> str:
    """Write the tables of mining and dedup for docs/released-options.md."""
    lines: list[str] = []
    for verb, rows in PREPARATION.items():
        lines += [f"### {verb}", "", "| there | here | |", "|---|---|---|"]
        lines += [f"| `{row.there}` | {f'`{row.ours}`' if row.ours else ''} | {row.note} |" for row in rows]
        lines.append("")
    return "\n".join(lines)
