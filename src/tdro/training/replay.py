"""Learn weights again from what was recorded: another measure, update, step size or cap, without a model.

Approximate in one respect: the proxy of the recorded run was trained with the weights of that run.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError

from tdro.config import WeightsConfig
from tdro.core.groups import COLUMNS, GroupStatistics, group_statistics
from tdro.core.rule import SAMPLE_MEASURES, StepLosses
from tdro.core.updates import WeightState
from tdro.data.weights_file import read_sizes
from tdro.errors import ConfigError, DataError
from tdro.files import read_json
from tdro.training.weight_learner import WeightLearner, make_rule

LOSS_COLUMNS = ("step", "dataset", "proxy_loss", "reference_loss")
WITHOUT_REFERENCE = ("raw", "initial", "target")
NOTHING = np.empty(0)


@dataclass(frozen=True)
class Replayed:
    """Weights that a replay learned.

    Attributes:
        names: Datasets.
        steps: Steps replayed.
        state: Weights after the last step, and their averages.
    """

    names: list[str]
    steps: int
    state: WeightState

    def exported(self, which: str = "last") -> dict[str, float]:
        """Return the last, mean or ema weights by name, descending."""
        values_G = {"last": self.state.weights_G, "mean": self.state.mean_G, "ema": self.state.ema_G}[which]
        weights = dict(zip(self.names, values_G.tolist(), strict=True))
        return dict(sorted(weights.items(), key=lambda item: -item[1]))


def replay_run(folder: Path, config: WeightsConfig, examples: int) -> Replayed:
    """Learn weights again from the statistics of a run, or from its losses where the measure needs every example.

    Where the measure needs every example and is the run's own, what it gave in each step does as well.

    Args:
        folder: Run folder of a finished weights stage.
        config: Settings; those of the run give its weights again, exactly.
        examples: Queries that the robust run draws; for `max_epochs`.

    Raises:
        DataError: The run has not learned weights, or did not keep the losses that the measure needs.
    """
    held_out = config.signal == "held-out"
    if held_out and not (folder / "weights" / "held_out.parquet").exists():
        do = "run the study with a --weights.held-out-share above 0"
        raise DataError("the run has no losses of held-out rows", where=folder / "weights", do=do)
    table = _read(
        folder / "weights" / f"{'held_out' if held_out else 'statistics'}.parquet", ("step", "dataset", *COLUMNS)
    )
    names = list(dict.fromkeys(table["dataset"].to_pylist()))
    _refuse_uneven(table, names, folder / "weights")
    known = read_sizes(folder / "weights" / "weights.json")
    _refuse_unknown(names, known, folder / "weights" / "weights.json")
    sizes = {name: known[name] for name in names}
    sums_TGC = np.stack([table[c].to_numpy() for c in COLUMNS], axis=-1).reshape(-1, len(names), len(COLUMNS))
    number_T = table["step"].to_numpy()[:: len(names)].tolist()
    if config.measure in SAMPLE_MEASURES:
        path = folder / "weights" / f"{'held_out_' if held_out else ''}losses.parquet"
        if path.exists():
            losses = _read(path, LOSS_COLUMNS)
            _refuse_unknown(losses["dataset"].to_pylist(), names, path)
            return _replay(_steps_of_losses(losses, names), config, sizes, examples)
        if not _has_signals(folder, config):
            do = "run the study with --weights.keep-losses True, or choose --weights.measure relative"
            raise DataError(f"measure {config.measure} needs the losses of every query", where=path, do=do)
        return _replay_signals(folder, number_T, sums_TGC[:, :, 0] > 0, config, sizes, examples)
    steps = (
        (number, StepLosses(GroupStatistics(sums_GC), NOTHING, NOTHING, NOTHING))
        for number, sums_GC in zip(number_T, sums_TGC, strict=True)
    )
    return _replay(steps, config, sizes, examples)


def learn_weights(losses: Any, **settings: Any) -> Replayed:
    """Learn weights from a table of losses, without any model.

    Args:
        losses: Columns step, dataset, proxy_loss and reference_loss (nats), one row per query: a dict of lists or
            arrays, a pyarrow table, a pandas or polars frame, or the path of a parquet file. The measures raw, initial
            and target need no reference_loss.
        settings: Options of the weights section, for example measure, update, step_size, cap.

    Returns:
        The weights; `exported()` gives them by name.

    Raises:
        ConfigError: An unknown option or a wrong value.
        DataError: A column is missing, or the table cannot be read.

    Example: the proxy is far from the reference on `news`, so its weight rises.
        >>> losses = {"step": [0, 0, 1, 1], "dataset": ["news", "code"] * 2, "proxy_loss": [4.0, 1.0, 3.0, 1.0],
        ...           "reference_loss": [1.0, 1.0, 1.0, 1.0]}
        >>> learned = learn_weights(losses, measure="relative", step_size=0.1, clip="none", shrinkage=0.0)
        >>> {name: round(weight, 3) for name, weight in learned.exported().items()}
        {'news': 0.622, 'code': 0.378}

    Source: paper, equations (3) and (4).
    """
    table = _read(losses, _columns(settings)) if isinstance(losses, str | Path) else _as_table(losses, settings)
    steps = {} if "steps" in settings or not len(table) else {"steps": int(max(table["step"].to_pylist())) + 1}
    try:
        config = WeightsConfig(**{**steps, **settings})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, do = ".".join(["weights", *map(str, first["loc"])]), "see tdro weights STUDY.yaml --help"
        raise ConfigError(first["msg"].removeprefix("Value error, "), where=where, saw=first["input"], do=do) from None
    return _learn(table, config, "the table")


def replay_losses(path: Path, config: WeightsConfig) -> Replayed:
    """Learn weights from anybody's losses: a parquet file with dataset, proxy_loss, reference_loss and step.

    Args:
        path: One row per query and step; steps in any order.
        config: Settings.

    Raises:
        DataError: The file cannot be read or lacks a column.
        ConfigError: `max_epochs` is set; the file knows no sizes.
    """
    return _learn(_read(path, _columns({"measure": config.measure})), config, str(path))


def _learn(table: pa.Table, config: WeightsConfig, where: str) -> Replayed:
    """Learn weights from a table of losses."""
    if config.max_epochs is not None:
        do = "use weights.cap instead"
        raise ConfigError(
            "epochs need the sizes of the datasets", where="weights.max_epochs", saw=config.max_epochs, do=do
        )
    names = sorted(set(table["dataset"].to_pylist()))
    if not names:
        raise DataError("there are no rows", where=where)
    return _replay(_steps_of_losses(table, names), config, dict.fromkeys(names, 1), 1)


def _columns(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that a measure needs."""
    return LOSS_COLUMNS[:3] if settings.get("measure") in WITHOUT_REFERENCE else LOSS_COLUMNS


def _as_table(losses: Any, settings: Mapping[str, Any]) -> pa.Table:
    """Turn what is in memory into a table."""
    columns = _columns(settings)
    try:
        table = pa.table(losses)
    except (TypeError, ValueError, pa.ArrowException) as error:
        do = f"give a dict, a table or a frame with the columns {', '.join(columns)}"
        raise DataError("losses are not a table", saw=str(error), do=do) from None
    _refuse_missing(columns, table.column_names, "the table")
    return _typed(table.select(columns), "the table")


def _replay(
    steps: Iterator[tuple[int, StepLosses]], config: WeightsConfig, sizes: dict[str, int], examples: int
) -> Replayed:
    """Feed recorded steps to a learner; `sizes` names the groups in their order."""
    names = list(sizes)
    learner = WeightLearner(names, config, make_rule(config, sizes, examples))
    for step, losses in steps:
        learner.update(step, losses)
    return Replayed(names, learner.weights.updates, learner.weights)


def signal_of(config: WeightsConfig) -> list[str | int]:
    """Name the settings that decide which signal losses give, of the measures that need every example."""
    return [config.measure, config.reference_norm, config.signal]


def _has_signals(folder: Path, config: WeightsConfig) -> bool:
    """Whether the signals that a run recorded are those of a measure."""
    try:
        marker = read_json(folder / "weights" / "done.json")
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("signal_of") == signal_of(config)


def _replay_signals(
    folder: Path,
    number_T: list[int],
    present_TG: np.ndarray,
    config: WeightsConfig,
    sizes: dict[str, int],
    examples: int,
) -> Replayed:
    """Let weights follow the signals that a run recorded in the steps with these numbers."""
    names, path = list(sizes), folder / "weights" / "trajectory.parquet"
    table = _read(path, ("step", "dataset", "signal"))
    _refuse_uneven(table, names, path)
    step_T = table["step"].to_numpy()[:: len(names)].tolist()
    signals = dict(zip(step_T, table["signal"].to_numpy().reshape(-1, len(names)), strict=True))
    learner = WeightLearner(names, config, make_rule(config, sizes, examples))
    for number, present_G in zip(number_T, present_TG, strict=True):
        if number not in signals or not np.isfinite(signals[number]).all():
            raise DataError("the records of the run disagree", where=path, saw=number, do="learn the weights again")
        learner.weights = learner.moved(learner.weights, signals[number], number, present_G)
    return Replayed(names, learner.weights.updates, learner.weights)


def _steps_of_losses(table: pa.Table, names: list[str]) -> Iterator[tuple[int, StepLosses]]:
    """Cut a table of losses into steps, each with its number."""
    number = {name: g for g, name in enumerate(names)}
    group_N = np.array([number[name] for name in table["dataset"].to_pylist()], np.int64)
    step_N = table["step"].to_numpy()
    proxy_N = table["proxy_loss"].to_numpy().astype(np.float64)
    has_reference = "reference_loss" in table.column_names
    reference_N = table["reference_loss"].to_numpy().astype(np.float64) if has_reference else np.zeros_like(proxy_N)
    if not len(step_N):
        raise DataError("there are no losses", where="losses.parquet", do="learn the weights again")
    order_N = np.argsort(step_N, kind="stable")
    for rows in np.split(order_N, np.flatnonzero(np.diff(step_N[order_N])) + 1):
        proxy_B, reference_B, group_B = proxy_N[rows], reference_N[rows], group_N[rows]
        proxy, reference, group = (torch.from_numpy(x) for x in (proxy_B, reference_B, group_B))
        statistics = group_statistics(proxy, reference, group, len(names))
        yield int(step_N[rows[0]]), StepLosses(statistics, proxy_B, reference_B, group_B)


def _read(path: str | Path, columns: tuple[str, ...]) -> pa.Table:
    """Read the columns of a parquet file."""
    try:
        _refuse_missing(columns, pq.read_schema(path).names, path)
        return _typed(pq.read_table(path, columns=list(columns)), path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError("parquet file cannot be read", where=path, saw=str(error), do="give a parquet file") from None


def _typed(table: pa.Table, where: str | Path) -> pa.Table:
    """Bring the columns into their types: whole steps, names of datasets, numbers."""
    types = {"step": pa.int64(), "dataset": pa.string()}
    try:
        typed = table.cast(pa.schema([(name, types.get(name, pa.float64())) for name in table.column_names]))
    except (pa.ArrowException, ValueError) as error:
        do = "give whole numbers as step, names as dataset, and numbers elsewhere"
        raise DataError("a column has another type", where=where, saw=str(error), do=do) from None
    if empty := [name for name in types if typed[name].null_count]:
        raise DataError(f"column {empty[0]} has empty cells", where=where, do="fill them, or remove their rows")
    return typed


def _refuse_uneven(table: pa.Table, names: list[str], where: Path) -> None:
    """Refuse sums that are not one row per step and dataset, in one order."""
    step_N, count = table["step"].to_numpy(), len(names)
    if (
        not count
        or table["dataset"].to_pylist() != names * (len(table) // count)
        or (step_N != np.repeat(step_N[::count], count)).any()
    ):
        raise DataError("statistics are not one row per step and dataset", where=where, do="learn the weights again")


def _refuse_unknown(names: Iterable[str], known: Collection[str], where: Path) -> None:
    """Refuse names of datasets that are not known."""
    if unknown := set(names) - set(known):
        raise DataError("the records of the run disagree", where=where, saw=min(unknown), do="learn the weights again")


def _refuse_missing(columns: tuple[str, ...], present: list[str], where: str | Path) -> None:
    """Refuse a table that lacks a column."""
    if twins := [name for name in columns if present.count(name) > 1]:
        raise DataError(f"column {twins[0]} is there twice", where=where, saw=present, do="keep one of them")
    missing = [name for name in columns if name not in present]
    if missing:
        close = difflib.get_close_matches(missing[0], present, n=1)
        do = f"rename {close[0]!r}" if close else f"write the columns {', '.join(columns)}"
        raise DataError(f"column {missing[0]} is missing", where=where, saw=present, do=do)
