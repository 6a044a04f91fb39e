"""Run the paper's grid of mixtures and measures on two CPU cores: python recipes/grid.py FOLDER [options of tdro run].

FOLDER has train/ and eval/ as recipes/multidomain-minilm.yaml names them. Every row is one `tdro run recipes/grid.yaml`
with the options below and its own folder runs/grid/ROW; started again, it goes on where it was. What rows share is made
once: reference and weights are those of the first row; rows of another measure get a copy of the reference, which they
recognise as finished. At the end `tdro compare` tests every row against the reference, which is the row "uniform".
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tdro.config import Study
from tdro.data.reading import read_study_dataset
from tdro.demo.encoder import build_encoder
from tdro.study_file import load_study

STUDY = Path(__file__).with_name("grid.yaml")
FIRST = "top70"
MIXTURES = {
    "top60": {"robust.share": "0.6"},
    "top80": {"robust.share": "0.8"},
    "bottom50": {"robust.plan": "bottom-share", "robust.share": "0.5"},
    "reweight": {"robust.plan": "reweight"},
    "reweight-loss": {"robust.plan": "reweight-loss"},
}
"""Rows with the weights of the first one."""
MEASURES = {
    "relative": {"weights.measure": "relative"},
    "excess": {"weights.measure": "excess-sample"},
    "raw": {"weights.measure": "raw"},
}
"""Rows with weights of their own."""


def rows(runs: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name and the options of every row, the first one first."""
    yield FIRST, {}
    robust = {"evaluation.models": "robust"}
    for name, options in MIXTURES.items():
        yield name, options | robust | {"robust.weights": str(runs / FIRST / "weights" / "weights.json")}
    for name, options in MEASURES.items():
        yield name, options | robust


def main(arguments: list[str]) -> None:
    """Run all rows and compare them."""
    if not arguments or arguments[0].startswith("-"):
        raise SystemExit(__doc__)
    given = ["--data.root", arguments[0], *arguments[1:]]
    study = load_study(STUDY)
    study = study.model_copy(update={"data": study.data.model_copy(update={"root": arguments[0]})})
    runs, encoder = study.run_folder.parent, Path(study.model.base)
    if not (encoder / "modules.json").is_file():
        build_encoder(encoder, texts(study), seed=study.seed)
    for name, options in rows(runs):
        folder = runs / name
        if name in MEASURES and not (folder / "reference").exists():
            shutil.copytree(runs / FIRST / "reference", folder / "reference")
        extra = [word for option, value in options.items() for word in (f"--{option}", value)]
        tdro("run", str(STUDY), "--name", f"grid-{name}", "--output", str(folder), *given, *extra)
    sides = [f"{name}={runs / name}:robust" for name, _ in rows(runs)]
    tdro("compare", f"uniform={runs / FIRST}:reference", *sides, "--examples", "0")


def texts(study: Study) -> Iterator[str]:
    """Yield the training texts of a study."""
    for name in study.data.datasets:
        dataset = read_study_dataset(study, name)
        yield from dataset.query_texts(0, len(dataset))
        yield from dataset.passage_texts(0, len(dataset))


def tdro(*words: str) -> None:
    """Run a command; stop where it fails."""
    print("\n$ tdro", *words, flush=True)
    if code := subprocess.run([sys.executable, "-m", "tdro", *words]).returncode:
        raise SystemExit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
