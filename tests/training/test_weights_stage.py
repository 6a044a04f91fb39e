"""Held-out rows, further seeds, losses that are not finite: what stage 1 does beside learning."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from studies import tiny_study, write_study_data
from test_robust_step import make_step

from tdro.config import Study
from tdro.data.held_out import split_rows
from tdro.data.reading import read_dataset
from tdro.data.weights_file import read_diagnostics, read_weights
from tdro.errors import ConfigError, TdroError
from tdro.training import robust_step
from tdro.training.diagnose import sentences
from tdro.training.pipeline import run_study
from tdro.training.replay import replay_run
from tdro.training.run import Run


def rows_of(folder, rows: tuple[int, ...] = (24, 40, 1000)):
    """Datasets of these sizes."""
    write_study_data(folder / "root", rows=rows)
    names = ("one", "two", "three")
    return {n: read_dataset(n, folder / "root" / "train" / f"{n}.jsonl", cache=folder / "cache") for n in names}


def test_split_holds_out_a_share_at_least_200_rows_and_at_most_half(tmp_path):
    rows = rows_of(tmp_path)
    training, held_out = split_rows(rows, 0.3, 42)
    assert {name: len(r) for name, r in held_out.items()} == {"one": 12, "two": 20, "three": 300}
    assert len(split_rows(rows, 0.01, 42)[1]["three"]) == 200
    for name in rows:
        both = np.concatenate([training[name].numbers_n, held_out[name].numbers_n])
        assert sorted(both) == list(range(len(rows[name])))
        assert training[name][0].query == rows[name][int(training[name].numbers_n[0])].query
        assert len({training[name].info.fingerprint, held_out[name].info.fingerprint, rows[name].info.fingerprint}) == 3


def test_split_depends_on_seed_and_name_and_keeps_equal_queries_together(tmp_path):
    rows = rows_of(tmp_path)
    held_out = split_rows(rows, 0.2, 42)[1]
    assert (held_out["three"].numbers_n == split_rows(rows, 0.2, 42)[1]["three"].numbers_n).all()
    assert not np.array_equal(held_out["three"].numbers_n, split_rows(rows, 0.2, 43)[1]["three"].numbers_n)
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"query": f"q{i % 6}", "pos": ["p"], "neg": ["n"]}) + "\n" for i in range(60)))
    twice = {"twice": read_dataset("twice", path, cache=tmp_path / "cache")}
    training, held = split_rows(twice, 0.4, 1)
    assert not set(training["twice"].queries_n) & set(held["twice"].queries_n) and len(held["twice"]) in (20, 30)
    path.write_text(json.dumps({"query": "q", "pos": ["p"], "neg": ["n"]}) + "\n")
    with pytest.raises(ConfigError, match="nothing to hold out"):
        split_rows({"alone": read_dataset("alone", path, cache=tmp_path / "cache")}, 0.4, 1)


HELD_OUT = {"held_out_share": 0.25, "held_out_every": 2, "keep_losses": True}


def test_held_out_rows_are_measured_on_and_never_trained_on(tmp_path):
    run = Run(tiny_study(tmp_path, "static", weights=HELD_OUT))
    run_study(run, "weights")
    table = pq.read_table(run.folder / "weights" / "held_out.parquet").to_pandas()
    assert sorted(set(table["step"])) == [0, 2, 4] and table["n"].sum() == 3 * 8
    epochs = json.loads((run.folder / "reference" / "done.json").read_text())["epochs"]
    assert epochs["three"] == pytest.approx(2 * 8 / 30, abs=1e-3)  # of 60 rows 30 are held out: 200 are half at most
    for name, dataset in read_diagnostics(run.folder / "weights" / "weights.json")["datasets"].items():
        assert dataset["memorisation"] == pytest.approx(
            dataset_ratio(run, "statistics", name) - dataset["held_out_log_loss_ratio"]
        )
    said = sentences(read_diagnostics(run.folder / "weights" / "weights.json"))
    assert any(sentence.startswith("Memorisation") for sentence in said)


def dataset_ratio(run: Run, table: str, name: str) -> float:
    """Log of the ratio of losses of a dataset over the steps from 4 on."""
    found = pq.read_table(run.folder / "weights" / f"{table}.parquet").to_pandas()
    late = found[(found["dataset"] == name) & (found["step"] >= 4)]
    return float(np.log(late["sum_l"].sum() / late["sum_r"].sum()))


@pytest.mark.parametrize("measure", ["relative", "relative-sample"])
def test_held_out_losses_move_the_weights_where_asked_and_replay_alike(tmp_path, measure):
    change = {**HELD_OUT, "signal": "held-out", "measure": measure}
    run = Run(tiny_study(tmp_path, "static", weights=change))
    run_study(run, "weights")
    weights = read_weights(run.folder / "weights" / "weights.json")
    assert replay_run(run.folder, run.study.weights, 48).exported() == pytest.approx(weights, rel=1e-12)
    moved = (
        pq.read_table(run.folder / "weights" / "trajectory.parquet").to_pandas().pivot(index="step", columns="dataset")
    )
    assert moved["signal"].isna().all(axis=1).tolist() == [False, True, False, True, False, True]
    assert (moved["weight"].loc[0] == moved["weight"].loc[1]).all() and (
        moved["weight"].loc[1] != moved["weight"].loc[2]
    ).any()
    other = replay_run(run.folder, run.study.weights.model_copy(update={"signal": "training"}), 48).exported()
    assert other != pytest.approx(weights, rel=1e-6)


def test_reference_losses_are_counted_over_all_steps_without_being_kept(tmp_path):
    kept = Run(tiny_study(tmp_path, "static", weights={"keep_losses": True}))
    run_study(kept, "weights")
    losses = pq.read_table(kept.folder / "weights" / "losses.parquet").to_pandas()
    counts = pq.read_table(kept.folder / "weights" / "histogram.parquet").to_pandas()
    assert counts["queries"].sum() == len(losses) == 6 * 8
    for name in ("one", "two", "three"):
        mine, of = counts[counts["dataset"] == name], losses[losses["dataset"] == name]["reference_loss"]
        ends = [*mine["low"].iloc[1:], np.inf]
        expected = [((of >= low) & (of < high)).sum() for low, high in zip(mine["low"], ends, strict=True)]
        assert mine["queries"].tolist() == expected
    run_study(Run(tiny_study(tmp_path, "static")), "weights")  # the same folder, and the losses are kept no more
    assert not (kept.folder / "weights" / "losses.parquet").exists()
    assert pq.read_table(kept.folder / "weights" / "histogram.parquet").to_pandas().equals(counts)


def test_steps_that_were_not_counted_give_no_histogram(tmp_path, monkeypatch):
    run = Run(tiny_study(tmp_path, "static"))
    real = run.journal.read

    def read(event, stage):
        for record in real(event, stage):
            if record.get("step") == 0:
                record.pop("reference_histogram")  # as a step of an earlier version
            yield record

    monkeypatch.setattr(run.journal, "read", read)
    run_study(run, "weights")
    assert (run.folder / "weights" / "statistics.parquet").exists()
    assert not (run.folder / "weights" / "histogram.parquet").exists()


def test_other_weights_are_handed_on_without_learning_again(tmp_path):
    study = tiny_study(tmp_path, "static", evaluation={"tasks": {}}, robust={"plan": "reweight"})
    run_study(Run(study))
    path, events = study.run_folder / "weights" / "weights.json", []
    before = json.loads(path.read_text())
    assert before["domain_weights"] == before["last"] != before["mean"]
    mean = study.model_copy(update={"weights": study.weights.model_copy(update={"export": "mean"})})
    run_study(Run(mean, events.append))
    assert {event["stage"] for event in events if event["event"] == "step"} == {"robust"}  # the plan is another
    after = json.loads(path.read_text())
    assert after["domain_weights"] == read_weights(path) == before["mean"]
    assert {v: after[v] for v in ("last", "mean", "ema", "size")} == {
        v: before[v] for v in ("last", "mean", "ema", "size")
    }
    for name, dataset in after["diagnostics"]["datasets"].items():
        assert dataset["weight"] == before["mean"][name]
        assert dataset["interval"] == dataset["intervals"]["mean"]
        assert dataset["intervals"] == before["diagnostics"]["datasets"][name]["intervals"]
    assert set(after) == set(before)


def test_held_out_signal_needs_held_out_rows():
    with pytest.raises(ValueError, match="held_out_share"):
        Study.model_validate(
            {"name": "x", "data": {"datasets": {"a": "a"}}, "model": {"base": "b"}, "weights": {"signal": "held-out"}}
        )


def test_seeds_are_compared_and_the_first_gives_the_weights(tmp_path):
    one = Run(tiny_study(tmp_path, "static"))
    run_study(one, "weights")
    study = tiny_study(tmp_path, "static", weights={"seeds": 3, "seed_steps": 4})
    run = Run(study.model_copy(update={"output": str(tmp_path / "three")}))
    run_study(run, "weights")
    path = run.folder / "weights" / "weights.json"
    assert read_weights(path) == read_weights(one.folder / "weights" / "weights.json")
    seeds = read_diagnostics(path)["seeds"]
    assert set(seeds["weights"]) == {"42", "43", "44"} and -1 <= seeds["rank_agreement"] <= 1
    trajectory = pq.read_table(run.folder / "weights" / "trajectory.parquet").to_pandas()
    at_four = trajectory[trajectory["step"] == 3].set_index("dataset")["weight"].to_dict()
    assert seeds["weights"]["42"] == at_four and seeds["weights"]["43"] != seeds["weights"]["44"]
    assert any("3 seeds" in sentence for sentence in sentences(read_diagnostics(path)))


def test_seeds_may_be_added_later_without_training_the_first_again(tmp_path):
    study = tiny_study(tmp_path, "static")
    run_study(Run(study), "weights")
    assert read_diagnostics(study.run_folder / "weights" / "weights.json")["seeds"] is None
    events = []
    more = study.model_copy(update={"weights": study.weights.model_copy(update={"seeds": 2})})
    run_study(Run(more, events.append), "weights")
    assert {event["stage"] for event in events if event["event"] == "step"} == {"weights/seed-43"}
    assert set(read_diagnostics(study.run_folder / "weights" / "weights.json")["seeds"]["weights"]) == {"42", "43"}


def poison(monkeypatch, poisoned: dict[str, set[int]]) -> None:
    """Make the proxy's similarities and gradients of the queries `poisoned["now"]` NaN."""
    real = robust_step.similarities

    def similarities(model, texts, query_m, device, max_tokens, passes=0):
        found = real(model, texts, query_m, device, max_tokens, passes)
        bad = torch.tensor([int(q) in poisoned["now"] for q in query_m])
        return found * torch.where(bad, torch.nan, 1.0)[:, None]

    monkeypatch.setattr(robust_step, "similarities", similarities)


def test_a_query_whose_loss_is_not_finite_is_left_out_as_if_it_had_not_been_drawn(tmp_path, monkeypatch):
    poisoned = {"now": {2}}
    step, proxy, *_ = make_step(tmp_path)
    good_B = torch.tensor([q != 2 for q in range(8)])
    draw = step._batches.mixture.draw(0)
    texts = step._batches.source.texts(draw, 4)
    step._descend(texts, torch.from_numpy(draw.dataset_B), good_B, 0)
    expected = [p.grad.clone() for p in proxy.parameters() if p.grad is not None]
    proxy.zero_grad(set_to_none=True)
    poison(monkeypatch, poisoned)
    numbers = step.backward(0, 0)
    found = [p.grad for p in proxy.parameters() if p.grad is not None]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    bad_G = np.array(numbers["statistics"])[:, 6]
    assert bad_G.sum() == 1 and bad_G[draw.dataset_B[2]] == 1 and np.isfinite(numbers["loss"])
    assert np.isfinite(step.learner.weights.weights_G).all()


def test_a_dataset_that_loses_too_many_is_refused_by_name(tmp_path, monkeypatch):
    poisoned = {"now": {0}}
    poison(monkeypatch, poisoned)
    step, *_ = make_step(tmp_path, max_bad_share=0.01)
    step.backward(0, 0)
    for later in range(1, 20):
        draw = step._batches.mixture.draw(later)
        if draw.dataset_B[0] == step._batches.mixture.draw(0).dataset_B[0]:
            break
        poisoned["now"] = set()
        step.backward(later, 0)
    poisoned["now"] = {0}
    name = ("one", "two", "three")[draw.dataset_B[0]]
    with pytest.raises(TdroError, match=f"{name}.*2 of"):
        step.backward(later, 0)


def test_a_lenient_share_goes_on_and_the_drops_are_told(tmp_path, monkeypatch):
    poison(monkeypatch, {"now": {0}})
    run = Run(tiny_study(tmp_path, "static", weights={"max_bad_share": 0.9}))
    run_study(run, "weights")
    diagnostics = read_diagnostics(run.folder / "weights" / "weights.json")
    assert sum(dataset["dropped_losses"] for dataset in diagnostics["datasets"].values()) == 6
    assert any("not finite were dropped" in sentence for sentence in sentences(diagnostics))


def test_plan_of_the_weights_is_in_the_diagnostics_with_its_epochs(tmp_path):
    robust, weights = {"plan": "reweight", "max_epochs": 0.6}, {"measure": "relative"}
    study = tiny_study(tmp_path, "static", robust=robust, weights=weights, evaluation={"tasks": {}})
    run_study(Run(study))
    datasets = read_diagnostics(study.run_folder / "weights" / "weights.json")["datasets"]
    assert sum(d["planned_probability"] for d in datasets.values()) == pytest.approx(1)
    assert max(d["planned_epochs"] for d in datasets.values()) <= 0.6 + 1e-9
    assert datasets["one"]["planned_probability"] == pytest.approx(0.6 * 24 / 48)
    with pytest.raises(ConfigError, match=r"48 queries need more than 0\.2 epochs"):
        run_study(Run(tiny_study(tmp_path, "static", robust={"max_epochs": 0.2})))
    with pytest.raises(ConfigError, match=r"robust\.cap"):
        run_study(Run(tiny_study(tmp_path, "static", robust={"plan": "top-share", "cap": 0.4})))
