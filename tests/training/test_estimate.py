"""The estimate: its arithmetic, that it counts what training does, what it keeps, and what is finished."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from studies import tiny_study

from tdro.cli.main import main
from tdro.devices import pick_device
from tdro.errors import ConfigError
from tdro.files import cache_folder
from tdro.models.encoder import embed, load_encoder
from tdro.study_file import save_study
from tdro.training import cached_step, estimate, own_similarities
from tdro.training.budget import Budget
from tdro.training.estimate_passes import contrastive_step, own_step
from tdro.training.estimate_speed import Curve, Speeds, measure_speeds
from tdro.training.estimate_texts import DatasetTexts, StudyTexts, TaskTexts, sample_study
from tdro.training.estimate_work import Cost, costs_of, range_of
from tdro.training.prices import bill, read_prices
from tdro.training.run import Run
from tdro.training.texts import StepTexts

SPEEDS = Speeds(
    forward=Curve([1.0, 100.0], [1.0, 1.0]),
    backward=Curve([1.0, 100.0], [3.0, 3.0]),
    encode=Curve([1.0, 100.0], [0.5, 0.5]),
    proxy=1.0,
    reference=1.0,
    loss=0.0,
    search=0.0,
    optimizer=0.0,
    disk=1e12,
    pads=True,
    dimension=8,
    parameter_bytes=4_000_000,
    trained_bytes=2_000_000,
    encode_gb=1.0,
    train_gb=2.0,
    spread=0.0,
    busy=0.0,
    seconds=1.0,
)
"""A second per token forward, three forward and backward, half a one in evaluation."""


def texts_of(**datasets: tuple[int, int]) -> StudyTexts:
    """Datasets of 100 rows: tokens of every query, and of every passage."""
    found = {name: DatasetTexts(100, [q], [p], [p], 2.0, False, 20.0) for name, (q, p) in datasets.items()}
    return StudyTexts(found, {"words": TaskTexts(4, [2], 10, [5], "corpus")}, {}, [], 0.0, 0.0)


def test_a_curve_is_a_line_between_what_was_measured_and_flat_outside():
    curve = Curve([10.0, 20.0], [1.0, 2.0])
    assert curve.of(np.array([1, 2, 3, 4]), np.array([5, 10, 15, 40])) == 1 * 1 + 2 * 1 + 3 * 1.5 + 4 * 2


def test_what_fits_into_the_memory_for_graphs_is_passed_once():
    lengths = np.array([2, 2, 4])  # two passes of four tokens
    assert contrastive_step(lengths, replace(SPEEDS, pads=False), Budget(6, {}))["forward and backward passes"] == 24
    everything = contrastive_step(lengths, SPEEDS, Budget(4, {}))
    assert everything == {"forward and backward passes": 24.0, "first passes of the gradient cache": 0.0}
    one = contrastive_step(np.array([2, 2, 4, 4]), SPEEDS, Budget(4, {}))  # eight of twelve tokens keep their graph
    assert one == {"forward and backward passes": 36.0, "first passes of the gradient cache": 4.0}


def counted(monkeypatch, module) -> dict[bool, int]:
    """Count the tokens that a module embeds, padding included: with gradients and without."""
    tokens = {True: 0, False: 0}

    def counting(model, token_lists):
        tokens[torch.is_grad_enabled()] += len(token_lists) * max(map(len, token_lists))
        return embed(model, token_lists)

    monkeypatch.setattr(module, "embed", counting)
    return tokens


def test_the_passes_of_the_gradient_cache_are_those_that_a_step_makes(tmp_path, monkeypatch):
    tiny_study(tmp_path)
    model = load_encoder(str(tmp_path / "root" / "model")).train()
    lengths = [3, 9, 4, 4, 20, 7, 7, 13, 5, 6, 11, 15]
    tokens = counted(monkeypatch, cached_step)
    lists = [[1] * length for length in lengths]
    cached_step.cached_backward(model, lists, lambda e: [e.sum()], pick_device(), 30, 0, graph_tokens=60)
    once_per_token = replace(SPEEDS, backward=Curve([1.0], [1.0]))
    expected = contrastive_step(np.array(lengths), once_per_token, Budget(30, {}))
    assert tokens[True] == expected["forward and backward passes"]
    assert tokens[False] == expected["first passes of the gradient cache"] > 0


def test_the_passes_of_stage_1_are_those_that_a_step_makes(tmp_path, monkeypatch):
    tiny_study(tmp_path)
    model = load_encoder(str(tmp_path / "root" / "model"))
    length_BN = np.array([[3, 9, 4], [4, 20, 7], [7, 13, 5], [6, 11, 15], [3, 3, 3]])
    numbers = torch.arange(10)
    texts = StepTexts(
        queries_B=[[1] * int(n) for n in length_BN[:, 0]],
        passages_P=[[1] * int(n) for n in length_BN[:, 1:].ravel()],
        count_B=torch.full((5,), 2),
        query_key_B=torch.arange(5),
        passage_key_P=numbers,
        known_K2=torch.empty((0, 2), dtype=torch.int64),
        place_P=numbers % 2,
        score_P=torch.full((10,), torch.nan, dtype=torch.float64),
    )
    tokens = counted(monkeypatch, own_similarities)
    own_similarities.similarities_of_all(model, texts, pick_device(), 60)
    assert tokens[False] == own_step(length_BN, 60)[0].sum() > 0


def test_a_stage_costs_its_steps_and_a_study_the_stages_that_it_has(tmp_path):
    study = tiny_study(tmp_path, reference={"passages_per_query": 1}, weights={"passages_per_query": 2})
    texts = texts_of(one=(2, 10), two=(2, 10), three=(2, 10))
    costs = costs_of(study, texts, SPEEDS, Budget(1000, {}))
    assert list(costs) == ["reference", "similarities", "weights", "robust", "evaluation"]
    step = 16 * 10  # eight queries and eight passages share a pass, padded to the longest
    assert costs["reference"].seconds["forward and backward passes"] == 6 * 3 * step
    longer = study.model_copy(update={"reference": study.reference.model_copy(update={"steps": 12})})
    twice = costs_of(longer, texts, SPEEDS, Budget(1000, {}))["reference"]
    assert twice.seconds["forward and backward passes"] == 2 * 6 * 3 * step
    assert costs["similarities"].total == 6 * 24 * 10 * 0.5  # six steps of 24 texts, padded
    assert costs["evaluation"].seconds["encoding"] == 4 * 0.5 * (10 * 5 + 4 * 2)  # four models
    fixed = study.model_copy(update={"robust": study.robust.model_copy(update={"weights": "uniform"})})
    alone = fixed.model_copy(update={"evaluation": fixed.evaluation.model_copy(update={"models": ("robust",)})})
    assert list(costs_of(alone, texts, SPEEDS, Budget(1000, {}))) == ["robust", "evaluation"]


def test_which_datasets_a_plan_will_keep_is_in_the_range(tmp_path):
    study = tiny_study(tmp_path, robust={"plan": "top-share", "share": 0.34})
    costs = costs_of(study, texts_of(one=(2, 2), two=(2, 2), three=(2, 20)), SPEEDS, Budget(1000, {}))
    robust, reference = costs["robust"], costs["reference"]
    assert (reference.low, reference.high) == (1.0, 1.0)
    assert robust.low < 0.5 and robust.high > 2  # one of three datasets is kept: a short one or the long one
    low, high = range_of(100.0, robust, spread=0.0)
    assert low < 100 * robust.low and high > 100 * robust.high


@pytest.mark.parametrize(
    ("robust", "known"),
    [
        ({"plan": "reweight"}, False),
        ({"plan": "reweight-loss"}, True),  # samples uniformly
        ({"plan": "reweight", "weights": "size"}, True),
    ],
)
def test_what_learned_weights_will_prefer_is_in_the_range(tmp_path, robust, known):
    study = tiny_study(tmp_path, robust=robust)
    cost = costs_of(study, texts_of(one=(2, 2), two=(2, 2), three=(2, 20)), SPEEDS, Budget(1000, {}))["robust"]
    # Half of the three datasets are two: both short ones, or a short one and the long one.
    assert (cost.low, cost.high) == (1.0, 1.0) if known else (cost.low < 0.6 and cost.high > 1.2)


def test_datasets_without_negatives_are_mined_in_an_own_stage(tmp_path):
    study = tiny_study(tmp_path)
    texts = texts_of(one=(2, 10), two=(2, 10), three=(2, 10))
    texts.datasets["one"] = replace(texts.datasets["one"], mined=True, passages=1.0)
    costs = costs_of(study, texts, replace(SPEEDS, search=1.0), Budget(1000, {}))
    assert next(iter(costs)) == "negatives"
    assert costs["negatives"].seconds["encoding"] == 0.5 * (100 * 2 + 100 * 10)
    assert costs["negatives"].seconds["searching"] == 100 * 100


def test_samples_have_the_lengths_that_training_sees(tmp_path):
    study = tiny_study(tmp_path)
    model = load_encoder(study.fill_root(study.model.base))
    texts = sample_study(study, model.tokenizer, 1.5)
    assert {name: dataset.rows for name, dataset in texts.datasets.items()} == {"one": 24, "two": 40, "three": 60}
    one = texts.datasets["one"]
    assert len(one.query_n) == 24 and max(one.query_n) <= 16 and max(one.positive_n) <= 24
    assert one.passages == 7.0 and not one.mined  # a positive and six negatives
    assert (texts.tasks["words"].documents, texts.tasks["words"].queries) == (30, 8)
    assert texts.load_seconds == 1.5 and texts.tokenize_seconds > 0
    assert sample_study(study, model.tokenizer, 0).datasets == texts.datasets  # the same rows each time


def test_large_files_are_judged_by_their_first_rows(tmp_path, monkeypatch):
    study = tiny_study(tmp_path)
    tokenizer = load_encoder(study.fill_root(study.model.base)).tokenizer
    monkeypatch.setattr("tdro.training.estimate_texts.READ", 0)
    monkeypatch.setattr("tdro.training.estimate_texts.SAMPLE", 10)
    texts = sample_study(study, tokenizer, 0)
    assert len(texts.datasets["three"].query_n) == 10
    assert texts.datasets["three"].rows == pytest.approx(60, rel=0.3)
    assert texts.tasks["words"].documents == pytest.approx(30, rel=0.3)
    assert not list(cache_folder().glob("datasets/*/rows.arrow"))


def test_measuring_gives_speeds_also_where_there_is_no_time(tmp_path):
    study = tiny_study(tmp_path)
    model = load_encoder(study.fill_root(study.model.base))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lists = [[1] * length for length in range(2, 40)]
    ticking = itertools.count()
    speeds = measure_speeds(model, pick_device(), Budget(128, {}), lists, tmp_path, 0.0, lambda: float(next(ticking)))
    for curve in (speeds.forward, speeds.backward, speeds.encode):
        assert curve.lengths == sorted(curve.lengths) and all(np.isfinite(curve.seconds)) and min(curve.seconds) > 0
    assert speeds.spread == 0.15 and speeds.proxy == 1.0  # nothing was measured twice
    assert speeds.cut_short and speeds.encode == speeds.forward
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not list(tmp_path.glob("*estimate*"))


def test_what_was_measured_is_kept_and_a_run_takes_it_from_there(tmp_path, monkeypatch):
    study = tiny_study(tmp_path, "static")
    first = estimate.estimate(study)
    assert not study.run_folder.exists()
    monkeypatch.setattr(estimate, "measure_speeds", None)  # called, it would raise
    longer = study.model_copy(update={"weights": study.weights.model_copy(update={"steps": 600})})
    second = estimate.estimate(longer)
    assert second.calibration == first.calibration
    assert second.stages["weights"].seconds > first.stages["weights"].seconds
    run = Run(longer)
    found = estimate.foretell(run)
    written = json.loads((run.folder / "estimate.json").read_text())
    assert found is not None and "about" in str(found)
    assert written["stages"]["weights"]["seconds"] == pytest.approx(second.stages["weights"].seconds, rel=1e-3)
    assert {"seconds", "low", "high"} <= set(written["stages"]["robust"])
    other = tiny_study(tmp_path, "static", data={"passage_max_length": 9})
    assert estimate.foretell(Run(other)) is None  # other texts: nothing was measured for them


def test_workers_share_the_time_at_the_assumed_efficiency(tmp_path):
    study = tiny_study(tmp_path, "static")
    alone, four = (estimate.estimate(study, workers=workers) for workers in (1, 4))
    assert four.seconds == pytest.approx(alone.seconds / (4 * estimate.EFFICIENCY))
    assert four.bill.kwh == pytest.approx(alone.bill.kwh / estimate.EFFICIENCY)
    part = alone.of(("reference", "negatives"))
    assert list(part.stages) == ["reference"] and part.seconds == part.stages["reference"].left
    assert part.bill.kwh == pytest.approx(alone.bill.kwh * part.seconds / alone.seconds)


def test_finished_stages_count_0_and_say_what_they_took(tmp_path):
    study = tiny_study(tmp_path, "static")
    path = tmp_path / "study.yaml"
    path.write_text(save_study(study), encoding="utf-8")
    assert main(["reference", str(path), "-q"]) == 0
    found = estimate.estimate(study)
    marker = json.loads((study.run_folder / "reference" / "done.json").read_text())
    assert (found.stages["reference"].left, found.stages["reference"].real) == (0.0, marker["seconds"])
    assert found.stages["weights"].left == found.stages["weights"].seconds > 0
    assert found.seconds == pytest.approx(sum(stage.left for stage in found.stages.values()))
    other = study.model_copy(update={"reference": study.reference.model_copy(update={"temperature": 0.1})})
    assert estimate.estimate(other).stages["reference"].left > 0


def test_energy_and_money_are_hours_times_the_price_file(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(
        "currency: EUR\nelectricity_per_kwh: 0.5\nmachines:\n"
        "  - {device: h100, watts: 1000, per_hour: 2}\n  - {device: cpu, watts: 10, per_hour: 0.1, per: core}\n"
    )
    prices = read_prices(path)
    gpu = bill(prices, "NVIDIA H100 80GB", 16, 3.0)
    assert (gpu.kwh, gpu.money, gpu.currency) == (3.0, 3 * 2 + 3 * 0.5, "EUR")
    cpu = bill(prices, "cpu", 4, 10.0)
    assert (cpu.kwh, cpu.money) == (pytest.approx(0.4), pytest.approx(4 + 0.2))
    with pytest.raises(ConfigError, match="no such device"):
        bill(prices, "something else", 1, 1.0)
    path.write_text("machines:\n  - {device: cpu, watts: -1, per_hour: 1}\n")
    with pytest.raises(ConfigError, match="greater than or equal to 0"):
        read_prices(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prices(tmp_path / "no.yaml")


def test_what_dominates_is_named():
    cost = Cost({"searching": 1.0, "encoding": 3.0}, 1.0, 1.0, about="4 models")
    assert cost.dominates == "4 models; 75% encoding"
