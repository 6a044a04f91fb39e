"""Stage 1 as a loss for `SentenceTransformerTrainer`; imported from `tdro.integrations.sentence_transformers`."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util.distributed import all_gather, get_world_size
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tdro.core.groups import GroupStatistics, group_statistics
from tdro.core.losses import hard_negative_loss, own_similarities
from tdro.core.objective import pooled_example_weights
from tdro.core.rule import SAMPLE_MEASURES, Rule, StepLosses
from tdro.core.updates import WeightState, initial_state
from tdro.errors import ConfigError, DataError, TdroError

_LABELS = ("label", "labels", "score", "scores")
"""Columns that the trainer takes for labels."""
_ALONE = 5
"""Steps of a single dataset in a row that are no accident."""


def with_groups(datasets: Mapping[str, Any]) -> dict[str, Any]:
    """Add a column `label` to `datasets.Dataset`s: the number of the dataset, which is all that a loss gets to see.

    Args:
        datasets: Name -> rows with the columns query, positive, negative, ... in this order, whatever their names.

    Raises:
        ConfigError: It is no dictionary.
        DataError: A dataset has labels already, or other columns than the first.
    """
    refuse_unnamed(datasets)
    first = next(iter(datasets.values())).column_names if datasets else []
    for name, rows in datasets.items():
        if labels := [column for column in rows.column_names if column in _LABELS]:
            raise DataError("the column is needed for the dataset's number", where=name, saw=labels, do="remove it")
        if rows.column_names != first:
            do = f"rename or select columns so that it has {first}"
            raise DataError("a mixed batch needs the same columns", where=name, saw=rows.column_names, do=do)
    return {
        name: rows.add_column("label", np.full(len(rows), number))
        for number, (name, rows) in enumerate(datasets.items())
    }


def refuse_unnamed(datasets: object) -> None:
    """Refuse datasets without names: what has no name gets no weight."""
    if not isinstance(datasets, Mapping):
        do = "give {'name': dataset, ...}, and the same to the trainer as train_dataset"
        raise ConfigError("datasets come as a dictionary", where="datasets", saw=type(datasets).__name__, do=do)


class RobustLoss(nn.Module):
    """Stage 1 as a loss: the model is the proxy, and what it loses against a frozen reference moves the weights.

    The loss of a batch is sum_g alpha_g * mean loss of dataset g, with each query's loss over its own negatives only.
    Mean losses are taken over the batch of all ranks. After the optimizer's step `advance` moves the weights; give the
    trainer `callbacks=[RobustCallback(loss)]`, which does it and keeps the weights in its checkpoints.

    What a loss of theirs cannot do: with gradient accumulation the means are taken within each micro-batch (the weights
    still move once per step, by the sums of all); every row has as many negatives; the reference computes in every
    step, where `tdro run` keeps its similarities.

    Args:
        model: The model in training.
        reference: Fine-tuned with uniform sampling, of the same tokenizer. Frozen here.
        datasets: Names, in the order of the labels; see `with_groups`.
        temperature: tau; sentence-transformers' scale is 1 / tau. The paper has 0.002, for large models.
        step_size: eta.
        rule: How losses become weights; default: the paper's ratio of means (`relative`), with the shrinkage of
            `tdro run`, whose own default (`relative-sample`) needs the losses of every query.

    Raises:
        ConfigError: Reference and model do not fit, or the measure needs the losses of every query.

    Source: paper, equations (1) to (5).
    """

    def __init__(
        self,
        model: SentenceTransformer,
        reference: SentenceTransformer,
        datasets: Iterable[str],
        *,
        temperature: float = 0.02,
        step_size: float = 0.02,
        rule: Rule | None = None,
    ) -> None:
        super().__init__()
        self._names = list(datasets)
        uniform_G = np.full(len(self._names), 1 / len(self._names))
        self._rule = rule or Rule("relative", "eg", prior_G=uniform_G, target_G=0 * uniform_G, shrinkage=0.01)
        _refuse_misfits(model, reference, self._rule)
        self.model, self.reference = model, reference.requires_grad_(False).eval()
        self.temperature, self.step_size = temperature, step_size
        bounds = self._rule.bounds
        self.state: WeightState = initial_state(bounds.project(uniform_G) if bounds else uniform_G)
        self._initial_loss_G = np.full(len(self._names), np.nan)
        self._seen = GroupStatistics.zeros(len(self._names))
        self._driven, self._alone = False, 0

    @property
    def weights(self) -> dict[str, float]:
        """Dataset -> weight; what `WeightedBatches` and `tdro run` (`robust.weights`) take, as JSON."""
        return dict(zip(self._names, self.state.weights_G.tolist(), strict=True))

    def forward(self, features: Iterable[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
        """Compute the weighted loss of a batch.

        Args:
            features: Tokens of query, positive and negatives, as the trainer gives them.
            labels: [B] int64, number of each query's dataset.

        Returns:
            The loss; under DDP, which averages gradients, times the number of ranks.

        Raises:
            ConfigError: Rows without number or negative, or nobody calls `advance`.
            TdroError: A loss is not finite.
        """
        columns = list(features)
        group_B = self._groups(columns, labels)
        proxy_B = self._losses(self.model, columns)
        if not torch.is_grad_enabled():  # evaluation, one dataset at a time: its weight is no part of how good it is
            return proxy_B.mean()
        with torch.no_grad():
            reference_B = self._losses(self.reference, columns)
        statistics = group_statistics(proxy_B.detach().cpu(), reference_B.cpu(), group_B, len(self._names))
        statistics = _of_all_ranks(statistics, proxy_B.device)
        if statistics.bad_G.any():
            bad = [name for name, count in zip(self._names, statistics.bad_G, strict=True) if count]
            raise TdroError("losses are not finite", where="RobustLoss", saw=bad, do="lower the learning rate")
        self._seen = self._seen + statistics
        count_G = torch.from_numpy(statistics.count_G)
        factor_B = pooled_example_weights(torch.from_numpy(self.state.weights_G), count_G, group_B).to(proxy_B)
        return get_world_size() * (factor_B * proxy_B).sum()

    def advance(self) -> None:
        """Move the weights by what was seen since the last call: after each optimizer step, and once before the first.

        Raises:
            TdroError: A ratio divides by 0.
        """
        self._driven = True
        statistics, self._seen = self._seen, GroupStatistics.zeros(len(self._names))
        if not statistics.present_G.any():
            return
        self._alone = self._alone + 1 if statistics.present_G.sum() == 1 < len(self._names) else 0
        if self._alone == _ALONE:
            do = "give the arguments multi_dataset_batch_sampler=MixedBatches(with_groups(datasets))"
            saw = f"{_ALONE} steps of a single dataset each"
            raise ConfigError("no weight can move: batches do not mix datasets", where="RobustLoss", saw=saw, do=do)
        unseen_G = np.isnan(self._initial_loss_G) & statistics.present_G
        self._initial_loss_G = np.where(unseen_G, statistics.proxy_mean_G, self._initial_loss_G)
        nothing = np.empty(0)
        try:
            signal_G = self._rule.signal(StepLosses(statistics, nothing, nothing, nothing), self._initial_loss_G)
        except ValueError as error:
            raise TdroError(str(error), where="RobustLoss", do="give the rule a shrinkage above 0") from None
        self.state = self._rule.move(self.state, signal_G, self.step_size, statistics.present_G)

    def train(self, mode: bool = True) -> "RobustLoss":
        """Switch the model; the reference stays as it is for evaluation."""
        super().train(mode)
        self.reference.eval()
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Return everything the next update depends on, as JSON; part of `state_dict()`."""
        state = self.state
        return {
            "datasets": self._names,
            "log_weights": state.log_weights_G.tolist(),
            "mean": state.mean_G.tolist(),
            "ema": state.ema_G.tolist(),
            "updates": state.updates,
            "memory": {name: values.tolist() for name, values in state.memory.items()},
            "initial_loss": self._initial_loss_G.tolist(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up a state; part of `load_state_dict()`.

        Raises:
            ConfigError: It is of other datasets.
        """
        if state["datasets"] != self._names:
            do = f"give the datasets of this loss: {', '.join(self._names)}"
            raise ConfigError("the state is of other datasets", where="RobustLoss", saw=state["datasets"], do=do)
        log_G, mean_G, ema_G = (np.array(state[key]) for key in ("log_weights", "mean", "ema"))
        memory = {name: np.array(values) for name, values in state["memory"].items()}
        self.state = WeightState(log_G, mean_G, ema_G, state["updates"], memory)
        self._initial_loss_G = np.array(state["initial_loss"])

    def _groups(self, columns: list[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
        """Return the groups of a batch, on the CPU."""
        if torch.is_grad_enabled() and not self._driven:
            do = "give the trainer callbacks=[RobustCallback(loss)], or call loss.advance() before and after each step"
            raise ConfigError("nobody would move the weights", where="RobustLoss", do=do)
        if len(columns) < 3:
            do = "give rows of query, positive and at least one negative; tdro mine finds them"
            raise ConfigError("there are no negatives", where="RobustLoss", saw=f"{len(columns)} columns", do=do)
        if labels is None or labels.is_floating_point() or labels.ndim != 1:
            do = "train on with_groups(datasets)"
            raise ConfigError("the rows do not say which dataset they are of", where="RobustLoss", do=do)
        group_B = labels.detach().cpu().long()
        if int(group_B.min()) < 0 or int(group_B.max()) >= len(self._names):
            do = f"there are {len(self._names)} datasets; train on with_groups(datasets)"
            raise ConfigError("no dataset has this number", where="label", saw=sorted(set(group_B.tolist())), do=do)
        return group_B

    def _losses(self, encoder: nn.Module, columns: list[dict[str, Tensor]]) -> Tensor:
        """Return [B] losses of the queries over their own passages, in at least float32."""
        embedded = [encoder(dict(column))["sentence_embedding"] for column in columns]
        query_BD, *passages = [normalize(each.to(torch.promote_types(each.dtype, torch.float32))) for each in embedded]
        count_B = torch.full((len(query_BD),), len(passages), device=query_BD.device)
        similarity_BN = own_similarities(query_BD, torch.stack(passages, 1).flatten(0, 1), count_B)
        return hard_negative_loss(similarity_BN, self.temperature)


class RobustCallback(TrainerCallback):
    """Moves the weights of a `RobustLoss` after each optimizer step, and keeps them in the trainer's checkpoints.

    They lie in `trainer_state.json`; `trainer.train(resume_from_checkpoint=...)` takes them up.
    """

    def __init__(self, loss: RobustLoss) -> None:
        self._loss = loss

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the weights of the checkpoint that training goes on from."""
        if kept := _kept(state).get(type(self).__name__):
            self._loss.set_extra_state(kept)
        self._loss.advance()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the weights."""
        self._loss.advance()
        _kept(state)[type(self).__name__] = self._loss.get_extra_state()


def _kept(state: TrainerState) -> dict[str, Any]:
    """What callbacks keep in the trainer's state, whatever its type says."""
    return cast("dict[str, Any]", state.stateful_callbacks)


def _refuse_misfits(model: SentenceTransformer, reference: SentenceTransformer, rule: Rule) -> None:
    """Refuse what would train something else than meant."""
    if reference is model:
        raise ConfigError("the reference is the model itself", where="RobustLoss", do="load it a second time")
    if reference.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        do = "train the reference from the same base as the model"
        raise ConfigError("reference and model have different tokenizers", where="RobustLoss", do=do)
    if rule.measure in SAMPLE_MEASURES:
        do = "choose a measure of mean losses, such as relative, or train with tdro run"
        raise ConfigError("this measure needs the losses of every query", where="rule", saw=rule.measure, do=do)


def _of_all_ranks(statistics: GroupStatistics, device: torch.device) -> GroupStatistics:
    """Add up the statistics of all ranks."""
    if get_world_size() == 1:
        return statistics
    mine = torch.from_numpy(statistics.sums_GC)[None].to(device)
    return GroupStatistics(all_gather(mine).sum(0).cpu().numpy())
