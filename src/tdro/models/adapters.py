"""Adapter folders, as peft saves them: a base that they name, and small matrices that are merged into it on loading."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor

from tdro.errors import ConfigError
from tdro.models.bases import find_encoder
from tdro.models.lora import require_peft
from tdro.models.released import is_untied
from tdro.models.sides import UNTIED

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> Path:
    """Find the folder of the encoder that an adapter belongs to.

    Raises:
        ConfigError: The adapter names none, one that is not there, another adapter, or separate encoders; or its
            settings cannot be read.
    """
    named = _settings(folder).get("base_model_name_or_path")
    do = f"write the base's folder or hub name into base_model_name_or_path of its {CONFIG}"
    try:
        base = find_encoder(named if isinstance(named, str) else "")
    except ConfigError as problem:
        what = "an adapter belongs to a base that is not there"
        raise ConfigError(what, where=folder / CONFIG, saw=named, do=do) from problem
    if is_adapter(base) or is_untied(base):
        what = "another adapter" if is_adapter(base) else "separate encoders, not to one"
        raise ConfigError(f"an adapter belongs to {what}", where=folder / CONFIG, saw=named, do=do)
    return base


def bases_of(folder: Path) -> list[Path]:
    """Find the folders that a model needs beside its own: the bases of its adapters.

    Raises:
        ConfigError: As `base_of`.
    """
    if (folder / "modules.json").is_file():
        return []
    places = [folder, *(folder / name for name in UNTIED)]
    return [base_of(place) for place in places if is_adapter(place)]


def merge_adapter(transformer: Transformer, folder: Path) -> None:
    """Merge an adapter into a network.

    Args:
        transformer: Holds the network, with a row of embeddings for every token of the adapter's tokenizer.
        folder: Of the adapter.

    Raises:
        ConfigError: The adapter is not LoRA, or does not fit the network.
        EnvironmentProblem: There is no peft.
    """
    require_peft("model.base")
    from peft import LoraConfig, LoraModel, set_peft_model_state_dict

    settings = _settings(folder)
    if settings.get("peft_type") != "LORA":
        do = "merge it into its base with peft and save that"
        saw = settings.get("peft_type")
        raise ConfigError("only LoRA adapters are merged", where=folder / CONFIG, saw=saw, do=do)
    if not (folder / WEIGHTS).is_file():
        do = "save the adapter again with safe_serialization=True"
        raise ConfigError(f"the adapter has no {WEIGHTS}", where=folder, do=do)
    config: Any = LoraConfig.from_pretrained(str(folder))
    network, tensors = transformer.model, _tensors(folder)
    inner = f"{network.base_model_prefix}."
    if all(name.startswith(inner) for name in tensors):  # made for the network inside a language model
        tensors = {name.removeprefix(inner): tensor for name, tensor in tensors.items()}
        if isinstance(config.target_modules, set):  # short names or full ones
            config.target_modules = {name.removeprefix(inner) for name in config.target_modules}
    adapted: Any = LoraModel(network, config, "default")
    result: Any = set_peft_model_state_dict(network, tensors)
    odd = [*result.unexpected_keys, *(name for name in result.missing_keys if ".lora_" in name)]
    if odd:
        do = "use the base that the adapter was trained on"
        raise ConfigError("the adapter does not fit its base", where=folder, saw=odd[:3], do=do)
    transformer.model = adapted.merge_and_unload().requires_grad_(True)


def _settings(folder: Path) -> dict[str, Any]:
    """Read what an adapter says of itself."""
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} instead of names and values")
    except (OSError, ValueError) as error:
        what, do = "the settings of an adapter cannot be read", "save the adapter again with peft"
        raise ConfigError(what, where=folder / CONFIG, saw=str(error), do=do) from None
    return content


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Read the weights of an adapter by the names that they have in the network it belongs to."""
    inside = {name.removeprefix("base_model.model."): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    doubled = (".modules_to_save.", ".original_module.")  # peft adds them where it saves grown embeddings
    return {name: tensor for name, tensor in inside.items() if not any(part in name for part in doubled)}
