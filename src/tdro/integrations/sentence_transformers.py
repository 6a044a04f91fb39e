"""tdro for people who train with `SentenceTransformerTrainer`: batches drawn by weight, and a loss that learns weights.

The trainer's own samplers know no weights, give every rank another dataset at the same time, and after a stop on
several ranks go on with the rows of the first epoch. The batches here are pure functions of seed and step.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sized
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers.base.sampler import DefaultBatchSampler, MultiDatasetDefaultBatchSampler
from torch.utils.data import BatchSampler, ConcatDataset

from tdro.config import fingerprint
from tdro.data.mixture import HomogeneousMixture, MixedMixture, Mixture
from tdro.data.weights_file import match_weights, read_weights
from tdro.errors import ConfigError, DataError
from tdro.integrations.robust_loss import RobustCallback, RobustLoss, refuse_unnamed, with_groups

__all__ = ["MixedBatches", "MixtureBatchSampler", "RobustCallback", "RobustLoss", "WeightedBatches", "with_groups"]


class MixtureBatchSampler(MultiDatasetDefaultBatchSampler):
    """Yields the batches of a mixture, cut into the slices of the ranks. Made by `WeightedBatches` or `MixedBatches`.

    accelerate gives rank r every so many-th batch, beginning with the r-th. So the R slices of one global batch follow
    each other, and all ranks see the same step. Epochs follow each other without a seam: epoch e begins with step
    e * steps, and nothing else is remembered.

    Args:
        dataset: The trainer's datasets, joined.
        batch_samplers: The trainer's samplers, one per dataset; only their batch size is used.
        mixture: Makes the mixture from the size of a global batch and the seed.
        steps: Global batches per epoch; by default as many as hold as many rows as there are.
        ranks: Slices of a global batch.
        generator: Not used.
        seed: Decides everything.
    """

    def __init__(
        self,
        dataset: ConcatDataset[Any],
        batch_samplers: list[BatchSampler],
        mixture: Callable[..., Mixture],
        steps: int | None,
        ranks: int,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, batch_samplers, generator, seed)
        self._mixture, self._ranks = mixture, ranks
        self._steps = steps or max(1, len(dataset) // (self.batch_size * ranks))
        # After a stop, accelerate wraps a rank's sampler twice, and the trainer's set_epoch does not get through to it;
        # but accelerate also tells the dataset, if that wants to know.
        dataset.set_epoch = self.set_epoch  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield rows of the joined dataset, a batch of a rank at a time."""
        ends = np.array(self.dataset.cumulative_sizes)
        starts = np.concatenate([[0], ends[:-1]])
        mixture = self._mixture(batch_size=self.batch_size * self._ranks, seed=self.seed)
        for step in range(self.epoch * self._steps, (self.epoch + 1) * self._steps):
            draw = mixture.draw(step)
            yield from (starts[draw.dataset_B] + draw.row_B).reshape(self._ranks, -1).tolist()

    def __len__(self) -> int:
        """Count the batches of an epoch, those of all ranks together."""
        return self._steps * self._ranks


class _Batches:
    """What both kinds of batches share: names and sizes, checked when the trainer asks for its sampler.

    It is pickled with the training arguments, so it keeps no rows.
    """

    def __init__(self, datasets: Mapping[str, Sized], steps: int | None, ranks: int | None) -> None:
        refuse_unnamed(datasets)
        self.sizes = {name: len(rows) for name, rows in datasets.items()}
        empty = [name for name, size in self.sizes.items() if size == 0]
        if empty or not self.sizes:
            raise DataError("a dataset has no rows", saw=empty or "no dataset", do="leave it out")
        for name, number in (("steps", steps), ("ranks", ranks)):
            if number is not None and number < 1:
                raise ConfigError("must be at least 1", where=name, saw=number, do="leave it out for the default")
        self._first = [_first_row(rows) for rows in datasets.values()]
        self._steps, self._ranks = steps, ranks

    def mixture(self) -> Callable[..., Mixture]:
        """Return what makes the mixture from `batch_size` and `seed`."""
        raise NotImplementedError

    def __call__(
        self,
        dataset: ConcatDataset[Any],
        batch_samplers: list[BatchSampler],
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> MixtureBatchSampler:
        """Make the sampler; the trainer does this.

        Raises:
            ConfigError: The trainer has other datasets, or a `batch_sampler` that would not be heeded.
        """
        do = "give the very dictionary that the trainer gets as train_dataset"
        sizes = [len(rows) for rows in dataset.datasets]  # type: ignore[arg-type]
        if sizes != list(self.sizes.values()):
            raise ConfigError("the trainer has other datasets", where="train_dataset", saw=sizes, do=do)
        pairs = zip(self.sizes, self._first, map(_first_row, dataset.datasets), strict=True)
        moved = [name for name, ours, theirs in pairs if ours and theirs and ours != theirs]
        if moved:
            what = "the trainer has other datasets, or has them in another order"
            raise ConfigError(what, where="train_dataset", saw=f"other rows than those of {', '.join(moved)}", do=do)
        special = [type(sampler).__name__ for sampler in batch_samplers if type(sampler) is not DefaultBatchSampler]
        if special:
            do = "leave batch_sampler at its default: the mixture draws the rows of a batch itself"
            raise ConfigError("this batch_sampler would have no effect", where="batch_sampler", saw=special[0], do=do)
        ranks = self._ranks or int(os.environ.get("WORLD_SIZE", "1"))
        return MixtureBatchSampler(dataset, batch_samplers, self.mixture(), self._steps, ranks, generator, seed)


class WeightedBatches(_Batches):
    """Homogeneous batches whose dataset is drawn by weight (stages 0 and 2), for `multi_dataset_batch_sampler`.

    All ranks see the same dataset at the same time. After t steps every dataset has had its weight times t of them,
    give or take one. Sizes do not matter: a small dataset repeats, in a new order each time.

    Args:
        weights: {dataset: weight}, a weights file, a preset, or the folder of a run; a dataset without one is not used.
        datasets: What the trainer gets as `train_dataset`.
        steps: Global batches per epoch of the trainer; by default as many as hold as many rows as there are.
        ranks: Processes; by default as many as the launcher started. 1 with `split_batches` of accelerate.

    Raises:
        ConfigError: The weights cannot be read, name an unknown dataset, or are all 0.
        DataError: A dataset is empty.

    Example:
        args = SentenceTransformerTrainingArguments(
            output_dir="out", multi_dataset_batch_sampler=WeightedBatches("runs/mine", train_dataset)
        )

    Source: paper, stages 0 and 2; see `tdro.data.mixture.HomogeneousMixture`.
    """

    def __init__(
        self,
        weights: Mapping[str, float] | str | Path,
        datasets: Mapping[str, Sized],
        *,
        steps: int | None = None,
        ranks: int | None = None,
    ) -> None:
        super().__init__(datasets, steps, ranks)
        self.probabilities = _probabilities(weights, list(self.sizes))

    def mixture(self) -> Callable[..., Mixture]:
        """Return what makes the mixture from `batch_size` and `seed`."""
        return partial(HomogeneousMixture, self.sizes, self.probabilities)


class MixedBatches(_Batches):
    """Batches in which every query draws its dataset, each equally likely (stage 1), for `multi_dataset_batch_sampler`.

    The rows must say which dataset they are of, see `with_groups`, and all datasets must have the same columns.

    Args:
        datasets: What the trainer gets as `train_dataset`.
        stratified: Every batch has as many queries of each dataset, give or take one.
        steps: Global batches per epoch of the trainer; by default as many as hold as many rows as there are.
        ranks: Processes; by default as many as the launcher started. 1 with `split_batches` of accelerate.

    Raises:
        DataError: A dataset is empty.

    Source: paper, stage 1; see `tdro.data.mixture.MixedMixture`.
    """

    def __init__(
        self,
        datasets: Mapping[str, Sized],
        *,
        stratified: bool = False,
        steps: int | None = None,
        ranks: int | None = None,
    ) -> None:
        super().__init__(datasets, steps, ranks)
        self._sampling: Literal["stratified", "uniform"] = "stratified" if stratified else "uniform"

    def mixture(self) -> Callable[..., Mixture]:
        """Return what makes the mixture from `batch_size` and `seed`."""
        return partial(MixedMixture, self.sizes, sampling=self._sampling)


def _first_row(rows: Any) -> str:
    """Identify a dataset by the texts of its first row, without any transform; empty where it tells none."""
    if not hasattr(rows, "with_format") or not len(rows):
        return ""
    texts = {column: text for column, text in rows.with_format(None)[0].items() if isinstance(text, str)}
    return fingerprint(texts) if texts else ""


def _probabilities(weights: Mapping[str, float] | str | Path, names: list[str]) -> dict[str, float]:
    """Find the weights of datasets, normalised."""
    source = "weights"
    if not isinstance(weights, Mapping):
        file = Path(weights, "weights", "weights.json")
        source = str(file if file.exists() else weights)
        weights = read_weights(source)
    matched = match_weights(weights, names, source)
    values_G = np.array(list(matched.values()), np.float64)
    if not np.isfinite(values_G).all() or (values_G < 0).any() or values_G.sum() <= 0:
        do = "give finite weights that are not negative and not all 0"
        raise ConfigError("these are no weights", where=source, saw=matched, do=do)
    return dict(zip(matched, (values_G / values_G.sum()).tolist(), strict=True))
