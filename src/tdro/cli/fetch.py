"""`tdro fetch NAME... --to FOLDER`: benchmarks from where they are published."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from tdro.cli.overrides import parse
from tdro.errors import ConfigError

if TYPE_CHECKING:
    from tdro.evaluation.downloads import Progress
    from tdro.integrations.mteb_tasks import TaskFolder

_MTEB = "mteb/"
HELP = """\
usage: tdro fetch NAME... --to FOLDER

Download benchmarks, compare them with their published checksums, and lay them out as evaluation reads them.

examples:
  tdro fetch                                       lists what there is
  tdro fetch beir/scifact beir/nfcorpus --to eval
  tdro fetch miracl/sw miracl/yo --to eval         needs HF_TOKEN, and the terms accepted on the hub
  tdro fetch mkqa --to eval                        with the documents of beir/nq
  tdro fetch beir miracl --to eval                 BEIR's 15 public sets, MIRACL's 18 languages
  tdro fetch mteb/NFCorpus --to eval               any retrieval task of mteb, by its name there (extra `mteb`)
  tdro fetch mteb/MIRACLRetrievalHardNegatives#sw --to eval      one language of it

Sets that are there are left alone; a download that was interrupted goes on.
"""


@dataclass
class Arguments:
    """Which sets, and where they go."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """beir, beir/NAME, miracl, miracl/LANGUAGE, mkqa, mteb/NAME, mteb/NAME#LANGUAGE."""
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
    parsed = parse(Arguments, "tdro fetch", arguments)
    from tdro.evaluation.downloads import expand, fetch, fetched

    of_mteb = [name for name in parsed.names if name.startswith(_MTEB)]
    names = expand([name for name in parsed.names if name not in of_mteb])
    if not (names or of_mteb) or not parsed.to:
        missing, do = ("no benchmark", "`tdro fetch` lists them") if parsed.to else ("nowhere to put it", "add --to")
        raise ConfigError(missing, where="tdro fetch", do=f"{do}: tdro fetch NAME... --to FOLDER")
    folder = Path(parsed.to)
    folders = _folders(of_mteb, folder)
    for name in names:
        if fetched(name, folder):
            print(f"{name}: is there")
            continue
        with _line() as line:
            fetch(name, folder, line)
        print(f"{name}: done")
    for name, parts in folders.items():
        _fetch_of_mteb(name, parts, folder)
    print("\n".join([_tasks(names, folder), *_tasks_of_mteb(part for parts in folders.values() for part in parts)]))
    return 0


def _folders(names: Sequence[str], folder: Path) -> "dict[str, list[TaskFolder]]":
    """Find the folders of tasks of mteb, whose import takes seconds and is needed for them only."""
    if not names:
        return {}
    from tdro.integrations.mteb_tasks import find_folders

    return {name: find_folders(name, folder) for name in names}


def _fetch_of_mteb(name: str, parts: "Sequence[TaskFolder]", folder: Path) -> None:
    """Fetch what is not there of a task of mteb."""
    from tdro.integrations.mteb_tasks import fetch_folders

    if all(part.path.exists() for part in parts):
        print(f"{name}: is there")
        return
    with _line() as line:
        fetch_folders(parts, folder, line)
    print(f"{name}: done")


def _list() -> None:
    """Print every set with the number of its documents."""
    from tdro.evaluation.downloads import BEIR, MIRACL, NOT_PUBLIC

    print("beir/NAME (documents):")
    print("\n".join(f"  {name:17} {documents:>6}" for name, (_, documents) in BEIR.items()))
    print(f"  not public: {', '.join(NOT_PUBLIC)}")
    print("miracl/LANGUAGE (passages):")
    print("\n".join(f"  {language:17} {passages:>6}" for language, passages in MIRACL.items()))
    print("mkqa: 10,000 questions in 26 languages; its documents are those of beir/nq")
    print("mteb/NAME, mteb/NAME#LANGUAGE: the retrieval tasks of mteb, by their names there (extra mteb)")
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


def _tasks_of_mteb(folders: "Iterable[TaskFolder]") -> list[str]:
    """Write the lines of a study for tasks of mteb, with the options that make our scores those of mteb."""
    lines: dict[str, None] = {}
    for folder in folders:
        place = (folder.path.parent if folder.pooled else folder.path).resolve()
        options = [f"path: {place}"]
        if folder.split != "test" and not folder.pooled:
            options.append(f"split: {folder.split}")
        if folder.ignore_identical_ids:
            options.append("ignore_identical_ids: true")
        lines[f"    {place.name}: {{{', '.join(options)}}}"] = None
    return list(lines)


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
