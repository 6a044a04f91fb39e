"""What `tdro dedup` shows: a table, examples, duplicates and the self-test."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tdro.data.store import Rows
    from tdro.prepare.evaluation_queries import EvaluationSet
    from tdro.prepare.leakage import DatasetLeaks
    from tdro.prepare.planted import SelfTest
    from tdro.prepare.self_duplicates import Duplicates


@dataclass(frozen=True)
class Outcome:
    """What was compared and found.

    Args:
        datasets: Name -> rows.
        sets: The evaluation sets.
        found: What was found in each dataset.
        planted: The self-test.
        duplicates: Rows that occur twice, if they were looked for.
        neighbours: What an encoder has found, as it is written to JSON.
    """

    datasets: dict[str, "Rows"]
    sets: list["EvaluationSet"]
    found: list["DatasetLeaks"]
    planted: "SelfTest"
    duplicates: "Duplicates | None"
    neighbours: list[dict[str, Any]]


def count_rows(datasets: dict[str, "Rows"]) -> str:
    """Write how many rows there are."""
    return f"{sum(len(rows) for rows in datasets.values()):,} rows"


def show(outcome: Outcome, level: str, most: int) -> None:
    """Print the table, examples and the self-test.

    Args:
        outcome: What was found.
        level: How alike queries had to be.
        most: Examples per dataset and evaluation set, and templates per dataset.
    """
    from tdro.prepare.leakage_report import examples, table

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=140)
    kinds = ["exact", "near"] if level == "near" else [level]
    shown = Table("train", "test", *kinds, "pairs", "rate", "test queries", "template", "corpus", "passages", box=None)
    for line in table(outcome.found, outcome.sets):
        counts = [f"{line[kind]:,}" for kind in kinds]
        shown.add_row(
            line["train"], line["test"], *counts, f"{line['pair']:,}", f"{line['rate']:.2%}",
            f"{line['queries']:,} ({line['query_rate']:.1%})", f"{line['template']:,}", f"{line['shared_documents']:,}",
            f"{line['query_passages']:,}",
        )  # fmt: skip
    if shown.row_count:
        console.print(shown)
        console.print(
            "rows that leak by their strongest finding; pairs: with a relevant positive; not counted as leaks:"
        )
        console.print("template: same pattern, corpus: only the passage is shared, passages: a test query as positive")
    for one in outcome.found:
        shown_templates = 0
        for example in examples(one, outcome.datasets[one.name], outcome.sets, most):
            shown_templates += example["level"] == "template"
            if example["level"] != "template" or shown_templates <= most:
                _show_example(console, example)
    for neighbour in sorted(outcome.neighbours, key=lambda item: -item["score"])[: 5 * most]:
        _show_example(console, neighbour)
    if outcome.neighbours:
        console.print(f"semantic: {len(outcome.neighbours):,} more rows mean what a test query means; reported only")
    if outcome.duplicates:
        _show_duplicates(console, outcome.duplicates)
    _show_self_test(console, outcome.planted)
    leaking = sum(len(one.worst()) for one in outcome.found)
    console.print(f"{leaking:,} of {count_rows(outcome.datasets)} leak into {len(outcome.sets)} evaluation sets")


def _show_example(console: Console, example: dict[str, Any]) -> None:
    """Print one finding."""
    via = f" ({example['via']})" if example.get("via", "query") != "query" else ""
    found = f"{example['level']}{via} {example['score']:.2f}"
    mine = f"{example['train']}:{example['row']} {_cut(example['query'])!r}"
    theirs = f"{example['test']}:{example['test_query_id']} {_cut(example['test_query'])!r}"
    console.print(f"{found}  {mine}\n    {theirs}", markup=False, soft_wrap=True)


def _cut(text: str, length: int = 110) -> str:
    """Shorten a text."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


def _show_duplicates(console: Console, duplicates: "Duplicates") -> None:
    """Print how many rows occur twice."""
    for name, firsts in duplicates.counts().items():
        for first, count in firsts.items():
            where = "in itself" if first == name else f"in {first}"
            console.print(f"self: {count:,} rows of {name} stand earlier {where}")
    repeated = {name: count for name, count in duplicates.repeated_queries.items() if count}
    if repeated:
        listed = ", ".join(f"{name} {count:,}" for name, count in repeated.items())
        console.print(f"self: queries that an earlier row has too, other positives included: {listed}")


def _show_self_test(console: Console, planted: "SelfTest") -> None:
    """Print the recall of the settings."""
    parts = [
        f"{kind} {recall.share:.3f}"
        + (f" (+{recall.template / recall.planted:.3f} as template)" if recall.template else "")
        for kind, recall in planted.recall.items()
    ]
    tested = next(iter(planted.recall.values())).planted
    recalls = f"self-test, recall of {tested} planted leaks of each kind: {', '.join(parts)}"
    false = f"{planted.false_hits} false hits among {planted.unrelated:,} unrelated queries"
    console.print(f"{recalls}; {false}", soft_wrap=True)
