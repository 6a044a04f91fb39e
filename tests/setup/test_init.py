"""`tdro init`, the inside: what is found in a folder, what a look at it shows, which settings follow."""

import gzip
import json
from pathlib import Path

import pytest
import yaml
from evaluation_sets import write_beir, write_lines
from studies import write_study_data
from tiny_models import make_tiny_model

from tdro.errors import ConfigError, DataError
from tdro.setup import init_study
from tdro.setup.choices import PACKAGED, Base, Machine, choose, default_base, look_at_base
from tdro.setup.folder import Found, search_folder
from tdro.setup.init_study import Draft, find_overlaps, study_text
from tdro.setup.look import View, look, look_at_task
from tdro.study_file import load_study
from tdro.training.pipeline import planned, run_study
from tdro.training.run import Run

CPU, GPU = Machine("cpu", "CPU"), Machine("cuda", "GPU")


def pairs(file: Path, count: int = 30, word: str = "bee") -> None:
    """Write pairs whose sides have little in common."""
    rows = [
        {"query": f"what does {word} number {i} do", "pos": [f"It lives in place {i * 7} and sings."]}
        for i in range(count)
    ]
    write_lines(file, [{**row, "neg": []} for row in rows])


def views_of(root: Path, found: Found) -> dict[str, View]:
    """Look at everything that was found."""
    return {one.name: look(one.name, [root / path for path in one.paths]) for one in found.datasets}


def draft(root: Path, base: Base | None = None, machine: Machine = CPU) -> Draft:
    """Everything that a study is written from."""
    found = search_folder(root)
    tasks = {one.task.name: look_at_task(one.task, root / one.options.path) for one in found.tasks}
    return Draft(str(root), found, views_of(root, found), tasks, base or Base("m"), machine, "of the test")


def view(rows: int, **other: object) -> View:
    """What a look at a dataset could show."""
    seen = {"problem": "", "bad": 0, "layout": "x", "without_negatives": 0, "languages": {}, "symmetric": ""}
    texts = {"queries": ("who dances",), "passages": ("bees dance",), "all_queries": ()}
    return View(rows=rows, looked_at=rows, **{**seen, **texts, **other})


def test_nested_and_flat_folders_hold_the_same(tmp_path):
    for root, train, eval_ in ((tmp_path / "nested", "train", "eval"), (tmp_path / "flat", ".", ".")):
        pairs(root / train / "alpha.jsonl")
        pairs(root / train / "beta set.json")
        write_beir(root / eval_ / "quiz")
        found = search_folder(root)
        assert [one.name for one in found.datasets] == ["alpha", "beta_set"]
        assert [one.task.name for one in found.tasks] == ["quiz"] and not found.left_out


def test_every_kind_of_file_is_found_under_the_name_that_says_something(tmp_path):
    pairs(tmp_path / "a" / "train.jsonl")
    pairs(tmp_path / "train_nq-v1.jsonl")
    (tmp_path / "c.csv").write_text("query,answer\nwho,me\n")
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write('{"query": "q", "pos": ["p"], "neg": ["n"]}\n')
    for part in range(3):
        pairs(tmp_path / "wiki" / f"part-{part:05}-of-00003.jsonl")
        pairs(tmp_path / "mixed" / f"big-{part:03}.jsonl")
    pairs(tmp_path / "mixed" / "small.jsonl")
    found = {one.name: one.paths for one in search_folder(tmp_path).datasets}
    assert found == {
        "a": ("a/train.jsonl",),
        "c": ("c.csv",),
        "d": ("d.jsonl.gz",),
        "nq-v1": ("train_nq-v1.jsonl",),
        "wiki": ("wiki",),
        "big": tuple(f"mixed/big-{part:03}.jsonl" for part in range(3)),
        "small": ("mixed/small.jsonl",),
    }


def test_saved_datasets_models_runs_and_hidden_files(tmp_path):
    from datasets import Dataset

    Dataset.from_list([{"anchor": "a", "positive": "b"}]).save_to_disk(str(tmp_path / "saved"))
    make_tiny_model("static", tmp_path / "model")
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "events.jsonl").write_text("{}\n")
    pairs(tmp_path / ".hidden" / "x.jsonl")
    pairs(tmp_path / "_cache" / "y.jsonl")
    assert [one.paths for one in search_folder(tmp_path).datasets] == [("saved",)]


def test_splits_of_a_beir_folder_are_trained_and_judged_on(tmp_path):
    write_beir(tmp_path / "both")
    (tmp_path / "both" / "qrels" / "train.tsv").write_text("q1\td1\t1\n")
    write_beir(tmp_path / "only-train", split="train")
    write_beir(tmp_path / "on-dev", split="dev")
    found = search_folder(tmp_path)
    assert [(one.name, one.paths) for one in found.datasets] == [
        ("both", ("both",)),
        ("only", ("only-train",)),
    ]
    assert [(one.task.name, one.options.split) for one in found.tasks] == [("both", ""), ("on-dev", "dev")]
    assert look("both", [tmp_path / "both"]).rows == 1


def test_what_is_neither_is_left_out_with_its_reason(tmp_path):
    write_lines(tmp_path / "broken" / "queries.jsonl", [{"_id": "q", "text": "t"}])
    (tmp_path / "broken" / "qrels").mkdir()
    found = search_folder(tmp_path)
    assert not found.tasks and "without corpus" in found.left_out["broken"]
    with pytest.raises(DataError, match="no such folder"):
        search_folder(tmp_path / "nowhere")


def test_files_for_evaluation_are_tasks_of_rows(tmp_path):
    pairs(tmp_path / "nq.jsonl", word="bee")
    pairs(tmp_path / "nq-dev.jsonl", word="bee")
    pairs(tmp_path / "test" / "ants.jsonl", word="ant")
    (tmp_path / "test" / "odd.json").write_text('[{"a": 1}]')
    made = draft(tmp_path)
    assert [one.name for one in made.datasets] == ["nq"]
    assert [(one.task.name, one.options.path, one.options.kind) for one in made.found.tasks] == [
        ("nq-dev", "nq-dev.jsonl", "rows"),
        ("ants", "test/ants.jsonl", "rows"),
    ]
    assert made.found.left_out.keys() == {"test/odd.json"} and made.found.against == ["test/odd.json"]
    content = yaml.safe_load(study_text(made, "a"))
    assert content["leakage"] == {"gate": "remove", "against": ["test/odd.json"]}  # nq and nq-dev ask the same
    assert content["evaluation"]["tasks"]["nq-dev"] == {"path": "nq-dev.jsonl", "kind": "rows"}


def test_equal_names_are_told_apart(tmp_path):
    for folder in ("x", "y"):
        pairs(tmp_path / folder / "nq.jsonl")
    pairs(tmp_path / "y" / "n_q.jsonl")
    assert [one.name for one in search_folder(tmp_path).datasets] == ["x_nq", "n_q", "y_nq"]


def test_a_look_counts_rows_negatives_and_bad_rows(tmp_path):
    good = {"query": "q", "pos": ["p"], "neg": ["n"]}
    write_lines(
        tmp_path / "a.jsonl", [good, {"query": "q2", "pos": ["p"], "neg": []}, {"query": "", "pos": ["p"]}, good]
    )
    seen = look("a", [tmp_path / "a.jsonl"])
    assert (seen.rows, seen.looked_at, seen.bad, seen.without_negatives) == (4, 4, 1, 1)
    assert "a.jsonl:3" in seen.problem and seen.layout == "flagembedding"


def test_a_look_at_something_else_says_why(tmp_path):
    write_lines(tmp_path / "documents.jsonl", [{"_id": "d", "title": "t", "text": "x"}])
    with pytest.raises(DataError, match="layout not recognised"):
        look("documents", [tmp_path / "documents.jsonl"])


def test_large_datasets_are_looked_at_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr("tdro.setup.look.LOOKED_AT", 10)
    pairs(tmp_path / "a.jsonl", 95)
    seen = look("a", [tmp_path / "a.jsonl"])
    assert seen.rows == 95 and seen.looked_at == 10
    assert seen.all_queries[1] == "what does bee number 10 do"


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"set": ["who dances", "which one dances"]}] * 3, "sets of texts"),
        ([["a b c d e", "a b c d f"], ["g h i j k", "g h i j l"]], "words or more in common"),
        ([["what is a", "one thing"], ["one thing", "what is a"]], "are queries, too"),
        ([["who dances", "bees do"], ["who sings", "birds do"]], ""),
    ],
)
def test_symmetric_only_where_it_can_be_seen(rows, why, tmp_path):
    write_lines(tmp_path / "a.jsonl", rows)
    found = look("a", [tmp_path / "a.jsonl"]).symmetric
    assert why in found if why else found == ""


def test_training_rows_that_ask_what_is_judged_are_counted(tmp_path):
    write_study_data(tmp_path)
    questions = ["where do the bees of the old orchard go when winter comes", "why does iron rust when it rains at sea"]
    write_beir(tmp_path / "eval" / "own", queries=[{"_id": f"q{i + 1}", "text": q} for i, q in enumerate(questions)])
    rows = [
        {"query": q, "pos": ["p"], "neg": []} for q in (questions[0].upper() + "?", questions[1], "who reads this book")
    ]
    write_lines(tmp_path / "train" / "leaky.jsonl", rows)
    made = draft(tmp_path)
    overlaps = find_overlaps(made.views, {"own": made.tasks["own"]})
    assert [(one.dataset, one.task, one.rows) for one in overlaps] == [("leaky", "own", 2)]
    content = yaml.safe_load(study_text(made, "a"))
    assert content["leakage"]["gate"] == "remove"


def test_without_overlap_the_gate_warns_and_without_evaluation_there_is_none(tmp_path):
    pairs(tmp_path / "a.jsonl")
    text = study_text(draft(tmp_path), "a")
    assert "leakage" not in yaml.safe_load(text) and "No evaluation set was found" in text
    write_beir(tmp_path / "quiz")
    assert yaml.safe_load(study_text(draft(tmp_path), "a"))["leakage"] == {"gate": "warn"}


def test_the_study_is_complete_and_gives_its_reasons(tmp_path):
    write_study_data(tmp_path / "data", negatives=0)
    (tmp_path / "study.yaml").write_text(study_text(draft(tmp_path / "data"), "mine"))
    study = load_study(tmp_path / "study.yaml")
    assert study.name == "mine" and list(study.data.datasets) == ["one", "three", "two"]
    assert [task.path for task in study.evaluation.tasks.values()] == ["eval/words"]
    assert study.robust.plan == "reweight"  # no dataset is left out
    assert study.reference.batch_size == 8  # the smallest dataset has 24 rows
    assert study.weights.batch_size == 9 and study.weights.sampling == "stratified"
    table = planned(study)  # as a dry run
    assert all(1 < row["reference_epochs"] < 15 for row in table.values())
    text = (tmp_path / "study.yaml").read_text()
    assert "24 rows; no negatives" in text and "the smallest dataset has 24 rows" in text
    assert max(map(len, text.splitlines())) <= 120


def test_odd_names_and_paths_are_written_as_yaml_reads_them(tmp_path):
    for name in ("yes", "a: b #c", "it's", "größe", "1e3", "null"):
        pairs(tmp_path / "o'dd: #" / f"{name}.jsonl")
    (tmp_path / "s.yaml").write_text(study_text(draft(tmp_path / "o'dd: #"), "a"))
    study = load_study(tmp_path / "s.yaml")
    assert set(study.data.datasets) == {"yes", "a_b_c", "it_s", "größe", "1e3", "null"}
    assert all((tmp_path / "o'dd: #" / options.path).is_file() for options in study.data.datasets.values())


def test_a_folder_without_data_is_refused_with_what_was_seen(tmp_path):
    write_lines(tmp_path / "broken" / "queries.jsonl", [{"_id": "q", "text": "t"}])
    (tmp_path / "broken" / "qrels").mkdir()
    with pytest.raises(DataError, match="nothing to train on") as refused:
        study_text(draft(tmp_path), "a")
    assert "without corpus" in str(refused.value)


def test_evaluation_sets_that_are_too_large_for_a_cpu_are_left_out_but_not_lost(tmp_path, monkeypatch):
    write_study_data(tmp_path)
    monkeypatch.setattr(init_study, "_MOST_DOCUMENTS", 10)
    text = study_text(draft(tmp_path), "a")
    assert yaml.safe_load(text)["evaluation"] == {"tasks": {}} and "# words: eval/words" in text
    for other in (draft(tmp_path, machine=GPU), draft(tmp_path, Base("m", kind="static"))):
        assert yaml.safe_load(study_text(other, "a"))["evaluation"]["tasks"] == {"words": "eval/words"}


@pytest.mark.parametrize(
    ("sizes", "base", "machine", "expected"),
    [
        ([8000] * 3, Base("m"), CPU, {"reference.batch_size": 32, "data.max_rows": 6600, "reference.steps": 300}),
        ([8000] * 3, Base("m"), GPU, {"reference.batch_size": 256, "data.max_rows": None, "reference.steps": 93}),
        ([8000] * 17, Base("m"), CPU, {"weights.batch_size": 34, "data.max_rows": 1100, "robust.plan": "reweight"}),
        ([300_000] * 20, Base("m"), GPU, {"reference.steps": 2000, "weights.step_size": 0.02}),
        ([8000] * 3, Base("m", parameters=110_000_000), CPU, {"data.max_rows": 600, "reference.steps": 30}),
        ([20, 900], Base("m"), CPU, {"reference.batch_size": 8, "robust.max_epochs": 4}),
        ([3], Base("m"), CPU, {"reference.batch_size": 4, "robust.plan": "reweight"}),
        ([900] * 3, Base("m", kind="static"), CPU, {"reference.batch_size": 256, "reference.learning_rate": 0.01}),
        ([900] * 3, Base("m", kind="decoder", parameters=7_000_000_000), GPU, {"model.lora_rank": 8}),
    ],
)
def test_settings_follow_from_sizes_base_and_machine(sizes, base, machine, expected):
    chosen = choose({f"d{i}": view(rows) for i, rows in enumerate(sizes)}, base, machine)
    assert {option: chosen.values.get(option) for option in expected} == expected


def test_lengths_are_the_95th_percentile_and_cut_texts_are_said(tmp_path):
    folder = make_tiny_model("bert", tmp_path / "model")
    short, long = ("who dances",) * 90, ("bee " * 300,) * 10
    one = view(100, queries=short + ("who dances in the hive",) * 10, passages=("bee " * 40,) * 90 + long)
    chosen = choose({"a": one}, Base("m", folder), CPU)
    assert chosen.values["data.query_max_length"] == 16 and chosen.values["data.passage_max_length"] == 128
    assert "up to 10% of a dataset's are cut" in chosen.reasons["data.passage_max_length"]
    assert choose({"a": one}, Base("m", folder), GPU).values["data.passage_max_length"] == 304


def test_what_is_known_of_a_base(tmp_path):
    decoder = look_at_base(str(make_tiny_model("qwen2", tmp_path / "qwen2")))
    encoder = look_at_base(str(make_tiny_model("bert", tmp_path / "bert")))
    static = look_at_base(str(make_tiny_model("static", tmp_path / "static")))
    assert [one.kind for one in (decoder, encoder, static)] == ["decoder", "encoder", "static"]
    assert encoder.positions == 512 and 10_000 < encoder.parameters < 100_000
    assert look_at_base("nobody/knows-this-model").folder is None and look_at_base("nor-this").folder is None
    with pytest.raises(ConfigError, match="not installed"):
        look_at_base("package:no_such_package/model")
    assert default_base() == PACKAGED and look_at_base(PACKAGED).positions == 256


def test_decoders_get_instructions_and_small_encoders_hear_of_them(tmp_path):
    pairs(tmp_path / "quora.jsonl")
    pairs(tmp_path / "mine.jsonl")
    write_beir(tmp_path / "scifact")
    small = study_text(draft(tmp_path), "a")
    assert "instructions" not in yaml.safe_load(small)["data"] and "instructions: auto would put" in small
    assert yaml.safe_load(small)["data"]["datasets"]["quora"]["category"] == "duplicate questions"
    large = yaml.safe_load(study_text(draft(tmp_path, Base("m", kind="decoder")), "a"))
    assert large["data"]["instructions"] == "auto" and "claim" in large["evaluation"]["tasks"]["scifact"]["instruction"]


@pytest.mark.slow
def test_the_study_runs_as_it_was_written(tmp_path):
    write_study_data(tmp_path / "data", negatives=0)
    base = look_at_base(str(make_tiny_model("static", tmp_path / "model")))
    (tmp_path / "study.yaml").write_text(study_text(draft(tmp_path / "data", base), "mine"))
    study = load_study(tmp_path / "study.yaml").model_copy(update={"output": str(tmp_path / "run")})
    scores = run_study(Run(study))
    assert set(scores["words"]) == {"base", "reference", "proxy", "robust"}
    weights = json.loads((tmp_path / "run" / "weights" / "weights.json").read_text())["domain_weights"]
    assert sum(weights.values()) == pytest.approx(1) and set(weights) == {"one", "two", "three"}
