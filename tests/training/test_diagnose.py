"""What is said about learned weights, for a clear case, an open one and none at all."""

import json

import numpy as np
import pytest
import torch
from studies import tiny_study, write_study_data

from tdro.core.groups import group_statistics
from tdro.core.rule import StepLosses
from tdro.data.weights_file import read_diagnostics
from tdro.training.diagnose import diagnose, sentences
from tdro.training.pipeline import run_study
from tdro.training.run import Run
from tdro.training.weight_learner import WeightLearner, make_rule


def test_diagnostics_are_in_the_weights_file_and_describe_the_weights(finished):
    run, _ = finished
    content = json.loads((run.folder / "weights" / "weights.json").read_text())
    weights, diagnostics = content["last"], content["diagnostics"]
    assert 1 <= diagnostics["effective_datasets"] <= 3 and diagnostics["duality_gap"] >= 0
    for name, dataset in diagnostics["datasets"].items():
        low, high = dataset["interval"]
        assert 0 < low <= high < 1 and dataset["verdict"] in ("keep", "drop", "undecided")
        assert low - 0.1 < weights[name] < high + 0.1
    assert any(sentence.endswith("equal ones of 3.") for sentence in sentences(diagnostics))


def test_diagnostics_know_a_clear_case_from_an_open_one(finished):
    run, _ = finished
    names, random = ["bad", "good", "also good"], np.random.default_rng(0)
    learner = WeightLearner(names, run.study.weights, make_rule(run.study.weights, dict.fromkeys(names, 9), 9))
    fresh, events = (
        WeightLearner(names, run.study.weights, make_rule(run.study.weights, dict.fromkeys(names, 9), 9)),
        [],
    )
    for step in range(6):
        proxy = torch.from_numpy(np.concatenate([random.gamma(9, 1, 50), random.gamma(9, 0.1, 100)]))
        group = torch.arange(3).repeat_interleave(50)
        statistics = group_statistics(proxy, torch.ones(150), group, 3)
        signal = learner.update(step, StepLosses(statistics, proxy.numpy(), np.ones(150), group.numpy()))
        events.append({
            "step": step, "signal": signal.tolist(), "weights": learner.weights.weights_G.tolist(),
            "statistics": statistics.sums_GC.tolist(), "misranked": [30, 0, 0],
        })  # fmt: skip
    weights = dict(zip(names, learner.weights.weights_G.tolist(), strict=True))
    study = with_options(run.study, robust={"plan": "top-share"})  # top 70 % of three: two are kept
    found = diagnose(study, dict.fromkeys(names, 5), events, fresh, weights, {})
    assert found["datasets"]["bad"]["verdict"] == "keep"
    assert found["datasets"]["bad"]["log_loss_ratio"] == pytest.approx(np.log(9), abs=0.2)
    assert found["still_moving"]
    assert found["datasets"]["bad"]["misranked_share"] == 0.6 and found["datasets"]["good"]["misranked_share"] == 0
    told = (
        f"bad (60%, {3 * weights['bad']:.2g} x an even weight). The measures raw and excess give such datasets weight."
    )
    assert any("SUSPECTS" in sentence and told in sentence for sentence in sentences(found))
    assert found["datasets"]["bad"]["confidence"] == 1 and 0.5 <= found["datasets"]["good"]["confidence"] < 0.95
    assert any("more than four times" in sentence for sentence in sentences(found))  # 24 queries of 5 rows each
    assert any(sentence.startswith("At the plan's cut, 1 dataset is kept") for sentence in sentences(found))
    whole = diagnose(run.study, dict.fromkeys(names, 5), events, fresh, weights, {})  # robust.plan: reweight
    assert any(sentence.startswith("The plan keeps all datasets; cut at 2 of 3, 1") for sentence in sentences(whole))


def test_a_plan_of_the_smallest_weights_keeps_them_and_drops_the_largest(finished):
    run, _ = finished
    names, study = ["high", "middle", "low"], with_options(run.study, robust={"plan": "bottom-share", "share": 0.7})
    found = diagnose(study, dict.fromkeys(names, 100), *steady_steps(study, names, [0.6, 0.3, 0.1]), {})
    assert {name: dataset["verdict"] for name, dataset in found["datasets"].items()} == {
        "high": "drop", "middle": "keep", "low": "keep",
    }  # fmt: skip
    kept = {name for name, dataset in found["datasets"].items() if dataset["planned_probability"]}
    assert kept == {"middle", "low"}
    assert any(said.startswith("At the plan's cut, 2 datasets are kept and 1 dropped") for said in sentences(found))


@pytest.mark.parametrize("version", ["last", "mean", "ema"])
def test_intervals_are_of_the_weights_that_are_handed_on(finished, version):
    run, _ = finished
    names, study = ["high", "middle", "low"], with_options(run.study, weights={"export": version})
    found = diagnose(study, dict.fromkeys(names, 100), *steady_steps(study, names, [0.6, 0.3, 0.1]), {})
    for dataset in found["datasets"].values():  # the steps are alike, so that their order does not matter
        assert dataset["interval"] == pytest.approx([dataset["weight"]] * 2, rel=1e-9)
        assert dataset["intervals"][version] == dataset["interval"] and len(dataset["intervals"]) == 3
    assert found["of"]["export"] == version


def test_every_version_of_the_weights_has_an_interval_and_averages_move_less(finished):
    run, _ = finished
    names, study, random = (
        ["a", "b", "c"],
        with_options(run.study, weights={"step_size": 0.5}),
        np.random.default_rng(0),
    )
    events, fresh, _ = steady_steps(study, names, [1.0, 1.0, 1.0])
    for event in events:  # noise alone: only the order of the steps moves the weights
        event["signal"] = random.normal(size=3).tolist()
    found = diagnose(study, dict.fromkeys(names, 100), events, fresh, dict.fromkeys(names, 1 / 3), {})
    for dataset in found["datasets"].values():
        (low, high), (mean_low, mean_high) = (dataset["intervals"][version] for version in ("last", "mean"))
        assert high - low > 0 and mean_high - mean_low < high - low
        assert dataset["intervals"]["ema"] != dataset["intervals"]["last"]


@pytest.mark.parametrize(("steps", "warmup", "told"), [(49, 0, False), (50, 0, True), (50, 50, False), (51, 50, True)])
def test_nothing_is_said_of_settling_after_too_few_steps(finished, steps, warmup, told):
    run, _ = finished
    study = with_options(run.study, weights={"warmup_steps": warmup, "steps": steps})
    found = diagnose(study, dict.fromkeys("abc", 100), *steady_steps(study, list("abc"), [1.0] * 3, steps), {})
    said = " ".join(sentences(found))
    assert ("They have settled" in said) == told
    assert (f"Whether they settle cannot be told from {steps} steps." in said) == (not told)


def with_options(study, **sections):
    """A study with some options changed."""
    return study.model_copy(
        update={name: getattr(study, name).model_copy(update=options) for name, options in sections.items()}
    )


def steady_steps(study, names, signal, steps=10):
    """Steps with one signal: events, a fresh learner, and the weights that are handed on."""
    learners = [WeightLearner(names, study.weights, make_rule(study.weights, dict.fromkeys(names, 9), 9)) for _ in "12"]
    sums, everywhere, events = [[4.0, 8.0, 4.0, 17.0, 4.5, 8.2, 0.0]] * 3, np.ones(3, bool), []
    for step in range(steps):
        learners[0].weights = learners[0].moved(learners[0].weights, np.array(signal), step, everywhere)
        events.append({
            "step": step, "signal": signal, "weights": learners[0].weights.weights_G.tolist(), "statistics": sums,
            "misranked": [0, 0, 0],
        })  # fmt: skip
    state = learners[0].weights
    exported_G = {"last": state.weights_G, "mean": state.mean_G, "ema": state.ema_G}[study.weights.export]
    return events, learners[1], dict(zip(names, exported_G.tolist(), strict=True))


def test_losses_that_are_all_zero_are_called_nothing_to_learn_from(tmp_path):
    study = tiny_study(tmp_path, "static", weights={"temperature": 1e-7, "steps": 2})
    write_study_data(tmp_path / "root", negatives=0)
    for name in ("one", "two", "three"):  # the query is its own positive: no negative can come close
        path = tmp_path / "root" / "train" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["positive_passages"] = [{"docid": row["query_id"], "text": row["query"]}]
            row["negative_passages"] = [{"docid": "n", "text": "iron rust"}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_study(Run(study), "weights")
    diagnostics = read_diagnostics(study.run_folder / "weights" / "weights.json")
    assert diagnostics["without_loss"] == ["one", "two", "three"]
    assert "nothing to learn from" in sentences(diagnostics)[0]
    assert {dataset["verdict"] for dataset in diagnostics["datasets"].values()} == {"undecided"}


def test_a_changed_share_moves_the_cut_without_training_again(tmp_path):
    study = tiny_study(tmp_path, "static", evaluation={"tasks": {}})
    run_study(Run(study), "weights")
    before = json.loads((study.run_folder / "weights" / "weights.json").read_text())
    assert before["diagnostics"]["cut"] == 2
    events = []
    narrower = study.model_copy(update={"robust": study.robust.model_copy(update={"share": 0.4})})
    run_study(Run(narrower, events.append), "weights")
    after = json.loads((study.run_folder / "weights" / "weights.json").read_text())
    assert not [event for event in events if event["event"] == "step"]
    assert after["diagnostics"]["cut"] == 1 and after["last"] == before["last"]
    intervals = [{n: d["interval"] for n, d in found["diagnostics"]["datasets"].items()} for found in (before, after)]
    assert intervals[0] == intervals[1]
    assert sum(d["verdict"] == "keep" for d in after["diagnostics"]["datasets"].values()) <= 1


def test_a_share_that_the_plan_ignores_may_be_small(tmp_path):
    study = tiny_study(tmp_path, "static", evaluation={"tasks": {}}, robust={"plan": "reweight", "share": 0.1})
    run_study(Run(study))
    assert read_diagnostics(study.run_folder / "weights" / "weights.json")["cut"] == 1
