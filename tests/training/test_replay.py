"""Weights from records equal the weights of the run that recorded them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from studies import tiny_study

from tdro.cli.main import main
from tdro.config import WeightsConfig
from tdro.data.weights_file import read_weights
from tdro.errors import ConfigError, DataError
from tdro.training.pipeline import run_study
from tdro.training.replay import learn_weights, replay_losses, replay_run
from tdro.training.run import Run

EXAMPLES = 6 * 8


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run that kept its losses."""
    settings = {"keep_losses": True, "measure": "relative"}
    run = Run(tiny_study(tmp_path_factory.mktemp("recorded"), weights=settings))
    run_study(run, "weights")
    return run


def test_replay_with_the_runs_own_settings_gives_its_weights_bit_for_bit(recorded):
    replayed = replay_run(recorded.folder, recorded.study.weights, EXAMPLES)
    assert replayed.exported("last") == read_weights(recorded.folder / "weights" / "weights.json")
    assert replayed.steps == 6


def test_losses_and_statistics_give_the_same_weights(recorded):
    config = recorded.study.weights
    from_losses = replay_losses(recorded.folder / "weights" / "losses.parquet", config).exported("last")
    assert from_losses == pytest.approx(replay_run(recorded.folder, config, EXAMPLES).exported("last"), rel=1e-12)


@pytest.mark.parametrize("change", [{"measure": "relative-sample"}, {"measure": "excess", "update": "anchored"}])
def test_replay_of_a_changed_rule_equals_a_run_whose_proxy_was_trained_alike(recorded, tmp_path, change):
    # With step size 0 the proxy never sees other weights, so its losses are those that a replay assumes.
    frozen = recorded.study.weights.model_copy(update={"step_size": 0.0})
    run = Run(recorded.study.model_copy(update={"weights": frozen, "output": str(tmp_path / "frozen")}))
    run_study(run, "weights")
    config = frozen.model_copy(update={**change, "step_size": 1e-9})
    nearly = Run(recorded.study.model_copy(update={"weights": config, "output": str(tmp_path / "nearly")}))
    run_study(nearly, "weights")
    replayed = replay_run(run.folder, config, EXAMPLES).exported("last")
    expected = read_weights(nearly.folder / "weights" / "weights.json")
    moved = {name: (weight - 1 / 3) * 1e9 for name, weight in expected.items()}
    assert max(map(abs, moved.values())) > 1e-3
    assert {n: (w - 1 / 3) * 1e9 for n, w in replayed.items()} == pytest.approx(moved, abs=1e-4)


@pytest.mark.parametrize(
    ("measure", "change"),
    [
        ("relative", {"measure": "relative-sample"}),
        ("relative-sample", {"measure": "excess-sample"}),
        ("relative-sample", {"reference_norm": 2}),
    ],
)
def test_a_measure_of_examples_that_is_not_the_runs_own_needs_the_losses(tmp_path, measure, change):
    study = tiny_study(tmp_path, "static", weights={"measure": measure})
    run_study(Run(study), "weights")
    with pytest.raises(DataError, match="needs the losses of every query"):
        replay_run(study.run_folder, study.weights.model_copy(update=change), EXAMPLES)


@pytest.mark.parametrize("held_out", [{}, {"signal": "held-out", "held_out_share": 0.4, "held_out_every": 2}])
def test_the_runs_own_measure_of_examples_is_replayed_from_its_signals_as_from_its_losses(tmp_path, held_out):
    study = tiny_study(tmp_path, "static", weights={"measure": "relative-sample", "keep_losses": True, **held_out})
    run_study(Run(study), "weights")
    settings = [study.weights, study.weights.model_copy(update={"update": "anchored", "clip": "none"})]
    from_losses = [replay_run(study.run_folder, config, EXAMPLES).exported() for config in settings]
    for path in study.run_folder.glob("weights/*losses.parquet"):
        path.unlink()
    from_signals = [replay_run(study.run_folder, config, EXAMPLES).exported() for config in settings]
    assert from_signals == from_losses and from_losses[0] != from_losses[1]
    assert from_signals[0] == read_weights(study.run_folder / "weights" / "weights.json")


def test_anybodys_losses_raise_the_dataset_that_is_worse_than_its_reference(tmp_path):
    random = np.random.default_rng(0)
    draws = [(step, name, scale) for step in range(50) for name, scale in (("easy", 1), ("hard", 3)) for _ in range(20)]
    rows = [(step, name, random.gamma(2) * scale, random.gamma(2)) for step, name, scale in draws]
    columns = dict(zip(("step", "dataset", "proxy_loss", "reference_loss"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "losses.parquet")
    weights = replay_losses(tmp_path / "losses.parquet", WeightsConfig(step_size=0.1)).exported("last")
    assert list(weights) == ["hard", "easy"] and weights["hard"] > 0.9
    shuffled = pa.table(columns).take(pa.array(random.permutation(len(rows))))
    pq.write_table(shuffled, tmp_path / "shuffled.parquet")
    again = replay_losses(tmp_path / "shuffled.parquet", WeightsConfig(step_size=0.1)).exported("last")
    assert again == pytest.approx(weights, rel=1e-9)


def test_bad_files_are_refused(tmp_path):
    (tmp_path / "no.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="cannot be read"):
        replay_losses(tmp_path / "no.parquet", WeightsConfig())
    pq.write_table(
        pa.table({"step": [0], "dataset": ["a"], "proxy_los": [1.0], "reference_loss": [1.0]}), tmp_path / "x.parquet"
    )
    with pytest.raises(DataError, match="rename 'proxy_los'"):
        replay_losses(tmp_path / "x.parquet", WeightsConfig())
    pq.write_table(
        pa.table({"step": [0], "dataset": ["a"], "proxy_loss": [1.0], "reference_loss": [1.0]}), tmp_path / "x.parquet"
    )
    with pytest.raises(ConfigError, match="epochs need the sizes"):
        replay_losses(tmp_path / "x.parquet", WeightsConfig(max_epochs=2.0))


LOSSES = {
    "step": [0, 0, 1, 1], "dataset": ["a", "b"] * 2, "proxy_loss": [4.0, 1.0, 3.0, 1.0], "reference_loss": [1.0] * 4
}  # fmt: skip


def test_a_table_in_memory_and_in_a_file_give_the_same_weights(tmp_path):
    table = pa.table(LOSSES)
    pq.write_table(table, tmp_path / "x.parquet")
    found = [
        learn_weights(losses, update="anchored").exported()
        for losses in (LOSSES, table, tmp_path / "x.parquet", str(tmp_path / "x.parquet"), table.to_pandas())
    ]
    assert found[0] == found[1] == found[2] == found[3] == found[4] and found[0]["a"] > 0.5


def test_the_step_schedule_ends_with_the_table():
    settings = {"measure": "relative", "clip": "none", "shrinkage": 0.0, "step_size": 1}
    once = learn_weights(LOSSES, step_schedule="linear", final_step_share=0.0, **settings)
    assert np.log(once.exported()["a"] / once.exported()["b"]) == pytest.approx(1 * 3 + 0 * 2)


def test_measures_without_reference_need_no_reference_losses():
    without = {name: values for name, values in LOSSES.items() if name != "reference_loss"}
    for measure in ("raw", "initial", "target"):
        found = learn_weights(without, measure=measure).exported()
        assert found == learn_weights(LOSSES, measure=measure).exported()
    with pytest.raises(DataError, match="reference_loss is missing"):
        learn_weights(without)


@pytest.mark.parametrize(
    ("settings", "what"), [({"step_sise": 1}, "step_sise"), ({"measure": "best"}, "measure"), ({"cap": 0}, "cap")]
)
def test_wrong_settings_are_refused_by_name(settings, what):
    with pytest.raises(ConfigError, match=f"weights.{what}"):
        learn_weights(LOSSES, **settings)


def test_what_is_no_table_is_refused():
    for losses in (3, {"step": [1], "dataset": ["a", "b"]}):
        with pytest.raises(DataError, match="not a table"):
            learn_weights(losses)
    with pytest.raises(DataError, match="no rows"):
        learn_weights({name: [] for name in LOSSES})


def test_command_line_replays_with_changed_settings_and_saves(recorded, tmp_path, capsys):
    assert (
        main(
            [
                "weights",
                "--replay",
                str(recorded.folder),
                "--weights.update",
                "anchored",
                "--save",
                str(tmp_path / "w.json"),
            ]
        )
        == 0
    )
    assert "anchored, 6 steps" in capsys.readouterr().out
    saved = read_weights(tmp_path / "w.json")
    config = recorded.study.weights.model_copy(update={"update": "anchored"})
    assert saved == replay_run(recorded.folder, config, EXAMPLES).exported("last")
    losses = str(recorded.folder / "weights" / "losses.parquet")
    assert main(["weights", "--from-losses", losses, "--weights.measure", "raw"]) == 0
    assert "raw, eg, 6 steps" in capsys.readouterr().out
    assert main(["weights", "--replay"]) == 2
    assert main(["weights", "--replay", str(tmp_path)]) == 2
