"""`tdro fetch NAME... --to FOLDER`: benchmarks from where they are published."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from tdro.errors import ConfigError

if TYPE_CHECKING:
    from tdro.evaluation.downloads import Progress

HELP = """\
usage: tdro fetch NAME... --to FOLDER

Download benchmarks, compare them with their published checksums, and lay them out as evaluation reads them.

examples:
  tdro fetch                                       lists what there is
  tdro fetch beir/scifact beir/nfcorpus --to eval
  tdro fetch miracl/sw miracl/yo --to eval         needs HF_TOKEN, and the terms accepted on the hub
  tdro fetch mkqa --to eval                        with the documents of beir/nq
  tdro fetch beir miracl --to eval                 BEIR's 15 public sets, MIRACL's 18 languages

Sets that are there are left alone; a download that was interrupted goes on.
"""


@dataclass
class Arguments:
    """Which sets, and where they go."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """beir, beir/NAME, miracl, miracl/LANGUAGE, mkqa."""
    to: str = ""
    """Folder in which every set gets a folder of its own."""


def command(arguments: list[str]) -> int:
    """Fetch, or list what can be fetched."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP, end="")
        return 0
    if not arguments:
        _list()
        return 0
    parsed = tyro.cli(Arguments, prog="tdro fetch", args=arguments)
    from tdro.evaluation.downloads import expand, fetch, fetched

    names = expand(parsed.names)
    if not names or not parsed.to:
        missing, do = ("no benchmark", "`tdro fetch` lists them") if parsed.to else ("nowhere to put it", "add --to")
        raise ConfigError(missing, where="tdro fetch", do=f"{do}: tdro fetch NAME... --to FOLDER")
    folder = Path(parsed.to)
    for name in names:
        if fetched(name, folder):
            print(f"{name}: is there")
            continue
        with _line() as line:
            fetch(name, folder, line)
        print(f"{name}: done")
    print(_tasks(names, folder))
    return 0


def _list() -> None:
    """Print every set with the number of its documents."""
    from tdro.evaluation.downloads import BEIR, MIRACL, NOT_PUBLIC

    print("beir/NAME (documents):")
    print("\n".join(f"  {name:17} {documents:>6}" for name, (_, documents) in BEIR.items()))
    print(f"  not public: {', '.join(NOT_PUBLIC)}")
    print("miracl/LANGUAGE (passages):")
    print("\n".join(f"  {language:17} {passages:>6}" for language, passages in MIRACL.items()))
    print("mkqa: 10,000 questions in 26 languages; its documents are those of beir/nq")
    print("tdro fetch NAME... --to FOLDER")


def _tasks(names: Sequence[str], folder: Path) -> str:
    """Write what a study needs to be evaluated on the sets."""
    lines = ["a study is evaluated on them with", "evaluation:", "  tasks:"]
    languages = [name.removeprefix("miracl/") for name in names if name.startswith("miracl/")]
    path = folder.resolve()
    for name in names:
        group, _, member = name.partition("/")
        if group == "beir":
            lines.append(f"    {member}: {path / member}")
        elif group == "mkqa":
            lines.append(f"    mkqa: {{path: {path / 'mkqa'}, corpus: {path / 'nq'}}}")
    if languages:
        lines.append(f"    miracl: {{path: {path / 'miracl'}, languages: [{', '.join(languages)}]}}")
    return "\n".join(lines)


@contextmanager
def _line() -> "Iterator[Progress]":
    """Show how far a download is in one line, at most ten times a second; nothing where there is no terminal."""
    shown, terminal = 0.0, sys.stderr.isatty()

    def show(what: str, done: int, of: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if terminal and (now - shown > 0.1 or done == of):
            shown = now
            share = f" of {of / 1e6:,.1f} MB, {done / of:.0%}" if of else " MB"
            print(f"\r\033[K{what}: {done / 1e6:,.1f}{share}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if shown:
            print(file=sys.stderr)
