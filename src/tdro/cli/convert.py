"""`tdro convert SOURCE... --to LAYOUT --out PATH`: datasets in another layout."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from tdro.cli.overrides import parse
from tdro.data.layouts import WrittenLayout
from tdro.errors import ConfigError

if TYPE_CHECKING:
    from tdro.prepare.convert import Conversion

HELP = """\
usage: tdro convert SOURCE... --to LAYOUT --out PATH [--name NAME] [--max-rows N] [--negatives N] [--skip-bad]

Write datasets in another layout. Several sources become one dataset.

examples:
  tdro convert nq.jsonl.gz --to flagembedding --out nq-flag.jsonl
  tdro convert beir/fiqa#train --to tevatron --out fiqa.jsonl.gz
  tdro convert a.csv b.parquet --to sentence-transformers --out both.parquet --negatives 1

SOURCE is a .jsonl, .json, .csv, .tsv (each also .gz) or .parquet file, a folder of them, a folder saved by
datasets.save_to_disk, a BEIR folder (FOLDER#SPLIT), or hf://OWNER/NAME:SPLIT. Its layout is found out.

  --to tevatron               .jsonl, .jsonl.gz: everything that a row can have
  --to flagembedding          .jsonl, .jsonl.gz: query, pos, neg, pos_scores, neg_scores, prompt
  --to sentence-transformers  .jsonl, .jsonl.gz, .parquet: a record per positive: anchor, positive, negative(s)
  --to csv, --to tsv          .csv, .tsv, also .gz: the same columns
  --to beir                   a new folder: corpus.jsonl, queries.jsonl, qrels/train.tsv

  --out PATH      file or folder to write; it appears when it is complete
  --name NAME     starts the ids of queries that have none (default: name of the first source)
  --max-rows N    a random sample of so many rows, the same each time
  --negatives N   keep the first N negatives of each row; a table needs as many in every row
  --skip-bad      leave out bad rows and say which, instead of stopping at the first one
"""


@dataclass
class Arguments:
    """Datasets and what they become."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders, hf://OWNER/NAME:SPLIT."""
    to: WrittenLayout
    """Layout to write."""
    out: str
    """File or folder to write."""
    name: str = ""
    """Starts the ids of queries that have none; empty: name of the first source."""
    max_rows: int | None = None
    """Convert a random sample of so many rows."""
    negatives: int | None = None
    """Keep the first so many negatives of each row."""
    skip_bad: bool = False
    """Leave out bad rows."""


def command(arguments: list[str]) -> int:
    """Convert, and say what did not come along."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    parsed = parse(Arguments, "tdro convert", arguments)
    if not parsed.sources:
        raise ConfigError(
            "no source is given", where="tdro convert", do="tdro convert SOURCE... --to LAYOUT --out PATH"
        )
    if parsed.negatives is not None and parsed.negatives < 0:
        raise ConfigError("a number below 0", where="--negatives", saw=parsed.negatives, do="0 keeps no negative")
    from tdro.prepare.convert import convert

    conversion = convert(
        parsed.sources,
        parsed.to,
        parsed.out,
        name=parsed.name or _name(parsed.sources[0]),
        max_rows=parsed.max_rows,
        negatives=parsed.negatives,
        skip_bad=parsed.skip_bad,
        progress=_show if sys.stderr.isatty() else None,
    )
    _report(conversion, parsed.sources, parsed.out)
    return 0


def _name(source: str) -> str:
    """Return the name of a source without its folder, its endings and its split."""
    return Path(source.partition("#")[0]).name.partition(".")[0].partition(":")[0] or "dataset"


def _show(rows: int) -> None:
    """Show how far the conversion has come."""
    print(f"\r{rows:,} rows", end="", file=sys.stderr, flush=True)


def _report(conversion: "Conversion", sources: Sequence[str], out: str) -> None:
    """Print what was read and written, and what is not in it."""
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    written = conversion.written
    for source in sources:
        print(f"{source}: {conversion.layouts[source]}")
    print(f"{written.rows:,} rows -> {written.records:,} records in {out}")
    lost = {what: count for what, count in written.lost.items() if count}
    if lost:
        print("not carried over:")
        for what, count in lost.items():
            print(f"  {count:,} {what}")
    if "beir" in conversion.layouts.values():
        print("of a BEIR folder, queries for which something is relevant and judged documents are read, others not")
    if conversion.unread:
        print(f"columns that were not read: {', '.join(conversion.unread)}")
    if conversion.bad:
        print(f"{conversion.bad:,} bad rows were left out:")
        for problem in conversion.problems:
            print(f"  {problem.where}: {problem.what}")
        if conversion.bad > len(conversion.problems):
            print(f"  and {conversion.bad - len(conversion.problems):,} more; `tdro check` lists them")
