"""LoRA: small matrices beside frozen layers are all that trains; saving merges them into the layers.

Source: Hu et al., LoRA: low-rank adaptation of large language models (2021). Built on peft, imported when needed.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch.nn import Linear, Parameter
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tdro.errors import ConfigError, EnvironmentProblem
from tdro.files import atomic_folder
from tdro.models.bases import find_encoder
from tdro.models.network import network_of, networks_of
from tdro.models.released import is_untied
from tdro.models.sides import UNTIED, sides_of
from tdro.models.top import projection_of

ADAPTER = "tdro"
"""Name of the adapter inside the network; not part of what is saved."""


@dataclass(frozen=True)
class Lora:
    """What an adapter looks like: layer(x) + alpha / rank * B(A(dropout(x))), with B = 0 at the start.

    Attributes:
        rank: Rows of A and columns of B; 0 stands for no adapter.
        alpha: Scales the adapter's output.
        dropout: Share of the adapter's input that is dropped in training.
        targets: Ends of the names of the layers that get an adapter; empty: all linear layers of all blocks.
    """

    rank: int
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ()


def require_peft(option: str = "model.lora_rank") -> None:
    """Say what to install where peft is missing.

    Args:
        option: What asks for it, for the error.

    Raises:
        EnvironmentProblem: There is no peft.
    """
    if find_spec("peft") is None:
        do = "pip install 'tdro[lora]'" + (", or set model.lora_rank: 0" if option == "model.lora_rank" else "")
        raise EnvironmentProblem("LoRA needs the package peft", where=option, do=do)


def add_lora(
    model: SentenceTransformer, lora: Lora, seed: int, *, half: bool = False, projection: bool = False
) -> None:
    """Put adapters into a model, into both encoders if they are separate, and freeze everything else.

    Args:
        model: What `load_encoder` returns; changed in place.
        lora: What the adapters look like; rank >= 1.
        seed: Decides the initial adapters, whatever other random numbers were drawn before.
        half: Hold frozen matrices in bfloat16 where that loses nothing, which halves the memory of a model that was
            published in bfloat16. For passes under bfloat16 autocast, which rounds the matrices anyway: the results
                are the same to the last bit. Saving brings the full precision back.
        projection: Train the linear layer on top too, all of it: it may begin with random values.

    Raises:
        ConfigError: The model has no such layers, or an adapter already.
        EnvironmentProblem: There is no peft.
    """
    require_peft()
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    networks = networks_of(model, "model.lora_rank")
    for network in networks:
        if hasattr(network, "peft_config"):
            do = "merge it into its base (peft: merge_and_unload), save that and use it as model.base"
            raise ConfigError("the base is an adapter already", where="model.base", saw=network.name_or_path, do=do)
    alpha: Any = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha  # peft types it as int
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for network in networks:
            targets, others = _targets(network, lora.targets)
            config = LoraConfig(
                r=lora.rank,
                lora_alpha=alpha,
                lora_dropout=lora.dropout,
                target_modules=targets,
                exclude_modules=others or None,
                task_type=TaskType.FEATURE_EXTRACTION,
            )
            inject_adapter_in_model(config, network, ADAPTER)
    model.train(model.training)
    if half:
        for network in networks:
            _halve_frozen(network)
    for side in sides_of(model) if projection else ():
        if (top := projection_of(side)) is not None:
            top.requires_grad_(True)


def has_lora(model: SentenceTransformer) -> bool:
    """Tell whether `add_lora` has put adapters into a model."""
    return any(ADAPTER in getattr(getattr(side[0], "model", None), "peft_config", {}) for side in sides_of(model))


@contextmanager
def merged(model: SentenceTransformer) -> Iterator[None]:
    """Give a model the plain network with its adapters merged into the weights, inside the block only.

    The network in training is put aside and not changed; the merged weights are copies, in main memory.
    """
    if not has_lora(model):
        yield
        return
    trained: dict[Any, PreTrainedModel] = {s[0]: network_of(s, "model.lora_rank") for s in sides_of(model)}
    for transformer, network in trained.items():
        transformer.model = _merge(network)
    try:
        yield
    finally:
        for transformer, network in trained.items():
            transformer.model = network


def save_adapter(model: SentenceTransformer, folder: Path, base: str, query_base: str = "") -> None:
    """Save the adapter by itself, in the format of peft: `PeftModel.from_pretrained(plain_base, folder)` reads it.

    The adapters of separate encoders go to the folders query_model and passage_model in it.

    Args:
        model: A model with adapters.
        folder: Where the files go; an older save is replaced.
        base: Name of the base encoder, kept in the adapter's settings; of a released folder with separate encoders
            each adapter names its own.
        query_base: Name of the base of the queries' encoder, where it is another.

    Raises:
        ConfigError: The base is not there any more.
        EnvironmentProblem: The disk refuses the files.
    """
    networks = [network_of(side, "model.lora_rank") for side in sides_of(model)]
    names = [query_base or base, base]
    if len(networks) > 1 and not query_base and is_untied(folder_of_base := find_encoder(base)):
        names = [str(folder_of_base / inside) for inside in UNTIED]
    try:
        with atomic_folder(folder) as fresh:
            if len(networks) == 1:
                _write_adapter(networks[0], fresh, base)
                return
            for network, name, inside in zip(networks, names, UNTIED, strict=True):
                _write_adapter(network, fresh / inside, name)
    except (OSError, SafetensorError) as error:
        do = "free some disk space or choose a folder you may write to"
        raise EnvironmentProblem("the adapter could not be saved", where=folder, saw=str(error), do=do) from error


def _write_adapter(network: PreTrainedModel, folder: Path, base: str) -> None:
    """Write the adapter of one network."""
    from peft import get_peft_model_state_dict

    config: Any = copy.copy(network.peft_config[ADAPTER])
    found = get_peft_model_state_dict(network, adapter_name=ADAPTER, save_embedding_layers=False)
    tensors = {f"base_model.model.{name}": tensor.detach().contiguous().cpu() for name, tensor in found.items()}
    config.base_model_name_or_path, config.inference_mode = base, True
    config.target_modules = sorted(config.target_modules)  # a set, whose order changes from process to process
    folder.mkdir(exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _targets(network: PreTrainedModel, wanted: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the ends of the names of the layers to adapt, and full names that end so but are in no block."""
    layers = [name for name, module in network.named_modules() if isinstance(module, Linear | Conv1D)]
    inner = {name: found[1] for name in layers if (found := re.fullmatch(r".*\.\d+\.(.+)", name))}
    ends = sorted(wanted or set(inner.values()))
    lacking = [end for end in ends if not any(_ends(name, end) for name in inner)]
    if lacking or not ends:
        saw = f"no layer is called {', '.join(lacking)}" if lacking else "no linear layers inside blocks"
        do = f"use some of {', '.join(sorted(set(inner.values())))}" if inner else "set model.lora_rank: 0"
        raise ConfigError("LoRA finds no layers of these names", where="model.lora_targets", saw=saw, do=do)
    return ends, [name for name in layers if name not in inner and any(_ends(name, end) for end in ends)]


def _ends(name: str, end: str) -> bool:
    """Tell whether a module's name ends with whole parts of another."""
    return f".{name}".endswith(f".{end}")


def _halve_frozen(network: PreTrainedModel) -> None:
    """Turn frozen matrices to bfloat16 where their values survive it."""
    for module in network.modules():
        if isinstance(module, Linear) and not module.weight.requires_grad:
            half = module.weight.data.bfloat16()
            if torch.equal(half.to(module.weight.dtype), module.weight.data):
                module.weight.data = half


def _merge(network: PreTrainedModel) -> PreTrainedModel:
    """Return a network like one without adapters, with merged weights of its own and all others shared."""
    from peft.tuners.lora import Linear as Adapted

    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})
    del twin.peft_config
    dtype = next(parameter.dtype for name, parameter in network.named_parameters() if ".lora_A." in name)
    for name, module in list(twin.named_modules()):
        if isinstance(module, Adapted):
            plain: Any = module.get_base_layer()
            weight = plain.weight.detach().to(dtype) + module.get_delta_weight(ADAPTER).detach()
            plain.weight = Parameter(weight.cpu(), requires_grad=False)
            twin.set_submodule(name, plain)
        elif isinstance(module, Linear) and module.weight.dtype != dtype:
            module.weight = Parameter(module.weight.detach().to("cpu", dtype), requires_grad=False)
    return twin
