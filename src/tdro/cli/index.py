"""`tdro index CORPUS --encoder NAME --out FOLDER`: encode a corpus, to search it."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tdro.cli.overrides import parse
from tdro.errors import ConfigError

HELP = """\
usage: tdro index CORPUS --encoder NAME --out FOLDER [options]

Encode a corpus, to search it with tdro search. CORPUS is a .jsonl, .jsonl.gz or .parquet file of documents (_id, title
and text in each record), a folder of them, or a BEIR folder. NAME is a folder, package:NAME/folder, or a hub name.

examples:
  tdro index wikipedia.jsonl.gz --encoder runs/mine/robust/model --out wiki-index
  tdro index beir/scifact --encoder BAAI/bge-base-en-v1.5 --out scifact-index --precision float32
  torchrun --nproc-per-node 4 -m tdro index wikipedia.jsonl.gz --encoder models/robust --out wiki-index

The same command goes on after an interruption. The folder holds everything but the encoder.

`tdro index CORPUS --help` lists every option.
"""


@dataclass
class Arguments:
    """What to index, with what, and where it goes."""

    encoder: str = ""
    """A folder, package:NAME/folder, or a hub name."""
    out: str = ""
    """Folder to write."""
    instruction: str = ""
    """Put in front of queries; empty: the prompts that the encoder was saved with, if any."""
    instruction_template: str = "Instruct: {instruction}\nQuery: {query}"
    """How instruction and query are joined."""
    query_max_length: int | None = None
    """Tokens of a query; the rest is cut. None: 512, or as many as the encoder takes."""
    passage_max_length: int | None = None
    """Tokens of a passage; the rest is cut. None: 512, or as many as the encoder takes."""
    precision: Literal["float16", "float32"] = "float16"
    """How embeddings are stored; float16 halves the disk and costs up to 0.05 % of a component."""
    max_tokens: int | None = None
    """Tokens of one forward pass, padding included. None: 4096 on a CPU, 16384 on a GPU."""


def command(arguments: list[str]) -> int:
    """Index a corpus."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0].startswith("-"):
        raise ConfigError("the corpus comes first", saw=arguments[0], do="tdro index CORPUS [options]")
    corpus = Path(arguments[0])
    parsed = parse(Arguments, f"tdro index {corpus}", arguments[1:])
    for option, value in (("--encoder", parsed.encoder), ("--out", parsed.out)):
        if not value:
            do = "tdro index CORPUS --encoder NAME --out FOLDER"
            raise ConfigError(f"{option} is missing", where=option, do=do)
    if parsed.max_tokens is not None and parsed.max_tokens < 1:
        raise ConfigError("a forward pass needs tokens", where="--max-tokens", saw=parsed.max_tokens, do="use 16384")
    _index(corpus, parsed)
    return 0


def _index(corpus: Path, parsed: Arguments) -> None:
    """Build the index; of several processes the first one talks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tdro.devices import join_ranks
    from tdro.retrieval.retriever import IndexSettings, build_index

    began = time.monotonic()
    settings = IndexSettings(
        encoder=parsed.encoder,
        instruction=parsed.instruction,
        instruction_template=parsed.instruction_template,
        query_max_length=parsed.query_max_length,
        passage_max_length=parsed.passage_max_length,
        precision=parsed.precision,
    )
    ranks = join_ranks()
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), quiet=ranks.number > 0)
    columns = TextColumn("encode"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty()) as bars:
        task = bars.add_task("encode", total=None)
        embeddings = build_index(
            corpus,
            Path(parsed.out),
            settings,
            max_tokens=parsed.max_tokens,
            ranks=ranks,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    passages, dimension = embeddings.shape
    console.print(
        f"{passages:,} passages -> {parsed.out} ({dimension} dimensions, {parsed.precision}) "
        f"in {time.monotonic() - began:.1f} s",
        markup=False,
    )
    console.print(f'try: tdro search {parsed.out} "..."', markup=False)
