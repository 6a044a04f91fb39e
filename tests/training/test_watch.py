"""Evaluation while a model is trained: it sees everything, changes nothing, and can choose the best step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from studies import tiny_study

from tdro.config import Study, TrainingConfig
from tdro.errors import CheckpointError, DataError
from tdro.training import loop, stages, watch
from tdro.training.journal import Journal
from tdro.training.loop import Workplace, train
from tdro.training.run import Run
from tdro.training.watch import Scores, Watch

SCRIPT = [0.0, 0.1, 0.2, 0.5, 0.3, 0.3, 0.9, 0.7, 0.9, 0.8]
"""Score of the toy model after so many steps; 6 and 8 are equal and best."""


class Toy(torch.nn.Module):
    """A model that counts its steps, with dropout and without a seed of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.dropout = torch.nn.Dropout(0.5)


class ToyStep:
    """Pulls the weight in a random direction."""

    def __init__(self, model: Toy, *, seeded: bool = True) -> None:
        self._model, self._seeded = model, seeded

    def backward(self, step: int, step_seed: int) -> dict[str, Any]:
        if self._seeded:
            torch.manual_seed(step_seed)
        loss = (self._model.dropout(self._model.weight) * torch.rand(4)).sum()
        loss.backward()
        self._model.count += 1
        return {"loss": loss.item(), "losses": {}}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


def scripted(model: Toy) -> Scores:
    """Two tasks whose main measures have the scripted score as their mean."""
    score = SCRIPT[int(model.count)]
    return {"a": {"ndcg@10": score - 0.1, "mrr@10": 1.0}, "b": {"acc@10": score + 0.1}}


def watched(
    folder: Path,
    *,
    every: int = 2,
    keep_best: bool = True,
    look: Callable[[Toy], Scores] = scripted,
    seeded: bool = True,
    checkpoint_every: int = 3,
) -> Toy:
    """Train a toy for nine steps in a folder and return it."""
    torch.manual_seed(7)
    model = Toy().train()
    place = Workplace("toy", folder / "toy", Journal(folder), "fingerprint", 42)
    main = {"a": "ndcg@10", "b": "acc@10"}
    observer = Watch(model, place, lambda: look(model), main, every=every, steps=9, keep_best=keep_best)
    config = TrainingConfig(steps=9, batch_size=1, warmup_steps=0, checkpoint_every=checkpoint_every)
    train(model, config, ToyStep(model, seeded=seeded), place, observer)
    return model


def alone(*, seeded: bool = True, folder: Path) -> Toy:
    """Train the toy with nobody watching."""
    torch.manual_seed(7)
    model = Toy().train()
    place = Workplace("toy", folder / "toy", Journal(folder), "fingerprint", 42)
    config = TrainingConfig(steps=9, batch_size=1, warmup_steps=0, checkpoint_every=3)
    train(model, config, ToyStep(model, seeded=seeded), place)
    return model


def report(folder: Path) -> dict[str, Any]:
    """Content of watch.json."""
    return json.loads((folder / "toy" / "watch.json").read_text())


def events(folder: Path) -> list[dict[str, Any]]:
    """The looks in the journal, without their times."""
    found = Journal(folder).read("watched", "toy")
    return [{key: value for key, value in event.items() if key not in ("time", "seconds")} for event in found]


def test_looks_come_every_so_many_steps_and_at_the_last_one(tmp_path):
    model = watched(tmp_path, keep_best=False)
    assert model.count == 9
    found = report(tmp_path)
    assert list(found["steps"]) == ["2", "4", "6", "8", "9"]
    assert found["steps"]["4"] == {"mean": pytest.approx(0.3), "scores": scripted_at(4)}
    assert (found["best"], found["kept"], found["main"]) == (6, 9, {"a": "ndcg@10", "b": "acc@10"})
    assert [event["step"] for event in events(tmp_path)] == [1, 3, 5, 7, 8]
    assert [event["best"] for event in events(tmp_path)] == [True, True, True, False, False]
    assert not (tmp_path / "toy" / "checkpoints" / "best-00000006").exists()


def scripted_at(count: int) -> Scores:
    """The scores after so many steps."""
    model = Toy()
    model.count += count
    return scripted(model)


@pytest.mark.parametrize(("every", "best"), [(2, 6), (3, 6), (4, 8), (7, 9), (100, 9)])
def test_keeping_the_best_ends_with_its_parameters_and_ties_go_to_the_earlier(tmp_path, every, best):
    kept: dict[int, torch.Tensor] = {}

    def look(model: Toy) -> Scores:
        kept[int(model.count)] = model.weight.detach().clone()
        return scripted(model)

    model = watched(tmp_path, every=every, look=look)
    assert model.count == best and report(tmp_path)["kept"] == best
    assert torch.equal(model.weight, kept[best])
    assert best == 9 or not torch.equal(kept[best], kept[9])
    notes = [event["text"] for event in Journal(tmp_path).read("note", "toy")]
    assert notes == ([] if best == 9 else [f"ends with the model of step {best}, the best of 9 on the watched tasks"])


@pytest.mark.parametrize("seeded", [True, False])
def test_watching_changes_neither_parameters_nor_random_numbers(tmp_path, seeded):
    def look(model: Toy) -> Scores:
        torch.rand(100)
        torch.manual_seed(1)
        return scripted(model)

    free = alone(folder=tmp_path / "free", seeded=seeded)
    seen = watched(tmp_path / "seen", keep_best=False, look=look, seeded=seeded)
    assert torch.equal(free.weight, seen.weight)


class Killed(BaseException):
    """Stands for kill -9: nothing gets a chance to be saved."""


def kill(monkeypatch: pytest.MonkeyPatch, where: str, at: int) -> None:
    """Die after so many steps: in the step, or behind the look, the best parameters, the event or the checkpoint."""
    module, name = {
        "step": (loop, "_refuse_non_finite"),
        "best": (watch, "save_best"),
        "journal": (watch, "write_json"),
        "checkpoint": (loop, "save_checkpoint"),
        "pruned": (watch, "forget_best"),
    }[where]
    real, calls = getattr(module, name), iter(range(100))

    def die(*arguments: Any) -> None:
        if where != "step":
            real(*arguments)
        if next(calls) == at:
            raise Killed

    monkeypatch.setattr(module, name, die)


@pytest.mark.parametrize("keep_best", [True, False])
@pytest.mark.parametrize(
    ("where", "at"),
    [("step", at) for at in range(9)]
    + [("best", at) for at in range(3)]
    + [("journal", at) for at in range(5)]
    + [("checkpoint", at) for at in range(2)]
    + [("pruned", at) for at in range(3)],
)
def test_a_run_that_was_killed_anywhere_ends_as_if_it_had_not_been(tmp_path, monkeypatch, keep_best, where, at):
    expected = watched(tmp_path / "calm", keep_best=keep_best)
    with monkeypatch.context() as patch:
        kill(patch, where, at)
        if where == "best" and not keep_best:
            watched(tmp_path / "killed", keep_best=keep_best)
        else:
            with pytest.raises(Killed):
                watched(tmp_path / "killed", keep_best=keep_best)
    found = watched(tmp_path / "killed", keep_best=keep_best)
    assert torch.equal(found.weight, expected.weight) and found.count == expected.count
    assert (tmp_path / "killed/toy/watch.json").read_bytes() == (tmp_path / "calm/toy/watch.json").read_bytes()
    assert events(tmp_path / "killed") == events(tmp_path / "calm")


def test_the_best_of_before_the_checkpoint_survives_a_better_one_that_is_not_reached_again(tmp_path, monkeypatch):
    """A GPU may add in another order the second time, and the step that was better is not."""
    with monkeypatch.context() as patch:
        kill(patch, "step", 8)
        with pytest.raises(Killed):
            watched(tmp_path, every=1, checkpoint_every=5)
    assert {p.name for p in (tmp_path / "toy/checkpoints").glob("best-*")} == {"best-00000003", "best-00000006"}
    found = watched(tmp_path, every=1, look=lambda model: scripted_at(min(int(model.count), 4)), checkpoint_every=5)
    assert found.count == 3


def test_parameters_that_are_lost_stop_the_stage_before_it_trains(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill(patch, "step", 7)
        with pytest.raises(Killed):
            watched(tmp_path)
    (tmp_path / "toy/checkpoints/best-00000006").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="best step are lost"):
        watched(tmp_path)


def test_a_stage_that_begins_anew_forgets_what_an_earlier_one_saw(tmp_path):
    watched(tmp_path)
    for path in (tmp_path / "toy/checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    watched(tmp_path, every=5, keep_best=False)
    assert list(report(tmp_path)["steps"]) == ["5", "9"] and len(events(tmp_path)) == 2


def trained(study: Study, stage: str = "reference") -> Run:
    """Train one model of a study."""
    run = Run(study)
    if stage == "reference":
        stages.reference(run, run.source_rows)
    else:
        stages.robust(run, run.source_rows, {"one": 1.0, "two": 1.0, "three": 1.0})
    return run


def parameters(run: Run, stage: str = "reference") -> dict[str, bytes]:
    """Every parameter of a saved model."""
    files = sorted((run.folder / stage / "model").rglob("*.safetensors"))
    return {name: tensor.numpy().tobytes() for file in files for name, tensor in load_file(file).items()}


def study_of(folder: Path, name: str, family: str = "static", **evaluation: Any) -> Study:
    """A tiny study that watches the words."""
    options = {"tasks": {}, "watch": {"words": "eval/words"}, "watch_every": 2, **evaluation}
    study = tiny_study(folder, family, evaluation=options, reference={"learning_rate": 0.3})
    return study.model_copy(update={"output": str(folder / name)})


@pytest.mark.parametrize("family", ["bert", "static"])
def test_a_watched_study_trains_the_same_model_and_is_the_same_study(tmp_path, family):
    free = trained(study_of(tmp_path, "free", family, watch={}))
    seen = trained(study_of(tmp_path, "seen", family))
    assert parameters(free) == parameters(seen)
    markers = [json.loads((run.folder / "reference/done.json").read_text()) for run in (free, seen)]
    assert markers[0]["fingerprint"] == markers[1]["fingerprint"]
    assert not (free.folder / "reference/watch.json").exists()
    assert list(json.loads((seen.folder / "reference/watch.json").read_text())["steps"]) == ["2", "4", "6"]
    assert not (seen.folder / "reference/checkpoints").exists()


def test_scores_are_those_of_the_model_that_is_saved_and_nothing_goes_into_the_cache(tmp_path, own_cache):
    run = trained(study_of(tmp_path, "run"))
    found = json.loads((run.folder / "reference/watch.json").read_text())
    assert set(found["steps"]["6"]["scores"]["words"]) >= {"ndcg@10", "recall@100", "mrr@10"}
    assert not (own_cache / "embeddings").exists()
    model = run.load(str(run.folder / "reference/model"))
    place = stages.place(run, "again", "fingerprint")
    look = watch._Look(run, model, place, watch.watched_tasks(run.study))
    assert look() == found["steps"]["6"]["scores"]


@pytest.mark.parametrize("stage", ["reference", "robust"])
def test_the_best_step_of_a_study_is_what_is_saved(tmp_path, stage):
    run = trained(study_of(tmp_path, "best", keep="best", watch_every=1), stage)
    found = json.loads((run.folder / stage / "watch.json").read_text())
    means = {int(done): seen["mean"] for done, seen in found["steps"].items()}
    assert len(set(means.values())) > 1
    assert found["kept"] == found["best"] == min(done for done in means if means[done] == max(means.values()))
    assert json.loads((run.folder / stage / "done.json").read_text())["kept_after"] == found["kept"]
    model = run.load(str(run.folder / stage / "model"))
    look = watch._Look(run, model, stages.place(run, "again", "fingerprint"), watch.watched_tasks(run.study))
    assert look() == found["steps"][str(found["kept"])]["scores"]


def test_a_study_that_was_killed_chooses_the_same_step(tmp_path, monkeypatch):
    calm = trained(study_of(tmp_path, "calm", keep="best", watch_every=1))
    with monkeypatch.context() as patch:
        kill(patch, "step", 5)
        with pytest.raises(Killed):
            trained(study_of(tmp_path, "killed", keep="best", watch_every=1))
    killed = trained(study_of(tmp_path, "killed", keep="best", watch_every=1))
    assert parameters(killed) == parameters(calm)
    reports = [(run.folder / "reference/watch.json").read_bytes() for run in (calm, killed)]
    assert reports[0] == reports[1]


def test_choosing_a_step_is_part_of_what_a_stage_is_made_from(tmp_path):
    def identity(**evaluation: Any) -> str:
        run = Run(study_of(tmp_path, "run", **evaluation))
        return stages.reference(run, run.source_rows)

    first = identity(keep="best")
    assert first == identity(keep="best")
    seen = {first, identity(keep="best", watch_every=3), identity(), identity(watch_every=3)}
    assert len(seen) == 3  # looking more often without choosing is the same
    instructed = {"words": {"path": "eval/words", "instruction": "find"}}
    seen |= {identity(keep="best", watch=instructed)}
    queries = tmp_path / "root/eval/words/queries.jsonl"
    queries.write_text(queries.read_text().replace("bee", "bees"))
    seen |= {identity(keep="best")}
    assert len(seen) == 5


def test_a_task_that_is_not_there_stops_before_training(tmp_path):
    with pytest.raises(DataError, match="not found"):
        trained(study_of(tmp_path, "run", watch={"words": "eval/none"}))
    assert not list((tmp_path / "run").rglob("*.safetensors"))
