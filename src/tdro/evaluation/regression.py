"""How useful is each dataset? Random mixtures, a regression of their scores, and how far it can be trusted.

The expensive answer that learned weights are measured against: train with many random mixtures, and regress the score
on the shares. What holds for one set of mixtures should hold for another: that rank agreement is the reliability, and
its root the most that even the truth would agree with what was found. The queries are another matter: see `headroom`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

CONCENTRATION = 0.5
"""Of the Dirichlet distribution that mixtures are drawn from: most of a mixture is a third of the datasets."""
SPLITS = 50
"""Ways to cut the mixtures into halves for the reliability."""
CANDIDATES = 50_000
"""Mixtures among which the best is looked for."""
BEST = 100
"""Candidates whose mean is the best mixture, so that it is not the luckiest of them."""
_FOLDS = 10
_PENALTIES = np.logspace(-4, 2, 25)
_SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "share": lambda p: p,
    "root of the share": np.sqrt,
    "logarithm of the share": lambda p: np.log(p + 0.01),
}
"""How the score may depend on a share; a concave shape says that the first examples of a dataset help most."""


@dataclass(frozen=True)
class Usefulness:
    """What random mixtures say about each dataset.

    Attributes:
        names: Datasets, G of them.
        slope_G: Score gained per unit of share taken from all datasets alike, at the uniform mixture; their mean is 0.
        shape: How the score depends on the shares.
        explained: Cross-validated R^2: share of the variance between mixtures that the regression foresees; of three
            shapes the best, so a little too high.
        reliability: Mean Spearman correlation of the slopes between two disjoint halves of the mixtures.
        best_G: The mixture that the regression expects most of, as the mean of the best hundred of many.
        expected: Score that it expects of it.
        uniform: Score that it expects of the uniform mixture.
    """

    names: tuple[str, ...]
    slope_G: np.ndarray
    shape: str
    explained: float
    reliability: float
    best_G: np.ndarray
    expected: float
    uniform: float

    @property
    def full_reliability(self) -> float:
        """The reliability that all mixtures together have, from that of halves; 0 where that is negative.

        Source: Spearman and Brown (1910), for twice the length.
        """
        halves = max(self.reliability, 0.0)
        return 2 * halves / (1 + halves)

    @property
    def ceiling(self) -> float:
        """The agreement that the true usefulness would have with this one: the root of the full reliability.

        It knows the noise of trainings and of too few mixtures, not that of the queries.

        Source: Spearman (1904), the correction for attenuation.
        """
        return float(np.sqrt(self.full_reliability))

    def agreement(self, weights: Mapping[str, float]) -> float:
        """Compute the Spearman correlation of weights with the slopes.

        Raises:
            KeyError: A dataset has no weight.
        """
        return rank_agreement([weights[name] for name in self.names], self.slope_G)


@dataclass(frozen=True)
class Headroom:
    """How much mixtures differ, and how much of that is more than the luck of the queries.

    Attributes:
        deviation: Standard deviation of the score between mixtures.
        agreement: Correlation, over the mixtures, of the scores on two halves of the queries.
        shared: Standard deviation of what both halves have in common: the root of their covariance, 0 where it is
            negative. Differences between mixtures beyond it are gone with other queries. What is shared is the mixture
            and the luck of one training: compare it with the deviation between seeds.
    """

    deviation: float
    agreement: float
    shared: float


def headroom(score_M: np.ndarray, one_M: np.ndarray, other_M: np.ndarray) -> Headroom:
    """Compare the scores of mixtures on two halves of the queries.

    Args:
        score_M: Score of every mixture on all queries.
        one_M: On one half of them.
        other_M: On the other half.

    Example: the halves disagree on everything, so there is nothing to be gained.
        >>> headroom(np.array([1.0, 1.0, 1.0]), np.array([0.0, 1.0, 2.0]), np.array([2.0, 1.0, 0.0]))
        Headroom(deviation=0.0, agreement=-1.0, shared=0.0)
    """
    covariance = np.cov(one_M, other_M)
    spread = float(np.sqrt(covariance[0, 0] * covariance[1, 1]))
    return Headroom(
        float(score_M.std(ddof=1)),
        float(covariance[0, 1]) / spread if spread else 0.0,
        float(np.sqrt(max(covariance[0, 1], 0.0))),
    )


def random_mixtures(groups: int, count: int, seed: int, concentration: float = CONCENTRATION) -> np.ndarray:
    """Draw mixtures from a symmetric Dirichlet distribution.

    Args:
        groups: Datasets.
        count: Mixtures, M.
        seed: Mixture i is the same whatever the count.
        concentration: Small: few datasets make up most of a mixture; large: all are near uniform.

    Returns:
        float64 [M, G], each row sums to 1.

    Example:
        >>> mixtures = random_mixtures(3, 2, seed=0)
        >>> mixtures.shape, bool(np.allclose(mixtures.sum(axis=1), 1))
        ((2, 3), True)
    """
    drawn = [np.random.default_rng([seed, i]).dirichlet(np.full(groups, concentration)) for i in range(count)]
    return np.array(drawn).reshape(count, groups)


def fit_usefulness(
    names: Sequence[str],
    mixture_MG: np.ndarray,
    score_M: np.ndarray,
    seed: int = 0,
    concentration: float = CONCENTRATION,
) -> Usefulness:
    """Regress scores on mixtures.

    Ridge regression; the penalty is chosen by leave-one-out error, the shape by ten-fold cross-validation.

    Args:
        names: Datasets.
        mixture_MG: The mixtures, at least 20.
        score_M: The score that each led to.
        seed: Of folds, halves and candidates.
        concentration: Of the mixtures; candidates for the best go from there to near uniform.

    Returns:
        The usefulness.

    Raises:
        ValueError: There are too few mixtures, or all scores are equal.
    """
    if len(score_M) < 2 * _FOLDS:
        raise ValueError(f"{len(score_M)} mixtures are too few to tell anything; at least {2 * _FOLDS} are needed")
    if np.ptp(score_M) == 0:
        raise ValueError("all mixtures have the same score")
    explained = {shape: _explained(shape, mixture_MG, score_M, seed) for shape in _SHAPES}
    shape = max(explained, key=lambda name: explained[name])
    model, groups = _fit(shape, mixture_MG, score_M), len(names)
    uniform_1G = np.full((1, groups), 1 / groups)
    slope_G = _slopes(shape, mixture_MG, score_M)
    best_G = _best(lambda p: model.predict(_SHAPES[shape](p)), groups, seed, concentration)
    expected, uniform = (float(model.predict(_SHAPES[shape](p))[0]) for p in (best_G[None], uniform_1G))
    reliability = _reliability(shape, mixture_MG, score_M, seed)
    return Usefulness(tuple(names), slope_G, shape, explained[shape], reliability, best_G, expected, uniform)


def rank_agreement(first_G: Sequence[float] | np.ndarray, second_G: Sequence[float] | np.ndarray) -> float:
    """Compute Spearman's rank correlation; 0 where one side has no order at all.

    Example:
        >>> rank_agreement([1, 2, 3], [10, 30, 20]), rank_agreement([1, 1, 1], [1, 2, 3])
        (0.5, 0.0)
    """
    if np.ptp(first_G) == 0 or np.ptp(second_G) == 0:
        return 0.0
    return float(spearmanr(first_G, second_G).statistic)


def _fit(shape: str, mixture_MG: np.ndarray, score_M: np.ndarray) -> Any:
    """Fit the regression."""
    from sklearn.linear_model import RidgeCV

    return RidgeCV(_PENALTIES).fit(_SHAPES[shape](mixture_MG), score_M)


def _explained(shape: str, mixture_MG: np.ndarray, score_M: np.ndarray, seed: int) -> float:
    """Cross-validated R^2 of a shape."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict

    folds = KFold(_FOLDS, shuffle=True, random_state=seed)
    foreseen_M = cross_val_predict(RidgeCV(_PENALTIES), _SHAPES[shape](mixture_MG), score_M, cv=folds)
    return float(1 - ((score_M - foreseen_M) ** 2).sum() / ((score_M - score_M.mean()) ** 2).sum())


def _slopes(shape: str, mixture_MG: np.ndarray, score_M: np.ndarray) -> np.ndarray:
    """Slopes at the uniform mixture, less their mean."""
    groups, step = mixture_MG.shape[1], 1e-6
    rise = (_SHAPES[shape](np.array(1 / groups + step)) - _SHAPES[shape](np.array(1 / groups - step))) / (2 * step)
    coefficient_G: np.ndarray = _fit(shape, mixture_MG, score_M).coef_
    slope_G: np.ndarray = (coefficient_G - coefficient_G.mean()) * float(rise)
    return slope_G


def _reliability(shape: str, mixture_MG: np.ndarray, score_M: np.ndarray, seed: int) -> float:
    """Rank agreement of the slopes between halves of the mixtures, mean over many ways to halve them."""
    random, half, found = np.random.default_rng(seed), len(score_M) // 2, []
    for _ in range(SPLITS):
        order_M = random.permutation(len(score_M))
        sides = [order_M[:half], order_M[half : 2 * half]]
        found.append(rank_agreement(*(_slopes(shape, mixture_MG[side], score_M[side]) for side in sides)))
    return float(np.mean(found))


def _best(foresee: Callable[[np.ndarray], np.ndarray], groups: int, seed: int, concentration: float) -> np.ndarray:
    """Average the most promising of many mixtures, from nearly uniform ones to the kind that was tried.

    Source: the way of RegMix (arXiv 2407.01492, section 3.3).
    """
    random = np.random.default_rng(seed)
    concentration_C = np.exp(random.uniform(np.log(concentration), np.log(max(20.0, concentration)), CANDIDATES))
    gamma_CG = random.standard_gamma(concentration_C[:, None], (CANDIDATES, groups))
    candidate_CG = gamma_CG / gamma_CG.sum(axis=1, keepdims=True)
    best_CG = candidate_CG[np.argsort(-foresee(candidate_CG), kind="stable")[:BEST]]
    best_G: np.ndarray = best_CG.mean(axis=0)
    return best_G
