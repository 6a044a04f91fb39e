"""The optimizers of the model's parameters, and what a checkpoint keeps of them.

Gradient accumulation is no option here: a step's gradient is that of its whole batch whatever the micro-batches are.
"""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from tdro.config import Study, TrainingConfig
from tdro.errors import ConfigError, EnvironmentProblem
from tdro.sharding import cut_like

_ADAMW = {"step", "exp_avg", "exp_avg_sq"}
_SMALL = {"step", "state1", "state2"}  # adamw-8bit keeps the moments of fewer than 4096 numbers in 32 bits
_QUANTISED = _SMALL | {"qmap1", "qmap2", "absmax1", "absmax2"}
_LIKE_PARAMETER = {"exp_avg", "exp_avg_sq", "state1", "state2"}


def refuse_impossible_optimizers(study: Study) -> None:
    """Find now what an optimizer of a study lacks.

    Raises:
        EnvironmentProblem: There is no bitsandbytes.
        ConfigError: 8-bit moments are to be sharded.
    """
    for stage, config in (("reference", study.reference), ("weights", study.weights)):
        if config.optimizer != "adamw-8bit":
            continue
        where = f"{stage}.optimizer"
        if find_spec("bitsandbytes") is None:
            do = f"pip install 'tdro[bnb]', or set {where}: adamw"
            raise EnvironmentProblem("adamw-8bit needs the package bitsandbytes", where=where, do=do)
        if study.model.sharding != "none":
            do = f"set {where}: adamw, whose moments are sharded, or model.sharding: none"
            raise ConfigError("8-bit moments cannot be sharded", where=where, saw=config.optimizer, do=do)


def make_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimizer of the trained parameters, with weight decay on matrices only.

    AdamW is fused, which on a CPU took a quarter of the time. With 8-bit moments those of token embeddings stay in 32
    bits, as bitsandbytes advises: their gradients are rare and large.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.adam_betas, "eps": config.adam_epsilon}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True, **settings)
    from bitsandbytes.optim import AdamW8bit, GlobalOptimManager

    for module in model.modules():
        if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag):
            GlobalOptimManager.get_instance().override_config(module.weight, "optim_bits", 32)
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, **settings)
    return optimizer


def moments_of(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield what an optimizer remembers of each parameter: "NUMBER.NAME", tensor; whole numbers become int64."""
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                value = torch.tensor(value)
            yield f"{number}.{name}", value.clone() if name.startswith("qmap") else value  # which all parameters share


def read_moments(joined: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Sort what `moments_of` has given by the number of the parameter.

    Raises:
        ValueError, KeyError: It does not fit the optimizer.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in joined.items():
        number, name = key.split(".", 1)
        moments.setdefault(int(number), {})[name] = tensor
    parameters = _parameters(optimizer)
    known = (_ADAMW,) if isinstance(optimizer, torch.optim.AdamW) else (_SMALL, _QUANTISED)
    for index, values in moments.items():
        if index >= len(parameters) or values.keys() not in known:
            raise ValueError(f"the optimizer's moments do not fit parameter {index}")
        shape = parameters[index].shape
        if any(values[name].shape != shape for name in values.keys() & _LIKE_PARAMETER):
            raise ValueError(f"the optimizer's moments have another shape than parameter {index}")
    return moments


def fill_moments(optimizer: torch.optim.Optimizer, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Give an optimizer the moments that `read_moments` has sorted."""
    parameters = _parameters(optimizer)

    def own(name: str, value: Tensor, parameter: Tensor) -> Tensor | int:
        if value.dtype == torch.int64 and not value.ndim:
            return int(value)
        return cut_like(value, parameter) if name in _LIKE_PARAMETER else value

    state = {
        index: {name: own(name, value, parameters[index]) for name, value in values.items()}
        for index, values in moments.items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters of an optimizer in the order in which it numbers them."""
    return list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
