"""A model folder is data: what would have a library run code for it, or unpickle, is refused before one reads it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CODE = ("allow_all_kernels", "use_kernels", "kernel_config", "offload_folder", "gguf_file")
_ACTIVATION = re.compile(r"torch\.nn\.(modules\.(activation|linear)\.)?[A-Z]\w*")


def refuse_code(folder: Path) -> None:
    """Refuse a model folder whose weights are pickled, or whose settings would have code fetched, called or unpickled.

    The libraries that load models pass some of a folder's own settings to functions that do more than read it. With
    `trust_remote_code` off, transformers still fetches and runs the kernel that `attn_implementation:
    organisation/name` stands for, and unpickles without limits what an index of weights names where
    `weights_only: false` is in `model_args`; sentence-transformers calls any function of torch as an activation, and
    reads `pytorch_model.bin`, as peft does `adapter_model.bin`, where there is no safetensors file.

    Args:
        folder: Of a Hugging Face or sentence-transformers model.

    Raises:
        ValueError: There is something of the kind, or settings cannot be read.
    """
    for pickled, safe in (("pytorch_model", "model.safetensors"), ("adapter_model", "adapter_model.safetensors")):
        for file in folder.rglob(f"{pickled}*.bin"):
            if not any(file.parent.glob(f"{safe}*")):  # or an index of shards
                raise ValueError(f"{file.relative_to(folder)} is pickled; only safetensors are read")
    for file in folder.rglob("*.safetensors.index.json"):
        for name in _read(file).get("weight_map", {}).values():
            if not name.endswith(".safetensors"):
                raise ValueError(f"{file.relative_to(folder)} names {name}; only safetensors are read")
    for file in folder.rglob("*config*.json"):
        for key, value in _settings(_read(file)):
            if _asks_for_more(key, value):
                raise ValueError(f"{file.relative_to(folder)} asks for more than reading a model: {key} is {value}")


def _read(file: Path) -> Any:
    """Read a file of settings."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def _asks_for_more(key: str, value: object) -> bool:
    """Tell whether a setting has a library do more than read a model."""
    if key in _CODE:
        return bool(value)
    if key == "weights_only":
        return value is not True
    if "implementation" in key:  # of attention, experts: a path stands for a kernel on the hub
        return "/" in str(value)
    return "activation" in key and str(value).startswith("torch.") and not _ACTIVATION.fullmatch(str(value))


def _settings(content: object) -> Iterator[tuple[str, Any]]:
    """Yield every key of nested settings with its value."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield key, value
            yield from _settings(value)
    elif isinstance(content, list):
        for value in content:
            yield from _settings(value)
