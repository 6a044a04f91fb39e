"""Stage 1 against an exact slow version of itself: one query at a time, formulas written out."""

import json
from typing import get_args

import numpy as np
import pytest
import torch
from studies import tiny_study

from tdro.core.groups import group_statistics
from tdro.core.measures import relative, sample_measure
from tdro.core.rule import Measure, Update
from tdro.core.updates import clip_l2, eg, initial_state
from tdro.data.mixture import MixedMixture
from tdro.errors import ConfigError, TdroError
from tdro.models.encoder import embed
from tdro.training.negatives import negatives
from tdro.training.reference_scores import Batches, LiveScores
from tdro.training.robust_step import RobustStep
from tdro.training.run import Run
from tdro.training.texts import TextSource
from tdro.training.weight_learner import WeightLearner, make_rule


def make_step(folder, max_tokens: int = 120, family: str = "bert", **weights):
    """A robust step in float64 without dropout, and what it was made of; every passage has a score."""
    study = tiny_study(folder, family, weights=weights, model={"precision": "float64"})
    give_scores(folder / "root" / "train")
    run = Run(study)
    rows = negatives(run)
    proxy, reference = run.load_base(), run.load_base()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.05)
    mixture = MixedMixture({name: len(r) for name, r in rows.items()}, 8, study.seed)
    source = TextSource(rows, study.data, proxy, study.seed)
    sizes = {name: len(r) for name, r in rows.items()}
    learner = WeightLearner(list(rows), study.weights, make_rule(study.weights, sizes, 48))
    batches = Batches(rows, mixture, source, study.seed, study.weights.steps)
    live = LiveScores(reference, run)
    step = RobustStep(proxy, batches, live, study.weights, learner, run.device, max_tokens)
    return step, proxy, reference, source, mixture, study.weights


def give_scores(folder) -> None:
    """Write a score beside every passage."""
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for i, row in enumerate(rows):
            for j, passage in enumerate([*row["positive_passages"], *row["negative_passages"]]):
                passage["score"] = (5 * i + 3 * j) % 7 / 2
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


DISTILLED = {"distillation": 0.6, "loss_factor": 0.5, "teacher_temperature": 1.5}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {}),
        ("qwen2", {}),
        ("static", {}),
        ("static", {"measure": "relative"}),
        ("static", DISTILLED),
        ("bert", {"distillation": 1.0, "loss_factor": 0.0}),
    ],
)
def test_gradient_and_weights_equal_the_slow_version(tmp_path, family, options):
    step, proxy, reference, source, mixture, config = make_step(tmp_path, family=family, **options)
    step.backward(0, 0)
    fast = {name: p.grad.clone() for name, p in proxy.named_parameters() if p.grad is not None}
    proxy.zero_grad(set_to_none=True)

    draw = mixture.draw(0)
    texts = source.texts(draw, config.passages_per_query)
    losses: dict[str, list[torch.Tensor]] = {"proxy": [], "reference": []}
    start = 0
    for query, count in zip(texts.queries_B, texts.count_B.tolist(), strict=True):
        for name, model in (("proxy", proxy), ("reference", reference)):
            q = embed(model, [query])[0]
            logits = (
                torch.stack([q @ embed(model, [p])[0] for p in texts.passages_P[start : start + count]])
                / config.temperature
            )
            teacher = torch.softmax(texts.score_P[start : start + count] / config.teacher_temperature, 0)
            divergence = (teacher * (teacher.log() - torch.log_softmax(logits, 0))).sum()
            infonce = -torch.log_softmax(logits, 0)[0]
            losses[name].append(config.loss_factor * infonce + config.distillation * divergence)
        start += count
    group_B = torch.from_numpy(draw.dataset_B)
    means = [
        torch.stack([x for x, g in zip(losses["proxy"], group_B, strict=True) if g == k]).mean()
        for k in group_B.unique()
    ]
    (sum(means) / 3).backward()  # the weights are uniform in the first step
    assert fast.keys() == {name for name, p in proxy.named_parameters() if p.grad is not None}
    for name, parameter in proxy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(fast[name], parameter.grad, rtol=1e-8, atol=1e-10)

    proxy_B, reference_B = torch.stack(losses["proxy"]).detach(), torch.stack(losses["reference"]).detach()
    statistics = group_statistics(proxy_B, reference_B, group_B, 3)
    signal_G = (
        relative(statistics, 0.01)
        if config.measure == "relative"
        else sample_measure(proxy_B.numpy(), reference_B.numpy(), group_B.numpy(), 3)
    )
    expected = eg(initial_state(np.ones(3)), clip_l2(signal_G, 1.0), config.step_size, statistics.present_G)
    np.testing.assert_allclose(step.learner.weights.weights_G, expected.weights_G, rtol=1e-9)


def test_micro_batches_change_nothing_but_rounding(tmp_path):
    found = []
    for max_tokens in (1, 100, 100_000):
        step, proxy, *_ = make_step(tmp_path, max_tokens)
        step.backward(0, 0)
        gradient = torch.cat([p.grad.flatten() for p in proxy.parameters() if p.grad is not None])
        found.append((gradient, step.learner.weights.weights_G))
    for gradient, weights_G in found[1:]:
        torch.testing.assert_close(gradient, found[0][0], rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(weights_G, found[0][1], rtol=1e-9)


def test_reference_is_frozen_and_without_dropout(tmp_path):
    step, _, reference, *_ = make_step(tmp_path)
    step.backward(0, 0)
    assert not reference.training and all(p.grad is None and not p.requires_grad for p in reference.parameters())


def test_weights_hold_no_graph_and_state_survives_json_exactly(tmp_path):
    step, *_ = make_step(tmp_path)
    step.backward(0, 0)
    state = json.loads(json.dumps(step.state()))
    before = step.learner.weights
    step.restore(state)
    for a, b in zip(before[:3], step.learner.weights[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    assert step.learner.weights.updates == 1


def weights_after(folder, steps: int = 3, **changes) -> np.ndarray:
    """Weights after some steps with changed settings; the proxy itself is not trained."""
    step, *_ = make_step(folder, 100_000, **{"steps": 3, **changes})
    for number in range(steps):
        step.backward(number, 0)
    return step.learner.weights.weights_G


@pytest.mark.parametrize(
    ("before", "change"),
    [
        *(({}, {"measure": name}) for name in get_args(Measure) if name != "relative-sample"),
        *(({}, {"update": name}) for name in get_args(Update) if name not in ("eg", "sgd")),
        ({}, {"step_size": 0.5}),
        ({}, {"step_schedule": "linear"}),
        ({}, {"step_warmup": 2}),
        ({"step_schedule": "cosine"}, {"final_step_share": 0.5}),
        ({}, {"clip": "element"}),
        ({}, {"clip": "none"}),
        ({}, {"clip_norm": 0.1}),
        ({"measure": "relative"}, {"shrinkage": 1.0}),
        ({"clip": "none"}, {"reference_norm": 2}),  # the clip takes a common factor out
        ({"measure": "target"}, {"targets": {"two": 3.0}}),
        ({"update": "eg-mix"}, {"mix": 0.5}),
        ({"update": "anchored"}, {"pull": 30.0}),
        ({}, {"distillation": 1.0}),
        ({"distillation": 1.0}, {"teacher_temperature": 9.0}),
        ({"distillation": 1.0}, {"loss_factor": 0.0}),
        ({"measure": "excess", "clip": "none"}, {"loss_factor": 2.0}),
        ({}, {"floor": 0.33}),
        ({}, {"cap": 0.34}),
    ],
    ids=lambda settings: "-".join(f"{k}={v}" for k, v in settings.items()) or "default",
)
def test_every_setting_of_the_rule_moves_the_weights(tmp_path, before, change):
    assert (weights_after(tmp_path, **before) != weights_after(tmp_path, **{**before, **change})).any()


def test_sgd_is_eg(tmp_path):
    np.testing.assert_allclose(weights_after(tmp_path), weights_after(tmp_path, update="sgd"), rtol=1e-12)


def test_bounds_hold_and_max_epochs_caps_by_size(tmp_path):
    weights_G = weights_after(tmp_path, step_size=5.0, clip="none", floor=0.2, cap=0.5)
    assert weights_G.min() >= 0.2 - 1e-15 and weights_G.max() <= 0.5 + 1e-15
    # 48 queries in the robust run, datasets of 24, 40 and 60 rows: half an epoch caps them at 1/4, 5/12 and 5/8.
    weights_G = weights_after(tmp_path, step_size=5.0, clip="none", max_epochs=0.5)
    assert (weights_G <= np.array([0.25, 5 / 12, 0.625]) + 1e-12).all() and weights_G.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"floor": 0.5}, "no weights keep"),
        ({"cap": 0.2}, "no weights keep"),
        ({"max_epochs": 0.1}, "need more than"),
        ({"targets": {"four": 1.0}}, "unknown dataset"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, change, what):
    with pytest.raises(ConfigError, match=what):
        make_step(tmp_path, **change)


def test_a_loss_that_is_not_finite_stops_the_step_with_dataset_and_step_named(tmp_path):
    step, proxy, *_ = make_step(tmp_path)
    with torch.no_grad():
        next(p for p in proxy.parameters() if p.ndim > 1).fill_(float("nan"))
    with pytest.raises(TdroError, match=r"step 4") as error:
        step.backward(4, 0)
    assert any(name in str(error.value) for name in ("one", "two", "three"))
