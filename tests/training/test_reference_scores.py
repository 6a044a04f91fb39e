"""What the reference says is computed once, kept, and the same as asking it in every step."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from studies import tiny_study

from tdro.data.mixture import MixedMixture
from tdro.data.weights_file import read_weights
from tdro.errors import ConfigError, DataError, EnvironmentProblem
from tdro.models.encoder import embed
from tdro.training import reference_scores
from tdro.training.negatives import negatives
from tdro.training.pipeline import run_study
from tdro.training.query_loss import refuse_impossible_weights
from tdro.training.reference_scores import AllScores, Batches, DrawnScores, ScoreStore, SimilarityFile
from tdro.training.run import Run
from tdro.training.texts import TextSource


def learned(folder, output: str, how: str, seed: int = 42, **weights) -> dict[str, float]:
    """Weights of a tiny study whose similarities are computed in a way."""
    precision = weights.pop("precision", "float64")
    study = tiny_study(folder, weights={"reference_similarities": how, **weights}, model={"precision": precision})
    run = Run(study.model_copy(update={"output": str(folder / output), "seed": seed}))
    run_study(run, "weights")
    return read_weights(run.folder / "weights" / "weights.json")


def learned_with(folder, output: str, how: str, data: dict, **weights) -> dict[str, float]:
    """The same, with choices in the data section."""
    datasets = {name: {"path": f"train/{name}.jsonl", "instruction": "sun"} for name in ("one", "two", "three")}
    datasets["two"] |= {"more_instructions": ["moon tide", "wind"], "symmetric": True}
    data = {**data, "datasets": datasets} if data.pop("worded", False) else data
    weights = {"reference_similarities": how, **weights}
    study = tiny_study(folder, "static", data=data, weights=weights, model={"precision": "float64"})
    run = Run(study.model_copy(update={"output": str(folder / output)}))
    run_study(run, "weights")
    return read_weights(run.folder / "weights" / "weights.json")


CHOICES = [{"worded": True, "instruction_share": 0.5}, {"positives": "first", "negatives": "first"}]


@pytest.mark.parametrize("data", CHOICES, ids=str)
def test_choices_of_a_visit_leave_kept_similarities_those_of_a_live_reference(tmp_path, data):
    live = learned_with(tmp_path, "live", "live", {**data})
    assert learned_with(tmp_path, "kept", "auto", {**data}) == pytest.approx(live, abs=1e-9)


def test_other_choices_have_their_own_file(tmp_path):
    tiny_study(tmp_path, "static")
    run, batches, _ = prepared(tmp_path, "drawn")

    def folders_with(**data) -> int:
        run.study = run.study.model_copy(update={"data": run.study.data.model_copy(update=data)})
        ScoreStore(run).prepare([batches])
        return len(list((reference_scores.cache_folder() / "similarities").iterdir()))

    one = run.study.data.datasets["one"]
    worded = {"one": one.model_copy(update={"instruction": "sun", "more_instructions": ("moon",)})}
    changes = [
        {},
        {"positives": "first"},
        {"positives": "random", "negatives": "first"},
        {"negatives": "random", "datasets": {**run.study.data.datasets, **worded}},
        {"instruction_share": 0.5},
        {"instruction_share": 0.25},
    ]
    assert [folders_with(**change) for change in changes] == [1, 2, 3, 4, 5, 6]


def test_texts_that_change_with_every_visit_have_no_similarity_of_their_own(tmp_path):
    every = {"steps": 60, "batch_size": 64}
    tiny_study(tmp_path, "static")
    run, batches, scores = prepared(tmp_path, "auto", **every)
    assert isinstance(scores, AllScores)
    two = run.study.data.datasets["two"].model_copy(update={"instruction": "sun", "more_instructions": ("moon",)})
    data = run.study.data.model_copy(update={"datasets": {**run.study.data.datasets, "two": two}})
    run.study = run.study.model_copy(update={"data": data})
    assert isinstance(ScoreStore(run).prepare([batches])[0], DrawnScores)
    weights = run.study.weights.model_copy(update={"reference_similarities": "all"})
    with pytest.raises(ConfigError, match="drawn anew at every visit") as error:
        refuse_impossible_weights(run.study.model_copy(update={"weights": weights}), batches.rows)
    assert "all, with two" in str(error.value)


def test_the_weights_are_not_learned_on_first_dimensions(tmp_path):
    study = tiny_study(tmp_path, "static", weights={"matryoshka": (8,)})
    with pytest.raises(ConfigError, match="whole embeddings"):
        refuse_impossible_weights(study, {})


def test_distillation_in_stage_1_needs_scores(tmp_path):
    with pytest.raises(DataError, match=r"weights\.distillation needs a score"):
        learned_with(tmp_path, "run", "auto", {}, distillation=1.0)


@pytest.mark.parametrize("temperature", [0.02, 0.002])
def test_kept_similarities_give_the_weights_of_a_live_reference(tmp_path, temperature):
    live = learned(tmp_path, "live", "live", temperature=temperature)
    for how in ("drawn", "all", "auto"):
        assert learned(tmp_path, how, how, temperature=temperature) == pytest.approx(live, abs=1e-9)
    assert max(live.values()) - min(live.values()) > 1e-4


def prepared(folder, how: str, **changes) -> tuple[Run, Batches, reference_scores.ReferenceScores]:
    """Similarities of the batches of a tiny study after its reference is trained."""
    run = Run(tiny_study(folder, weights={"reference_similarities": how, **changes}, reference={"steps": 1}))
    run_study(run, "reference")
    rows = negatives(run)
    batches = batches_of(run, rows)
    return run, batches, ScoreStore(run).prepare([batches])[0]


def batches_of(run: Run, rows, seed: int = 42) -> Batches:
    """The batches that the weights stage of a run draws."""
    config = run.study.weights
    mixture = MixedMixture({n: len(r) for n, r in rows.items()}, config.batch_size, seed, config.sampling)
    return Batches(rows, mixture, TextSource(rows, run.study.data, run.load_base(), seed), seed, config.steps)


@pytest.mark.parametrize(("how", "kind"), [("drawn", DrawnScores), ("all", AllScores)])
def test_what_is_kept_is_the_product_of_the_embeddings_one_by_one(tmp_path, how, kind):
    run, batches, scores = prepared(tmp_path, how)
    assert isinstance(scores, kind)
    reference = run.load(str(run.folder / "reference" / "model")).eval()
    draw = batches.mixture.draw(3)
    texts = batches.source.texts(draw, 4)
    found_BN = scores.similarities(3, draw, texts)
    start = 0
    with torch.inference_mode():
        for query, count, found_N in zip(texts.queries_B, texts.count_B.tolist(), found_BN, strict=True):
            q = embed(reference, [query])[0]
            expected = torch.stack([q @ embed(reference, [p])[0] for p in texts.passages_P[start : start + count]])
            torch.testing.assert_close(found_N[:count], expected, rtol=0, atol=1e-6)
            assert found_N[count:].eq(-torch.inf).all()
            start += count


def count_calls(monkeypatch) -> list[int]:
    """Record how many queries the reference is asked about."""
    asked: list[int] = []
    real = reference_scores.similarities_of_all

    def similarities(model, texts, *arguments):
        asked.append(len(texts.queries_B))
        return real(model, texts, *arguments)

    monkeypatch.setattr(reference_scores, "similarities_of_all", similarities)
    return asked


@pytest.mark.parametrize(
    ("how", "again"),
    [("drawn", {"measure": "excess", "temperature": 0.01, "update": "adamw"}), ("all", {"passages_per_query": 3})],
)
def test_another_measure_or_temperature_asks_the_reference_nothing(tmp_path, monkeypatch, how, again):
    learned(tmp_path, "first", how)
    asked = count_calls(monkeypatch)
    loaded: list[str] = []
    real = Run.load
    monkeypatch.setattr(
        Run,
        "load",
        lambda run, name, *rest, **options: (loaded.append(str(name)), real(run, name, *rest, **options))[1],
    )
    learned(tmp_path, "second", how, **again)
    assert asked == [] and sum(name.endswith("reference/model") for name in loaded) == 0
    assert loaded  # the proxy was


def test_more_steps_and_another_seed_ask_only_for_what_is_new(tmp_path, monkeypatch):
    learned(tmp_path, "first", "drawn", steps=4)
    asked = count_calls(monkeypatch)
    learned(tmp_path, "longer", "drawn", steps=6)
    assert asked == [8, 8]
    asked.clear()
    run = Run(tiny_study(tmp_path, weights={"reference_similarities": "all"}))
    run_study(run, "reference")
    rows = negatives(run)
    ScoreStore(run).prepare([batches_of(run, rows)])
    assert sum(asked) == 24 + 40 + 60
    asked.clear()
    ScoreStore(run).prepare([batches_of(run, rows, seed=7)])
    assert asked == []


@pytest.mark.parametrize("how", ["drawn", "all"])
def test_filling_that_was_stopped_goes_on_and_ends_bit_for_bit_the_same(tmp_path, monkeypatch, how):
    monkeypatch.setattr(reference_scores, "UNIT_ROWS", 16)
    monkeypatch.setenv("TDRO_CACHE", str(tmp_path / "undisturbed"))
    expected = learned(tmp_path, "undisturbed-run", how, precision="float32")
    monkeypatch.setenv("TDRO_CACHE", str(tmp_path / "stopped"))
    real, calls = reference_scores.similarities_of_all, []

    def stop_at_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reference_scores, "similarities_of_all", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            learned(tmp_path, "stopped-run", how, precision="float32")
    asked = count_calls(monkeypatch)
    assert learned(tmp_path, "stopped-run", how, precision="float32") == expected
    whole = 6 if how == "drawn" else 2 + 3 + 4
    assert len(asked) == whole - 2
    files = [
        sorted((tmp_path / cache / "similarities").rglob("similarities.*")) for cache in ("undisturbed", "stopped")
    ]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]] and files[0]


@pytest.mark.parametrize("how", ["drawn", "all"])
def test_the_journal_has_the_time_of_the_similarities_and_what_was_there_before(tmp_path, monkeypatch, how):
    held_out = {"held_out_share": 0.25, "held_out_every": 2}  # of all, the second file of a dataset is the first

    def told(output: str) -> list[tuple[int, int, bool]]:
        study = tiny_study(tmp_path, "static", weights={"reference_similarities": how, **held_out})
        run = Run(study.model_copy(update={"output": str(tmp_path / output)}))
        run_study(run, "weights")
        events = list(run.journal.read("similarities", "similarities"))
        assert all(event["seconds"] >= 0 and event["seeds"] == [42] for event in events)
        return [(event["computed"], event["kept"], event["finished"]) for event in events]

    units = 6 + 3 if how == "drawn" else 3  # steps and looks at held-out rows; or datasets, each of one unit
    assert told("first") == [(units, 0, True)]
    assert told("second") == [(0, units, True)]
    monkeypatch.setenv("TDRO_CACHE", str(tmp_path / "another"))
    real, calls = reference_scores.similarities_of_all, []

    def stop_at_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reference_scores, "similarities_of_all", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            told("stopped")
    assert told("stopped") == [(2, 0, False), (units - 2, 2, True)]


def test_another_reference_or_instruction_has_its_own_file(tmp_path):
    def folders() -> int:
        return len(list((reference_scores.cache_folder() / "similarities").iterdir()))

    run, batches, _ = prepared(tmp_path, "drawn")
    before = folders()
    ScoreStore(run).prepare([batches])
    assert folders() == before
    options = run.study.data.datasets["one"].model_copy(update={"instruction": "find words"})
    data = run.study.data.model_copy(update={"datasets": {**run.study.data.datasets, "one": options}})
    run.study = run.study.model_copy(update={"data": data})
    ScoreStore(run).prepare([batches])
    assert folders() == before + 1
    reference = SentenceTransformer(str(run.folder / "reference" / "model"))
    with torch.no_grad():
        next(reference.parameters()).mul_(1.5)
    reference.save(str(run.folder / "reference" / "model"))
    ScoreStore(run).prepare([batches])
    assert folders() == before + 2


def test_auto_keeps_everything_only_where_that_is_cheap(tmp_path):
    few, many = {"steps": 1, "batch_size": 4}, {"steps": 60, "batch_size": 64}
    assert isinstance(prepared(tmp_path, "auto", **few)[2], DrawnScores)
    assert isinstance(prepared(tmp_path, "auto", **many)[2], AllScores)


def test_a_file_is_lengthened_mends_a_torn_end_and_never_shows_a_nan_as_missing_for_ever(tmp_path):
    kind = np.dtype(np.float32)
    file = SimilarityFile(tmp_path, np.array([0, 2, 5]), kind, {})
    assert list(file.missing()) == [0, 1]
    file.put(1, np.array([1.0, np.nan, -np.inf], np.float32))
    assert list(file.missing()) == [0] and file.unit(1).tolist() == [1.0, np.inf, -np.inf]
    del file
    with (tmp_path / "similarities.float32").open("ab") as raw:
        raw.write(b"\0\0")
    longer = SimilarityFile(tmp_path, np.array([0, 2, 5, 9]), kind, {})
    assert list(longer.missing()) == [0, 2] and longer.unit(1)[0] == 1.0


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="cannot be kept"):
        SimilarityFile(tmp_path / "file" / "x", np.array([0, 1]), np.dtype(np.float32), {})
