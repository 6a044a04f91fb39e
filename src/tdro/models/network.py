"""The network inside an encoder: which attention it computes, and what makes training a big one possible."""

import os
import shutil
from importlib.util import find_spec
from itertools import chain
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from transformers import PreTrainedModel

from tdro.errors import ConfigError, EnvironmentProblem
from tdro.models.sides import sides_of

FLASH_PACKAGES = {
    "flash_attention_2": ("flash_attn", "kernels"),
    "flash_attention_3": ("flash_attn_interface", "kernels"),
}
"""Attention -> packages of which one is needed."""

COMPILERS = ("c++", "g++", "clang++", "cc", "gcc", "clang")


def network_of(model: SentenceTransformer, option: str) -> PreTrainedModel:
    """Return the transformer inside an encoder.

    Args:
        model: What `load_encoder` returns; of separate encoders one side.
        option: What asks for it, for the error.

    Raises:
        ConfigError: The encoder has no transformer, so that the option means nothing to it.
    """
    if not isinstance(model[0], Transformer):
        saw = f"the model starts with {type(model[0]).__name__}"
        raise ConfigError(f"{option} needs a transformer", where=option, saw=saw, do=f"leave {option} out")
    return model[0].model


def networks_of(model: SentenceTransformer, option: str) -> list[PreTrainedModel]:
    """Return the transformer inside an encoder, or those of separate encoders for queries and passages.

    Raises:
        ConfigError: As `network_of`.
    """
    found = [network_of(side, option) for side in sides_of(model)]
    return list({id(network): network for network in found}.values())


def check_attention(attention: str, device: str, half: bool = True) -> None:
    """Refuse flash attention where it cannot run, before anything is loaded.

    Args:
        attention: "auto", "eager", "sdpa", "flash_attention_2" or "flash_attention_3".
        device: Where the model will be, e.g. "cuda".
        half: Whether the network computes in bfloat16; flash attention knows nothing wider than 16 bits.

    Raises:
        ConfigError: It needs a GPU, a package or bfloat16 that is not there.
    """
    if "flash" not in attention:
        return
    packages = FLASH_PACKAGES.get(attention, ())
    if device == "cpu":
        what, do = "flash attention needs a GPU", "use auto or sdpa"
    elif packages and not any(find_spec(package) for package in packages):
        what, do = f"{attention} needs a package", f"install {' or '.join(packages)}, or use auto or sdpa"
    elif not half:
        what, do = "flash attention computes in bfloat16", "set model.precision to bfloat16 or auto, or use sdpa"
    else:
        return
    raise ConfigError(what, where="model.attention", saw=attention, do=do)


def checkpoint_gradients(model: SentenceTransformer) -> None:
    """Keep only the input of each block in training, and compute the block again in the backward pass.

    The gradients are the same: the random numbers of the first pass are put back for the second, so dropout repeats
    itself, also inside a step that replays its micro-batches.

    Raises:
        ConfigError: The architecture does not support it.
    """
    option = "model.gradient_checkpointing"
    for network in networks_of(model, option):
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        try:
            enable({"use_reentrant": False})
        except ValueError as error:
            do = f"leave {option} out"
            raise ConfigError("this architecture cannot do it", where=option, saw=str(error), do=do) from error


def compile_network(model: SentenceTransformer, backend: str = "inductor") -> None:
    """Compile the parts of each block for texts of any length; the names of the parameters stay.

    What is compiled is smaller than a checkpointed block: compiled together with its checkpoint, a block with dropout
    gave wrong gradients (torch 2.13). Dropout draws its numbers as it does without compiling, so that a pass that is
    done again repeats them.

    Args:
        model: What `load_encoder` returns.
        backend: Of torch.compile.

    Raises:
        ConfigError: The encoder has no transformer.
        EnvironmentProblem: There is no C compiler, without which torch.compile fails later and less clearly.
    """
    networks = networks_of(model, "model.compile")
    if not (os.environ.get("CXX") or os.environ.get("CC") or any(shutil.which(name) for name in COMPILERS)):
        raise EnvironmentProblem(
            "model.compile needs a C compiler", do="install gcc or g++, or set model.compile: false"
        )
    options: dict[str, Any] = {"options": {"fallback_random": True}} if backend == "inductor" else {}
    # Gradients on and off, training and not, one text and several: a part has more than the 8 forms allowed by default.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    modules = chain.from_iterable(network.modules() for network in networks)
    for blocks in (module for module in modules if isinstance(module, torch.nn.ModuleList)):
        for part in (child for block in blocks for child in block.children()):
            part.compile(dynamic=True, backend=backend, **options)
