"""Selection: what margins allow, in which order candidates are looked at, what is refused."""

import numpy as np
import pytest

from tdro.errors import ConfigError
from tdro.prepare.margins import Selection, choose
from tdro.prepare.mining_report import Spread


def test_ceiling_is_the_stricter_of_both_margins() -> None:
    positives = np.array([0.9, 0.5])
    assert Selection(relative_margin=0.1).ceiling(positives) == pytest.approx(0.45)
    assert Selection(absolute_margin=0.2).ceiling(positives) == pytest.approx(0.3)
    assert Selection(relative_margin=0.1, absolute_margin=0.2).ceiling(positives) == pytest.approx(0.3)
    assert Selection().ceiling(positives) == np.inf


def test_relative_margin_never_allows_more_than_the_positive_has() -> None:
    for worst in (-3.0, -0.1, 0.0, 0.1, 3.0):
        ceiling = Selection(relative_margin=0.2).ceiling(np.array([worst]))
        assert ceiling <= worst and ceiling == pytest.approx(worst - 0.2 * abs(worst))


def test_order_starts_with_the_plain_draw_and_holds_everybody_once() -> None:
    plain, careful = Selection(negatives=5), Selection(negatives=5, max_score=1)
    order = careful.order(20, "seed", 1)
    assert order[:5].tolist() == plain.order(20, "seed", 1).tolist()
    assert sorted(order.tolist()) == list(range(20))
    assert order.tolist() != careful.order(20, "seed", 2).tolist()


def test_every_order_is_equally_likely() -> None:
    counts = np.zeros((4, 4))
    for key in range(4000):
        counts[np.arange(4), Selection(negatives=2, max_score=1).order(4, key)] += 1
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75))


def test_no_score_is_asked_for_in_vain() -> None:
    selection = Selection(negatives=2, max_score=0.5)
    scores = [np.array([0.9, 0.1, 0.8, 0.2, 0.3]), np.array([0.1, 0.2, 0.3]), np.array([0.9])]
    asked: list[list[list[int]]] = []

    def score(parts: list[np.ndarray]) -> list[np.ndarray]:
        asked.append([part.tolist() for part in parts])
        return [of_row[part] for of_row, part in zip(scores, parts, strict=True)]

    orders = [np.arange(5), np.array([2, 0, 1]), np.arange(1)]
    choices = choose(selection, orders, [np.inf] * 3, score, at_once=False)
    assert asked == [[[0, 1], [2, 0], [0]], [[2], [], []], [[3], [], []]]
    assert [choice.places.tolist() for choice in choices] == [[1, 3], [0, 2], []]
    assert [choice.scores.tolist() for choice in choices] == [[0.1, 0.2], [0.1, 0.3], []]
    assert [choice.outside_limits for choice in choices] == [2, 0, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"ranks": (5, 5)}, {"ranks": (-1, 5)}, {"negatives": 0}, {"sampling": "best"}, {"relative_margin": 1.0},
        {"relative_margin": -0.1}, {"absolute_margin": -1.0}, {"min_score": 0.5, "max_score": 0.4},
    ],
)  # fmt: skip
def test_impossible_selections_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        Selection(**options)


def test_percentiles_of_a_long_stream_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdro.prepare.mining_report._KEPT", 1000)
    spread, scores = Spread(), np.random.default_rng(0).permutation(100_000).astype(np.float32)
    for start in range(0, len(scores), 777):
        spread.add(scores[start : start + 777])
    assert spread.count == 100_000 and spread.mean == pytest.approx(49_999.5)
    assert sum(map(len, spread._kept)) <= 1000
    kept = np.concatenate(spread._kept)
    assert kept.tolist() == scores[:: spread._step].tolist()
    assert spread.percentiles["50"] == pytest.approx(50_000, abs=5_000)
    assert Spread().percentiles == {} and Spread().mean is None
