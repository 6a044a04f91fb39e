"""`tdro mine FILE --encoder NAME --out FILE`: hard negatives for one dataset, without a study."""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tdro.cli.overrides import parse
from tdro.config import MiningConfig
from tdro.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from tdro.prepare.candidates import Dense, Ranker
    from tdro.prepare.judges import Judge
    from tdro.prepare.mining_report import MiningReport

HELP = """\
usage: tdro mine FILE --encoder NAME --out FILE [--corpus FILE] [options]
       tdro mine STUDY.yaml [--section.option VALUE ...]

Write a dataset with hard negatives: passages that rank high for a query and are not known to be right. FILE is a
dataset in any layout that tdro reads; a study file mines all its datasets that lack negatives.

examples:
  tdro mine nq.jsonl --encoder BAAI/bge-base-en-v1.5 --out nq-mined.jsonl
  tdro mine nq.jsonl --encoder models/base --out nq-mined.jsonl --corpus wikipedia.jsonl.gz --relative-margin 0.05
  tdro mine nq.jsonl --source bm25 --out nq-mined.jsonl.gz --sampling top --negatives 4

Embeddings stay in the cache: a run that was interrupted goes on, and mining with other margins encodes nothing.

`tdro mine FILE --help` lists every option.
"""


@dataclass
class Arguments:
    """What to mine, with what, and where it goes."""

    mining: Annotated[MiningConfig, tyro.conf.arg(name="")] = field(default_factory=MiningConfig)
    out: str = ""
    """File to write: .jsonl or .jsonl.gz."""
    corpus: str = ""
    """File of passages to mine from (id, title, text per record); empty: those of the dataset."""
    instruction: str = ""
    """Put in front of the queries for the encoder; empty: the prompt that the encoder was saved with, if any."""
    instruction_template: str = "Instruct: {instruction}\nQuery: {query}"
    """How instruction and query are joined."""
    query_max_length: int = 128
    """Tokens of a query; the rest is cut."""
    passage_max_length: int = 512
    """Tokens of a passage; the rest is cut."""
    seed: int = 42
    """Decides which negatives are drawn."""


def command(arguments: list[str]) -> int:
    """Mine negatives for one dataset."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0].startswith("-"):
        raise ConfigError("the dataset comes first", saw=arguments[0], do="tdro mine FILE [options]")
    path = Path(arguments[0])
    parsed = parse(Arguments, f"tdro mine {path}", arguments[1:])
    _check(parsed, path)
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    with _bars(console) as bars:
        report = _mine(path, parsed, console, bars)
    _print(report, parsed.out, console)
    return 0


def _check(parsed: Arguments, path: Path) -> None:
    """Refuse options that contradict each other, before anything is read."""
    from tdro.training.negatives import refuse_unread

    mining = parsed.mining
    if not parsed.out:
        raise ConfigError("nowhere to write to", where="--out", do="add --out FILE.jsonl")
    if Path(parsed.out).resolve() == path.resolve():
        raise ConfigError("the dataset would be replaced", where="--out", saw=parsed.out, do="choose another file")
    if not parsed.out.endswith((".jsonl", ".jsonl.gz")):
        do = "let its name end in .jsonl or .jsonl.gz"
        raise ConfigError("cannot write this kind of file", where="--out", saw=parsed.out, do=do)
    if mining.when == "never":
        raise ConfigError("mining is switched off", where="--when", saw=mining.when, do="use missing or always")
    if mining.source == "dense" and not mining.encoder:
        raise ConfigError("no encoder to rank with", where="--encoder", do="add --encoder NAME, or --source bm25")
    if parsed.instruction and not mining.encoder:
        raise ConfigError("only an encoder reads an instruction", where="--instruction", do="leave it out")
    for part in ("{instruction}", "{query}"):
        if part not in parsed.instruction_template:
            raise ConfigError(f"the template lacks {part}", where="--instruction-template", do=f"put {part} into it")
    refuse_unread(mining)


def _mine(path: Path, parsed: Arguments, console: "Console", bars: "Progress") -> "MiningReport":
    """Read, load, mine."""
    from tdro.data.reading import read_dataset
    from tdro.files import cache_folder
    from tdro.prepare.mining import mine
    from tdro.retrieval.corpus import PassageFile
    from tdro.training.negatives import selection_of

    name = re.sub(r"[^\w.-]", "-", path.name.split(".")[0]) or "dataset"
    rows = read_dataset(name, path, cache=cache_folder() / "datasets")
    without = rows.without_negatives
    console.print(f"{path}: {rows.info.layout}, {len(rows)} rows, {without} without negatives", markup=False)
    if parsed.mining.when == "missing" and not without:
        console.print("every row has negatives and stays as it is; --when always replaces them")
    corpus = PassageFile(Path(parsed.corpus)).store(cache_folder()) if parsed.corpus else None
    ranker, judge = _ranker_and_judge(parsed, bars)
    return mine(
        rows,
        Path(parsed.out),
        dataset=name,
        ranker=ranker,
        judge=judge,
        seed=parsed.seed,
        corpus=corpus,
        selection=selection_of(parsed.mining),
        only_missing=parsed.mining.when == "missing",
        progress=_bar(bars, "mine rows"),
    )


def _ranker_and_judge(parsed: Arguments, bars: "Progress") -> "tuple[Ranker, Judge | None]":
    """Load the models that are asked for."""
    from tdro.devices import pick_device
    from tdro.prepare.bm25 import Bm25
    from tdro.prepare.judges import PairScorer
    from tdro.retrieval.bm25 import require_bm25

    mining = parsed.mining
    if mining.source == "bm25":
        require_bm25()
    judge: Judge | None = None
    if mining.cross_encoder:
        from tdro.retrieval.cross_encoder import load_cross_encoder

        score = load_cross_encoder(mining.cross_encoder, device=pick_device().name, where="--cross-encoder")
        judge = PairScorer(score, mining.cross_encoder)
    if not mining.encoder:
        return Bm25(), judge
    dense = _dense(parsed, bars)
    return (dense, judge) if mining.source == "dense" else (Bm25(), judge or dense)


def _dense(parsed: Arguments, bars: "Progress") -> "Dense":
    """Load the encoder."""
    from tdro.devices import pick_device
    from tdro.prepare.candidates import Dense
    from tdro.retrieval.encoders import open_encoder

    device, name = pick_device(), parsed.mining.encoder
    queries, passages = open_encoder(
        name,
        device=device,
        query_instruction=parsed.instruction,
        instruction_template=parsed.instruction_template,
        query_max_length=parsed.query_max_length,
        passage_max_length=parsed.passage_max_length,
        progress=_bar(bars, "encode texts"),
    )
    return Dense(queries, passages, name, device.name)


def _bars(console: "Console") -> "Progress":
    """Make bars that vanish at the end; nothing is drawn where there is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty())


def _bar(bars: "Progress", what: str) -> "Callable[[int, int], None]":
    """Return what moves a bar of its own, which appears when it first moves."""
    tasks: list[TaskID] = []

    def move(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bars.add_task(what, total=total))
        bars.update(tasks[0], completed=done, total=total)

    return move


def _print(report: "MiningReport", out: str, console: "Console") -> None:
    """Print the table of scores and what was found."""
    from rich.table import Table

    from tdro.prepare.mining_report import PERCENTILES

    judged = f" (scores of {report.judge})" if report.judge else ""
    table = Table("scores", "mean", *(f"{share} %" for share in PERCENTILES), box=None, header_style="bold")
    sides = (
        ("positives", report.positive_similarity, report.positive_percentiles),
        ("negatives", report.negative_similarity, report.negative_percentiles),
    )
    for side, mean, percentiles in sides:
        if mean is not None:
            table.add_row(side, f"{mean:.3f}", *(f"{percentiles[str(share)]:.3f}" for share in PERCENTILES))
    console.print(f"ranked by {report.ranker}{judged}: {report.corpus} passages", markup=False)
    console.print(table)
    counts = f"{report.negatives} negatives for {report.mined} of {report.rows} rows -> {out}"
    console.print(counts, markup=False)
    few = f"{report.short} rows got fewer than asked, {report.none} none, {report.fallback} better ranks than asked"
    console.print(f"{few}; {report.kept} rows kept theirs")
    if report.inverted is not None:
        console.print(f"a negative scores above a positive in {report.inverted:.1%} of the rows")
    if report.skipped is not None:
        refused = f"{report.above_margin} too close to a positive, {report.outside_limits} outside the limits"
        console.print(f"{report.skipped:.1%} of {report.looked_at} candidates refused: {refused}")
    spent = ", ".join(f"{what} {seconds:.1f}" for what, seconds in report.seconds_of.items())
    console.print(f"{report.seconds:.1f} s: {spent}")
    for warning in report.warnings:
        console.print(f"WARNING: {warning}", markup=False)
