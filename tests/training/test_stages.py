"""What the stages leave behind, and that every option is read."""

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer
from studies import tiny_study, write_study_data

from tdro.config import Section, Study, options
from tdro.data.reading import read_dataset
from tdro.data.weights_file import read_weights
from tdro.errors import ConfigError, DataError, TdroError
from tdro.prepare.card import card_of
from tdro.prepare.check import check
from tdro.training.pipeline import evaluate_only, planned, run_study
from tdro.training.planning import plan_csv, plan_of
from tdro.training.run import Run
from tdro.training.stages import influential


def test_run_folder_holds_what_the_design_says(finished):
    run, _ = finished
    for path in (
        "resolved.yaml", "status.json", "events.jsonl", "data/plan.csv", "reference/model/modules.json",
        "proxy/model/modules.json", "robust/model/modules.json", "weights/weights.json", "weights/trajectory.parquet",
        "weights/statistics.parquet", "evaluation/summary.json", "evaluation/robust/words/scores.parquet",
        "evaluation/robust/words/run.trec.gz",
    ):  # fmt: skip
        assert (run.folder / path).is_file(), path


def test_saved_models_load_with_plain_sentence_transformers(finished):
    run, _ = finished
    vectors = SentenceTransformer(str(run.folder / "robust" / "model")).encode(["bee hive", "river sand"])
    assert vectors.shape[0] == 2 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_trajectory_ends_at_the_weights_and_statistics_count_every_query(finished):
    run, _ = finished
    trajectory = pq.read_table(run.folder / "weights" / "trajectory.parquet").to_pylist()
    last = {row["dataset"]: row["weight"] for row in trajectory if row["step"] == 5}
    assert last == pytest.approx(read_weights(run.folder / "weights" / "weights.json"), abs=1e-15)
    counts = pq.read_table(run.folder / "weights" / "statistics.parquet")["n"].to_numpy()
    assert counts.sum() == 6 * 8


def test_plan_samples_by_weight_or_keeps_the_heaviest_datasets(finished):
    run, _ = finished
    top = run.study.model_copy(update={"robust": run.study.robust.model_copy(update={"plan": "top-share"})})
    for study, expected in ((run.study, None), (top, [0.5, 0.5, 0.0])):  # floor(0.7 * 3) = 2
        weights = read_weights(run.folder / "weights" / "weights.json")
        sizes = {"one": 24, "two": 40, "three": 60}
        plan = plan_of(study, weights, sizes)
        table = list(csv.DictReader(plan_csv(plan, weights, sizes, study.reference).splitlines()))
        shown = [float(row["weight"]) for row in table]
        assert shown == sorted(shown, reverse=True) and len(set(shown)) == 3
        assert [float(row["probability"]) for row in table] == pytest.approx(expected or shown)
        epochs = float(table[0]["probability"]) * 6 * 8 / int(table[0]["size"])
        assert float(table[0]["expected_epochs"]) == pytest.approx(epochs)
        if study is run.study:
            assert (run.folder / "data" / "plan.csv").read_text() == plan_csv(plan, weights, sizes, study.reference)


def test_scores_are_those_of_the_summary(finished):
    run, scores = finished
    assert scores == json.loads((run.folder / "evaluation" / "summary.json").read_text())
    assert set(scores["words"]) == {"base", "reference", "proxy", "robust"}


def test_training_changed_the_models_and_mixtures_made_them_differ(finished):
    run, _ = finished
    texts = ["bee hive river", "sun moon tide"]
    vectors = {
        n: SentenceTransformer(str(run.folder / n / "model")).encode(texts) for n in ("reference", "proxy", "robust")
    }
    assert not np.allclose(vectors["reference"], vectors["robust"]) and not np.allclose(
        vectors["reference"], vectors["proxy"]
    )


def test_every_option_is_read(tmp_path, monkeypatch):
    read: set[tuple[type, str]] = set()
    real = Section.__getattribute__

    def remember(self, name):
        read.add((type(self), name))
        return real(self, name)

    sizes = {"one": 24, "two": 40, "three": 60}
    datasets = {name: {"path": f"train/{name}.jsonl", "size": size} for name, size in sizes.items()}
    mining = {"when": "always", "ranks": [0, 9], "negatives": 4}
    held_out = {"held_out_share": 0.2, "held_out_every": 3}
    watch = {"watch": {"words": "eval/words"}}
    changes = {"mining": mining, "data": {"datasets": datasets}, "weights": held_out, "evaluation": watch}
    study = tiny_study(tmp_path, "static", **changes)
    fixed = study.robust.model_copy(update={"plan": "reweight", "weights": "uniform"})
    monkeypatch.setattr(Section, "__getattribute__", remember)
    run_study(Run(study))
    run_study(Run(study.model_copy(update={"output": str(tmp_path / "fixed"), "robust": fixed})))
    planned(study)
    content = study.model_dump()
    content["data"]["instructions"] = "auto"
    card_of(check(Study.model_validate(content), processes=1))
    assert study.model_copy(update={"output": ""}).run_folder.name == "tiny"
    seen = {(owner.__name__, name) for kind, name in read for owner in kind.__mro__}
    unread = []
    for option in options():
        parts = option.split(".")
        section = Study
        for part in parts[:-1]:
            if part != "*":
                section = _section(section, part)
        if (section.__name__, parts[-1]) not in seen:
            unread.append(option)
    assert unread == []


def _section(owner: type[Section], field: str) -> type[Section]:
    """The section behind a field, also behind a mapping of names."""
    from tdro.config import section_of

    inner, _ = section_of(owner.model_fields[field].annotation)
    assert inner is not None
    return inner


def test_options_that_shape_training_change_the_result(tmp_path):
    # One changed option each; the loss of the last step must move.
    def last_loss(name: str, stage: str, **changes) -> float:
        study = tiny_study(tmp_path, "static", evaluation={"tasks": {}}, **changes)
        run = Run(study.model_copy(update={"output": str(tmp_path / name)}))
        run_study(run, "reference" if stage == "reference" else "weights")
        return list(run.journal.read("step", stage))[-1]["loss"]

    base = last_loss("base", "reference")
    changes = {
        "batch_size": 9, "passages_per_query": 3, "temperature": 0.1, "learning_rate": 0.03, "warmup_steps": 4,
        "schedule": "linear", "final_learning_rate_share": 0.9, "max_grad_norm": 1e-3, "weight_decay": 50.0,
    }  # fmt: skip
    for number, change in enumerate({option: value} for option, value in changes.items()):
        assert last_loss(f"reference-{number}", "reference", reference=change) != base, change
    base = last_loss("base-weights", "weights")
    for number, change in enumerate(
        (
            {"passages_per_query": 3},
            {"step_size": 2.0},
            {"clip_norm": 0.01},
            {"measure": "relative"},
            {"sampling": "stratified"},
        )
    ):
        assert last_loss(f"weights-{number}", "weights", weights=change) != base, change


def test_mining_fills_datasets_that_lack_negatives_and_leaves_the_others(tmp_path):
    study = tiny_study(tmp_path, "static", mining={"ranks": [0, 9], "negatives": 4})
    write_study_data(tmp_path / "root", negatives=0, rows=(24, 40, 60))
    three = tmp_path / "root" / "train" / "three.jsonl"
    rows = [json.loads(line) for line in three.read_text().splitlines()]
    rows[5]["negative_passages"] = [{"docid": "own", "text": "its own negative"}]
    three.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run(study)
    run_study(run, "mine")
    mined = read_dataset("three", run.folder / "data" / "negatives" / "three.jsonl", cache=tmp_path / "cache")
    assert [p.text for p in mined[5].negatives] == ["its own negative"]
    assert all(len(row.negatives) == 4 for i, row in enumerate(mined) if i != 5)
    report = json.loads((run.folder / "data" / "negatives" / "three.json").read_text())
    assert (report["rows"], report["kept"], report["mined"]) == (60, 1, 59)
    before = (run.folder / "data" / "negatives" / "three.jsonl").stat().st_mtime_ns
    run_study(Run(study), "mine")
    assert (run.folder / "data" / "negatives" / "three.jsonl").stat().st_mtime_ns == before


def test_weights_stage_refuses_rows_without_negatives(tmp_path):
    study = tiny_study(tmp_path, "static", mining={"when": "never"})
    write_study_data(tmp_path / "root", negatives=0)
    with pytest.raises(DataError, match="rows without negatives"):
        run_study(Run(study), "weights")
    assert not (study.run_folder / "reference").exists()


def test_order_of_the_datasets_is_part_of_what_a_stage_was_made_from(tmp_path):
    study = tiny_study(tmp_path, "static", evaluation={"tasks": {}})
    run_study(Run(study), "weights")
    turned = study.data.model_copy(update={"datasets": dict(reversed(study.data.datasets.items()))})
    events = []
    run_study(Run(study.model_copy(update={"data": turned}), events.append), "weights")
    assert {event["stage"] for event in events if event["event"] == "stage_finished"} == {"reference", "weights"}


def test_the_temperature_of_a_teacher_counts_only_where_there_is_one(tmp_path):
    def inputs(**settings):
        return influential(tiny_study(tmp_path, reference=settings).reference)

    assert inputs(teacher_temperature=2.0) == inputs()
    assert inputs(teacher_temperature=2.0, distillation=0.5) != inputs(distillation=0.5)


def test_a_stage_whose_output_is_gone_is_done_again(tmp_path):
    study = tiny_study(tmp_path, "static", evaluation={"tasks": {}})
    run_study(Run(study), "reference")
    shutil.rmtree(study.run_folder / "reference" / "model")
    run_study(Run(study), "reference")
    assert (study.run_folder / "reference" / "model" / "modules.json").exists()


def test_a_copied_or_touched_base_is_the_same_base(tmp_path):
    study = tiny_study(tmp_path, "static", evaluation={"tasks": {}})
    run_study(Run(study), "reference")
    for path in (tmp_path / "root" / "model").rglob("*"):
        path.touch()
    events = []
    run_study(Run(study, events.append), "reference")
    assert "stage_skipped" in {event["event"] for event in events}


def test_checkpoints_left_by_a_kill_after_the_end_do_not_block_a_changed_study(tmp_path):
    study = tiny_study(tmp_path, "static", evaluation={"tasks": {}})
    run_study(Run(study), "reference")
    left = study.run_folder / "reference" / "checkpoints" / "step-00000004"
    left.mkdir(parents=True)
    (left / "state.json").write_text('{"format": 1, "fingerprint": "of the finished stage"}')
    changed = tiny_study(tmp_path, "static", evaluation={"tasks": {}}, reference={"steps": 3})
    run_study(Run(changed), "reference")
    assert json.loads((study.run_folder / "reference" / "done.json").read_text())["fingerprint"]


def test_fixed_weights_without_evaluation_train_the_robust_model_only(tmp_path):
    study = tiny_study(tmp_path, "static", robust={"weights": "uniform"}, evaluation={"tasks": {}})
    run_study(Run(study))
    assert {path.name for path in study.run_folder.iterdir() if path.is_dir()} == {"data", "robust"}
    with (study.run_folder / "data" / "plan.csv").open() as file:
        assert {row["probability"] for row in csv.DictReader(file)} == {str(1 / 3)}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("uniform", {"one": 1 / 3, "two": 1 / 3, "three": 1 / 3}),
        ("size", {"one": 24 / 124, "two": 40 / 124, "three": 60 / 124}),
        ("temperature-2", {"one": 24**0.5, "two": 40**0.5, "three": 60**0.5}),
    ],
)
def test_fixed_mixtures_follow_from_the_sizes_whatever_the_plan(tmp_path, weights, expected):
    table = planned(tiny_study(tmp_path, "static", robust={"weights": weights}))
    for name, row in table.items():
        assert row["robust_probability"] == pytest.approx(expected[name] / sum(expected.values()))


def test_bottom_share_takes_the_other_end_and_loss_reweighting_samples_uniformly(tmp_path):
    (tmp_path / "w.json").write_text('{"one": 0.2, "two": 0.5, "three": 0.3}')
    tables = {
        plan: planned(tiny_study(tmp_path, "static", robust={"weights": str(tmp_path / "w.json"), "plan": plan}))
        for plan in ("top-share", "bottom-share", "reweight", "reweight-loss")
    }
    drawn = {
        plan: {n: round(row["robust_probability"], 6) for n, row in table.items()} for plan, table in tables.items()
    }
    assert drawn["top-share"] == {"one": 0, "two": 0.5, "three": 0.5}
    assert drawn["bottom-share"] == {"one": 0.5, "two": 0, "three": 0.5}
    assert drawn["reweight"] == {"one": 0.2, "two": 0.5, "three": 0.3}
    assert drawn["reweight-loss"] == {"one": 0.333333, "two": 0.333333, "three": 0.333333}


def test_loss_reweighting_scales_the_loss_that_is_trained_and_not_the_one_that_is_shown(tmp_path):
    (tmp_path / "w.json").write_text('{"one": 0.2, "two": 0.5, "three": 0.3}')
    robust = {"weights": str(tmp_path / "w.json"), "plan": "reweight-loss"}
    run = Run(tiny_study(tmp_path, "static", robust=robust, evaluation={"tasks": {}}))
    run_study(run)
    for event in run.journal.read("step", "robust"):
        ((name, loss),) = event["losses"].items()
        assert event["loss"] == pytest.approx(loss * 3 * {"one": 0.2, "two": 0.5, "three": 0.3}[name])


def test_fixed_weights_need_no_weights_stage(tmp_path):
    (tmp_path / "w.json").write_text('{"one": 3, "two": 1}')
    study = tiny_study(
        tmp_path, "static", robust={"plan": "reweight", "weights": str(tmp_path / "w.json")},
        evaluation={"tasks": {"words": "eval/words"}, "models": ["robust"]},
    )  # fmt: skip
    run = Run(study)
    scores = run_study(run)
    assert set(scores["words"]) == {"robust"}
    assert not (run.folder / "reference").exists() and not (run.folder / "weights").exists()
    assert [event["text"] for event in run.journal.read("note", "robust")] == ["no weight for three: left out"]
    drawn = {event_name for event in run.journal.read("step", "robust") for event_name in event["losses"]}
    assert drawn == {"one", "two"}


def test_study_is_planned_without_model_and_data_when_sizes_are_named(tmp_path):
    datasets = {"miracl": {"path": "m", "size": 100}, "nq": {"path": "n", "size": 50}}
    study = Study.model_validate({
        "name": "paper", "model": {"base": "no/model"}, "data": {"root": str(tmp_path / "no"), "datasets": datasets},
        "reference": {"steps": 10, "batch_size": 20},
        "robust": {"weights": str(tmp_path / "w.json"), "plan": "top-share", "share": 0.5},
    })  # fmt: skip
    (tmp_path / "w.json").write_text('{"miracl": 3, "nq": 1}')
    table = planned(study)
    assert table["miracl"]["reference_epochs"] == 10 * 20 / 2 / 100
    assert table["miracl"]["robust_epochs"] == 10 * 20 / 100 and table["nq"]["robust_probability"] == 0


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"data": {"datasets": {"one": "train/none.jsonl", "two": "train/two.jsonl"}}}, DataError, "none.jsonl"),
        ({"model": {"base": "{root}/nothing/here"}}, ConfigError, "model"),
        ({"robust": {"weights": "unknown-preset"}}, ConfigError, "weights cannot be read"),
        ({"robust": {"weights": "temperature-0"}}, ConfigError, "weights cannot be read"),
        ({"robust": {"weights": "paper-2408.10613"}}, ConfigError, "unknown dataset"),
        ({"robust": {"plan": "top-share", "share": 0.1}}, ConfigError, "keeps 0 of 3"),
        ({"evaluation": {"tasks": {"words": "eval/none"}}}, DataError, "evaluation set"),
        ({"evaluation": {"tasks": {"words": {"path": "eval/words", "split": "dev"}}}}, DataError, "qrels"),
        ({"data": {"passage_max_length": 4096}}, ConfigError, "positions"),
        ({"weights": {"floor": 0.5}}, ConfigError, "no weights keep"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(tmp_path, change, error, what):
    with pytest.raises(error, match=what):
        run_study(Run(tiny_study(tmp_path, **change)))
    assert not list((tmp_path / "run").rglob("*.safetensors")) and not list((tmp_path / "run").rglob("*.tmp"))


def test_nan_loss_stops_the_stage_and_leaves_the_checkpoint(tmp_path):
    study = tiny_study(
        tmp_path, "static", reference={"learning_rate": 1e30, "steps": 12, "checkpoint_every": 1, "warmup_steps": 0}
    )
    with pytest.raises(TdroError, match="not finite") as error:
        run_study(Run(study))
    assert "reference, step" in str(error.value)
    assert not (study.run_folder / "reference" / "done.json").exists()


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_a_study_runs_in_every_precision_with_losses_in_float32_or_better(tmp_path, precision):
    scores = {}
    for name in ("float32", precision):
        study = tiny_study(
            tmp_path, "bert", model={"precision": name}, evaluation={"tasks": {}}, reference={"steps": 2}
        )
        run = Run(study.model_copy(update={"output": str(tmp_path / name)}))
        run_study(run, "reference")
        scores[name] = [event["loss"] for event in run.journal.read("step", "reference")]
    assert scores[precision] == pytest.approx(scores["float32"], rel=0.2) and scores[precision] != scores["float32"]


def test_evaluating_models_that_are_not_there_is_refused(tmp_path):
    with pytest.raises(TdroError, match="not there yet"):
        evaluate_only(Run(tiny_study(tmp_path, "static")))
