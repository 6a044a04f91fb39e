"""`tdro demo`: the whole method on data built from this machine's own documentation."""

from pathlib import Path

import tyro

from tdro.cli.study import execute
from tdro.config import Study
from tdro.study_file import load_study

HELP = """\
usage: tdro demo [--section.option VALUE ...]

Build datasets from the documentation that comes with Python, then mine, train, learn the weights, train with them and
evaluate. No download, no network, about five minutes on two cores.

examples:
  tdro demo
  tdro demo --output runs/demo-reweight --robust.plan reweight
"""


def command(arguments: list[str]) -> int:
    """Build the demo's data if it is not there, and run recipes/demo.yaml on it."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    path = recipe("demo.yaml")
    study = tyro.cli(Study, prog="tdro demo", args=arguments, default=load_study(path))
    from tdro.demo.build import build_demo

    summary = build_demo(Path(study.data.root), seed=study.seed, progress=lambda text: print(text, flush=True))
    rows = ", ".join(f"{name} {count}" for name, count in summary.train.items())
    print(f"datasets (rows): {rows}")
    return execute("run", study, path.read_text(encoding="utf-8"))


def recipe(name: str) -> Path:
    """Find a recipe: inside the installed package, or beside the sources."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes" / name
    return inside if inside.exists() else package.parents[1] / "recipes" / name
