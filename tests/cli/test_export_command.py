"""`tdro export` on a run that really trained: the plan of its robust model, and other plans of the same weights."""

import csv
import json
import math
import shlex
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from datasets import interleave_datasets, load_dataset
from studies import tiny_study

from tdro.cli.export import command
from tdro.data.weights_file import read_weights
from tdro.errors import ConfigError, DataError
from tdro.study_file import save_study
from tdro.training.pipeline import run_study
from tdro.training.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run up to its robust model."""
    run = Run(tiny_study(tmp_path_factory.mktemp("run"), "static"))
    run_study(run, "robust")
    return run


@pytest.fixture
def export(run, capsys):
    """Export the run and return what was printed."""

    def call(*arguments: str) -> str:
        assert command([str(run.folder), *arguments]) == 0
        return capsys.readouterr().out

    return call


def test_json_is_the_plan_that_the_robust_model_was_trained_with(run, export):
    table = csv.DictReader((run.folder / "data" / "plan.csv").read_text().splitlines())
    sampled = {row["dataset"]: float(row["probability"]) for row in table if float(row["probability"])}
    assert len(sampled) == 2
    assert list(json.loads(export()).items()) == list(sampled.items())


def test_another_plan_of_the_same_weights(run, export, tmp_path):
    weights = read_weights(run.folder / "weights" / "weights.json")
    reweighted = json.loads(export("--robust.plan", "reweight"))
    assert reweighted == pytest.approx(weights, rel=1e-12) and list(reweighted) == list(weights)
    (tmp_path / "mixture.json").write_text(json.dumps(reweighted))
    again = json.loads(export("--robust.plan", "reweight", "--robust.weights", str(tmp_path / "mixture.json")))
    assert again == reweighted
    assert json.loads(export("--robust.plan", "bottom-share", "--robust.share", "0.34")) == {list(weights)[-1]: 1.0}
    assert json.loads(export("--robust.weights", "size")) == {"three": 60 / 124, "two": 40 / 124, "one": 24 / 124}


def test_loss_factors_are_in_json_and_refused_elsewhere(export):
    content = json.loads(export("--robust.plan", "reweight-loss"))
    assert sum(content["loss_factors"].values()) == pytest.approx(3)
    assert set(content["probabilities"].values()) == {1 / 3}
    for trainer in ("interleave", "ms-swift", "axolotl"):
        with pytest.raises(ConfigError, match=f"{trainer} cannot multiply the loss"):
            export("--robust.plan", "reweight-loss", "--format", trainer)


def test_interleave_datasets_takes_the_export_and_draws_the_plan(export, tmp_path):
    mixture = json.loads(export("--robust.plan", "reweight", "--format", "interleave"))
    assert abs(math.fsum(mixture["probabilities"]) - 1) < 1e-12 and mixture["seed"] == 42
    parts = [
        load_dataset(builder, data_files=files, split="train", cache_dir=str(tmp_path))
        .select_columns("query")
        .add_column("origin", [name] * size)
        for builder, files, name, size in zip(
            mixture["builders"],
            mixture["data_files"],
            mixture["datasets"],
            [{"one": 24, "two": 40, "three": 60}[name] for name in mixture["datasets"]],
            strict=True,
        )
    ]
    drawing = {key: mixture[key] for key in ("probabilities", "seed", "stopping_strategy")}
    together = interleave_datasets(parts, **drawing)
    seen, draws = Counter(together["origin"]), len(together)
    for name, p in zip(mixture["datasets"], mixture["probabilities"], strict=True):
        assert abs(seen[name] - p * draws) < 4 * math.sqrt(draws * p * (1 - p))


def test_axolotl_gets_the_planned_queries_and_ms_swift_the_paths(run, export):
    entries = yaml.safe_load(export("--format", "axolotl", "--robust.weights", "uniform"))["datasets"]
    rows = Counter()
    for entry in entries:
        rows[Path(entry["path"]).stem] += int(entry["split"].removeprefix("train[:").removesuffix("]"))
    assert rows == {"one": 16, "two": 16, "three": 16}  # 6 steps of 8 queries
    assert {entry["type"] for entry in entries} == {"chat_template"}
    arguments = shlex.split(export("--format", "ms-swift", "--robust.weights", "uniform"))
    datasets = arguments[1 : arguments.index("--interleave_prob")]
    assert sorted(datasets) == sorted(str(Path(run.study.data.root, f"train/{n}.jsonl")) for n in rows)


def test_rows_with_mined_negatives_come_first_and_another_root_before_them(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("model"))
    (folder / "data" / "negatives").mkdir()
    mined = folder / "data" / "negatives" / "two.jsonl"
    shutil.copy(Path(run.study.data.root, "train/two.jsonl"), mined)
    assert command([str(folder), "--format", "interleave", "--robust.plan", "reweight"]) == 0
    mixture = json.loads(capsys.readouterr().out)
    files = dict(zip(mixture["datasets"], mixture["data_files"], strict=True))
    assert files["two"] == str(mined) and files["one"] == str(Path(run.study.data.root, "train/one.jsonl"))
    shutil.copytree(Path(run.study.data.root, "train"), tmp_path / "converted" / "train")
    arguments = ["--format", "interleave", "--robust.plan", "reweight", "--root", str(tmp_path / "converted")]
    assert command([str(folder), *arguments]) == 0
    assert str(tmp_path / "converted" / "train" / "two.jsonl") in json.loads(capsys.readouterr().out)["data_files"]


def test_output_is_written_and_says_so(export, tmp_path):
    printed = export("--output", str(tmp_path / "new" / "mixture.json"))
    assert printed == f"2 of 3 datasets -> {tmp_path / 'new' / 'mixture.json'}\n"
    assert (tmp_path / "new" / "mixture.json").read_text() == export()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mixture.json"]


def test_packed_files_are_noted_beside_the_content(tmp_path, capsys):
    root = tmp_path / "rows"
    root.mkdir()
    (root / "one.jsonl.gz").touch()
    sections = {"data": {"root": str(root), "datasets": {"one": "one.jsonl.gz"}}, "robust": {"weights": "uniform"}}
    study = tiny_study(tmp_path, **sections)
    folder = tmp_path / "packed"
    (folder / "data").mkdir(parents=True)
    (folder / "resolved.yaml").write_text(save_study(study))
    (folder / "data" / "plan.csv").write_text("dataset,size,weight,probability,expected_epochs\none,9,1.0,1.0,1.0\n")
    assert command([str(folder), "--format", "ms-swift"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"--dataset {root / 'one.jsonl.gz'} --interleave_prob 1.0 ")
    assert captured.err.startswith("note: ms-swift opens neither packed files") and "one" in captured.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--format", "json"], "run folder comes first"),
        (["{parent}"], "no run in this folder\n.*\n.*\n?.*did you mean one of: .*run"),
        (["{run}", "--type", "alpaca"], "only axolotl has a type"),
        (["{run}", "--root", "."], "json names no paths"),
        (["{run}", "--robust.share", "0.1"], "keeps 0 of 3"),
        (["{run}", "--robust.weights", "nothing.json"], "weights cannot be read"),
    ],
)
def test_what_cannot_be_is_refused(run, arguments, expected):
    places = {"{run}": str(run.folder), "{parent}": str(run.folder.parent / "rnu")}
    with pytest.raises(ConfigError, match=expected):
        command([places.get(argument, argument) for argument in arguments])


def test_a_run_without_weights_or_data_says_what_to_do(run, tmp_path):
    (tmp_path / "resolved.yaml").write_text((run.folder / "resolved.yaml").read_text())
    with pytest.raises(ConfigError, match="not counted the rows"):
        command([str(tmp_path)])
    (tmp_path / "data").mkdir()
    shutil.copy(run.folder / "data" / "plan.csv", tmp_path / "data")
    with pytest.raises(ConfigError, match="learned no weights yet"):
        command([str(tmp_path)])
    assert command([str(tmp_path), "--robust.weights", "size"]) == 0
    with pytest.raises(DataError, match="give --root FOLDER"):
        command([str(run.folder), "--format", "interleave", "--root", str(tmp_path)])


def test_help_explains_the_verb_and_the_options_of_a_run(run, capsys):
    assert command(["--help"]) == 0
    assert "usage: tdro export RUN" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        command([str(run.folder), "--help"])
    assert end.value.code == 0 and "--robust.share" in capsys.readouterr().out
