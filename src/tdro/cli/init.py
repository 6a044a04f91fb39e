"""`tdro init FOLDER`: a study file for a folder of datasets, with the reason of every choice."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from tdro.cli.overrides import parse
from tdro.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tdro.setup.choices import Base
    from tdro.setup.folder import Found
    from tdro.setup.look import TaskView, View

HELP = """\
usage: tdro init FOLDER [--output FILE] [--base NAME] [--name NAME] [--yes]

Look at a folder of datasets and evaluation sets, in any layout and under any names, and write a study file that runs on
this machine, with a reason behind every choice. Nothing is trained, fetched or overwritten.

examples:
  tdro init my-data
  tdro init my-data --output studies/mine.yaml --base intfloat/multilingual-e5-small --yes

  --output FILE   the study file that is written (default: study.yaml)
  --base NAME     base encoder: a folder, package:NAME/folder, or a hub name (default: asked for in a terminal; else the
                  packaged all-MiniLM-L6-v2, or its hub name where the package is not installed)
  --name NAME     of the study and its run folder (default: that of the folder)
  --yes           ask nothing, take the defaults
"""


@dataclass
class Arguments:
    """A folder and what to make of it."""

    folder: tyro.conf.Positional[str]
    """Folder with datasets and evaluation sets."""
    output: str = "study.yaml"
    """The study file that is written."""
    base: str = ""
    """Base encoder; empty: asked for in a terminal, else chosen."""
    name: str = ""
    """Name of the study; empty: that of the folder."""
    yes: bool = False
    """Ask nothing."""


def command(arguments: list[str]) -> int:
    """Write a study file."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    parsed = parse(Arguments, "tdro init", arguments)
    root, output = Path(parsed.folder), Path(parsed.output)
    from tdro.setup.folder import refuse_what_is_no_folder

    refuse_what_is_no_folder(root)
    if output.exists():
        raise ConfigError("the study file is there already", where=output, do="give another name with --output")
    from tdro.files import write_text
    from tdro.setup.choices import this_machine
    from tdro.setup.init_study import Draft, study_text

    found, views, tasks = _look_around(root)
    base, how = _base(parsed)
    draft = Draft(parsed.folder, found, views, tasks, base, this_machine(), how)
    name = parsed.name or re.sub(r"[^\w.-]+", "-", root.resolve().name).strip("-.") or "study"
    write_text(output, study_text(draft, name, parsed.output))
    for path, why in found.left_out.items():
        print(f"left out: {path}: {why}")
    for name, view in views.items():
        if view.bad:
            print(f"note: {name} has rows that cannot be used, and a run stops at the first: {view.problem}")
    if len(views) == 1:
        print("note: one dataset has nothing to weigh: one model is trained on it")
    if not any(map(draft.is_judged, draft.evaluated)):
        what = "weights will be learned" if len(views) > 1 else "a model will be trained"
        print(f"note: no evaluation set: {what} but not judged; add evaluation.tasks")
    print(f"datasets: {len(views)}; evaluation sets: {len(tasks)}; study file: {output}")
    print(f"base encoder: {base.name} ({how})")
    print(f"next: tdro check {output}; tdro estimate {output}; tdro run {output}")
    return 0


def _look_around(root: Path) -> "tuple[Found, dict[str, View], dict[str, TaskView]]":
    """Search a folder and look at what is there; what cannot be used is left out, with the reason."""
    from tdro.setup.folder import reason, search_folder
    from tdro.setup.look import look, look_at_task

    found = search_folder(root)
    views: dict[str, View] = {}
    tasks: dict[str, TaskView] = {}
    for one in found.datasets:
        print(f"looking at {', '.join(one.paths)}", file=sys.stderr)
        try:
            views[one.name] = look(one.name, [root / path for path in one.paths])
        except DataError as problem:
            found.left_out[", ".join(one.paths)] = reason(problem)
    for task in found.tasks:
        try:
            tasks[task.task.name] = look_at_task(task.task, root / task.options.path)
        except DataError as problem:
            found.left_out[task.options.path] = reason(problem)
    return found, views, tasks


def _in_a_terminal() -> bool:
    """Whether somebody is there who can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _base(parsed: Arguments) -> "tuple[Base, str]":
    """Return the base encoder, and why it is that one; asked for in a terminal."""
    from tdro.setup.choices import PACKAGED, default_base, look_at_base

    if parsed.base:
        return look_at_base(parsed.base), "as given"
    default = default_base()
    why = "small enough for a CPU" + (", and installed here" if default == PACKAGED else ", fetched from the hub")
    if parsed.yes or not _in_a_terminal():
        return look_at_base(default), f"the default: {why}; --base names another"
    while True:
        given = input(f"base encoder: a folder, package:NAME/folder or a hub name [{default}] ").strip()
        try:
            return look_at_base(given or default), "as given" if given else f"the default: {why}"
        except ConfigError as problem:
            print(problem)
