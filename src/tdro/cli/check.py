"""`tdro check STUDY.yaml`: read every dataset of a study and say what is wrong with it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tdro.cli.overrides import parse
from tdro.config import Study
from tdro.errors import ConfigError
from tdro.study_file import load_study

if TYPE_CHECKING:
    from tdro.prepare.check import CheckResult
    from tdro.prepare.check import Progress as Report
    from tdro.prepare.findings import Finding

HELP = """\
usage: tdro check STUDY.yaml [--section.option VALUE ...] [--fix-copy DIR] [--out FILE] [--card FILE]
       tdro check --instructions

Read every dataset of a study and say what is wrong with it: rows that cannot be read, repeated rows, positives among
negatives, texts that were decoded wrongly, ids used twice, and much more; with lengths, languages and epochs.

examples:
  tdro check study.yaml
  tdro check study.yaml --card card.md
  tdro check study.yaml --fix-copy clean          then put clean/datasets.yaml into the study

  --fix-copy DIR   write repaired copies; DIR/dropped.jsonl lists every row and passage left out, and why
  --out FILE       where check.json goes (default: data/check.json in the run folder)
  --card FILE      write a data card in Markdown
  --instructions   print the table of instructions for well-known datasets and kinds of tasks

exit code: 0 nothing must be fixed, 1 something must be fixed, 2 the study itself is wrong.
"""
EXAMPLES = 3
"""Findings that are shown of one kind in one dataset."""
TOKENIZER_FILES = [
    "tokenizer*",
    "*/tokenizer*",
    "*.model",
    "vocab*",
    "merges*",
    "*config*.json",
    "special_*",
    "modules.json",
]
COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass
class Arguments:
    """A study, with options changed on the command line, and what to write."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    fix_copy: str = ""
    """Folder for repaired copies; empty: none."""
    out: str = ""
    """File for the whole result, JSON; empty: data/check.json in the run folder."""
    card: str = ""
    """File for a data card, Markdown; empty: none."""


def command(arguments: list[str]) -> int:
    """Check the datasets of a study."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=150)
    if "--instructions" in arguments:
        _print_instructions(console)
        return 0
    if arguments[0].startswith("-"):
        raise ConfigError("the study file comes first", saw=arguments[0], do="tdro check STUDY.yaml [options]")
    path = Path(arguments[0])
    parsed = parse(Arguments, f"tdro check {path}", arguments[1:], Arguments(load_study(path)))
    study = parsed.study

    from tdro.files import write_text
    from tdro.prepare.card import card_of
    from tdro.prepare.check import check

    fix_copy = Path(parsed.fix_copy) if parsed.fix_copy else None
    tokenizer = _find_tokenizer(study, console)
    try:
        with _bar() as progress:
            result = check(study, tokenizer=tokenizer, fix_copy=fix_copy, progress=progress)
    except KeyboardInterrupt:
        print("interrupted; there is no result", file=sys.stderr)
        return 130
    print_result(result, console)
    _keep(study, result, Path(parsed.out) if parsed.out else None, console)
    if parsed.card:
        write_text(Path(parsed.card), card_of(result))
        console.print(f"data card in {parsed.card}", markup=False)
    return 1 if result.total("error") else 0


def _keep(study: Study, result: "CheckResult", given: Path | None, console: Console) -> None:
    """Write the whole result, where not told otherwise into the run folder, unless that is of a run with other data."""
    from tdro.files import read_json, write_json

    out, mine = given or study.run_folder / "data" / "check.json", _files(study)
    if given is None:
        with suppress(ConfigError):  # nothing has run there, or what has cannot be read
            ran = _files(load_study(study.run_folder / "resolved.yaml"))
            if ran != mine:
                what = f"{study.run_folder} has a run of other data ({_difference(ran, mine)})"
                do = f"give this study a name or output of its own, or use --out {out} to keep it there all the same"
                console.print(f"the result is not kept: {what}; {do}", markup=False, soft_wrap=True)
                return
        with suppress(OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged
            before = {report["name"]: report["paths"] for report in read_json(out)["datasets"]}
            if before != mine:
                what = f"note: this takes the place of a check of other data ({_difference(before, mine)})"
                console.print(
                    f"{what}; another study of this name needs an output of its own", markup=False, soft_wrap=True
                )
    write_json(out, result.as_dict())
    console.print(f"everything is in {out}", markup=False, soft_wrap=True)


def _files(study: Study) -> dict[str, list[str]]:
    """Dataset -> its files and folders."""
    return {name: [str(path) for path in study.files_of(name)] for name in study.data.datasets}


def _difference(before: dict[str, list[str]], now: dict[str, list[str]]) -> str:
    """Name the datasets of which only one side knows, or knows other files."""
    gone, new = ([name for name in one if name not in other] for one, other in ((before, now), (now, before)))
    moved = [name for name in now if name in before and now[name] != before[name]]
    kinds = {"only there": gone, "only here": new, "other files": moved}
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in kinds.items() if names)


def _find_tokenizer(study: Study, console: Console) -> Path | None:
    """Find the folder of the base encoder's tokenizer; None, and a line that says so, where it is not available."""
    from huggingface_hub import snapshot_download

    from tdro.models.bases import find_encoder

    base = study.fill_root(study.model.base)
    try:
        if base.startswith("package:") or Path(base).is_dir():
            return find_encoder(base)
        return Path(snapshot_download(base, allow_patterns=TOKENIZER_FILES, etag_timeout=5))
    except (ConfigError, OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        console.print(
            f"note: the tokenizer of {base} is not available ({why}); lengths are counted in words", markup=False
        )
        return None


@contextmanager
def _bar() -> Iterator["Report"]:
    """Draw a bar in a terminal, and nothing elsewhere."""
    bar = Progress(
        TextColumn("checking"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[rows]} rows"),
        TimeRemainingColumn(), console=Console(file=sys.stderr), transient=True, disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with bar:
        task = bar.add_task("", rows="0")
        yield lambda done, total, rows: bar.update(task, completed=done, total=total, rows=f"{rows:,}")


def print_result(result: "CheckResult", console: Console) -> None:
    """Print tables of the datasets and what was found in them."""
    console.print(_size_table(result))
    console.print(_text_table(result))
    console.print(_instruction_table(result))
    if result.overlaps:
        console.print(_overlap_table(result))
    _print_findings(result, console)
    for copy in result.repaired:
        console.print(
            f"{copy.name}: {copy.rows:,} rows in {copy.path}; {copy.dropped_rows:,} rows and {copy.dropped_passages:,} "
            f"passages dropped, {copy.changed:,} rows changed",
            markup=False,
        )
    counts = {"error": result.total("error"), "warning": result.total("warning"), "note": result.total("note")}
    totals = ", ".join(f"{count:,} {level}{'' if count == 1 else 's'}" for level, count in counts.items())
    console.print(f"{sum(report.rows for report in result.datasets):,} rows: {totals}")


def _grid(title: str, *columns: str) -> Table:
    """Start a table whose numbers stand on the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i, overflow="fold")
    return table


def _size_table(result: "CheckResult") -> Table:
    """Sizes and epochs."""
    stages = list(dict.fromkeys(stage for report in result.datasets for stage in report.epochs))
    table = _grid(
        "Sizes", "dataset", "layout", "rows", "cannot be used", "distinct queries", "positives/row", "negatives/row",
        "without negatives", *(f"epochs {stage}" for stage in stages),
    )  # fmt: skip
    for report in result.datasets:
        rows = report.rows
        per_row = [f"{n / rows:.2f}" if rows else "" for n in (report.positives, report.negatives)]
        epochs = [f"{report.epochs[stage]:.2f}" if report.epochs else "" for stage in stages]
        counts = [f"{n:,}" for n in (rows, report.bad_rows, report.distinct_queries)]
        layout = " + ".join(dict.fromkeys(report.layouts.values()))
        table.add_row(report.name, layout, *counts, *per_row, f"{report.without_negatives:,}", *epochs)
    return table


def _text_table(result: "CheckResult") -> Table:
    """Lengths and languages."""
    from tdro.prepare.card import languages_in_words, lengths_in_words
    from tdro.prepare.dataset_report import ROLES

    cut = " / cut" if result.unit == "tokens" else ""
    table = _grid(
        f"Texts: {result.unit}, median / 95 % / longest{cut}", "dataset", *ROLES, "query language", "positive language"
    )
    for report in result.datasets:
        spoken = [languages_in_words(report.languages.get(role, {})) for role in ROLES[:2]]
        table.add_row(report.name, *(lengths_in_words(report, role) for role in ROLES), *spoken)
    return table


def _instruction_table(result: "CheckResult") -> Table:
    """Which instruction each dataset has, or could have."""
    table = Table(title="Instructions", title_justify="left", title_style="bold", box=None, show_header=False)
    for report in result.datasets:
        none = f"none; the table has: {report.suggestion}" if report.suggestion else "none, and none is known"
        table.add_row(report.name, escape(report.instruction or none))
    return table


def _overlap_table(result: "CheckResult") -> Table:
    """What datasets share."""
    table = _grid("Shared between datasets", "datasets", "queries", "same positives too", "passages")
    for overlap in result.overlaps:
        counts = [f"{n:,}" for n in (overlap.queries, overlap.pairs, overlap.passages)]
        table.add_row(f"{overlap.first}, {overlap.second}", *counts)
    return table


def _print_findings(result: "CheckResult", console: Console) -> None:
    """Print every kind of finding with the datasets that have it, and a few examples of each."""
    from tdro.prepare.findings import KINDS

    examples: dict[tuple[str, str], list[Finding]] = {}
    for finding in result.findings:
        examples.setdefault((finding.dataset, finding.code), []).append(finding)
    found = {code for _, code in result.counts} - {"no-instruction"}  # the table of instructions shows those
    for code, kind in ((code, kind) for code, kind in KINDS.items() if code in found):
        console.print(f"\n[{COLOURS[kind.level]}]{kind.level}[/] {code}: {kind.what}")
        remedies: list[str] = []
        for dataset, number in ((dataset, n) for (dataset, other), n in result.counts.items() if other == code):
            console.print(f"  {dataset}: {number:,}", markup=False)
            for finding in examples.get((dataset, code), [])[:EXAMPLES]:
                what = f"{finding.what}: " if finding.what != kind.what else ""
                saw = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in finding.saw)[:100]
                console.print(f"    {finding.place}  {what}{saw}", markup=False, soft_wrap=True)
                remedies += [finding.do] if finding.do not in remedies else []
        for do in remedies or [kind.do]:
            console.print(f"  do: {do}", markup=False)


def _print_instructions(console: Console) -> None:
    """Print the table of instructions."""
    from tdro.instructions import categories, names

    for title, entries in (("by category", categories()), ("by name", names())):
        table = Table(title, "instruction", box=None, header_style="bold")
        for name, instruction in entries.items():
            table.add_row(name, instruction)
        console.print(table)
