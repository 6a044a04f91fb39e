"""`tdro demo`: the whole method on data built from this machine's own documentation."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tdro.cli.overrides import Shown, parse
from tdro.cli.study import execute
from tdro.config import Study
from tdro.study_file import load_study

HELP = """\
usage: tdro demo [--section.option VALUE ...] [-q | --json]

Build datasets from the documentation that comes with Python, then mine, train, learn the weights, train with them and
evaluate. No download, no network, about five minutes on two cores.

examples:
  tdro demo
  tdro demo --output runs/demo-top --robust.plan top-share

what is shown (default: a bar and live weights in a terminal, a line every ten seconds elsewhere):
  -q, --quiet   only what came out, at the end
  --json        every event as one line of JSON, nothing else on standard output

`tdro run STUDY.yaml --help` lists the options; the demo's values are in recipes/demo.yaml.
"""


@dataclass
class Arguments(Shown):
    """The demo's study, with options changed on the command line."""

    study: Annotated[Study, tyro.conf.arg(name="")]


def command(arguments: list[str]) -> int:
    """Build the demo's data if it is not there, and run recipes/demo.yaml on it."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    path = recipe("demo.yaml")
    parsed = parse(Arguments, "tdro demo", arguments, Arguments(load_study(path)))
    study = parsed.study
    from tdro.demo.build import build_demo

    said = sys.stdout if parsed.mode == "full" else sys.stderr

    def tell(text: str) -> None:
        if parsed.mode != "quiet":
            print(text, flush=True, file=said)

    summary = build_demo(Path(study.data.root), seed=study.seed, progress=tell)
    tell(f"datasets (rows): {', '.join(f'{name} {count}' for name, count in summary.train.items())}")
    again = shlex.join(["tdro", "demo", *arguments])
    return execute("run", study, path.read_text(encoding="utf-8"), parsed.mode, again)


def recipe(name: str) -> Path:
    """Find a recipe: inside the installed package, or beside the sources."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes" / name
    return inside if inside.exists() else package.parents[1] / "recipes" / name
