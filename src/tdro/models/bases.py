"""Where a base encoder is: a folder, a folder inside an installed package, or the hub."""

import importlib.util
import json
from pathlib import Path

from huggingface_hub import snapshot_download

from tdro.errors import ConfigError

HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*model_args.yaml"]
HUB_IGNORED = ["onnx/*", "openvino/*", "original/*", "consolidated*"]


def find_encoder(base: str) -> Path:
    """Find the folder that a base stands for, without loading anything; hub names are looked up in the cache first.

    Raises:
        ConfigError: There is no such folder or package, or the hub does not give the model.
    """
    if base.startswith("package:"):
        return _package_folder(base)
    path = Path(base).expanduser()
    if base and path.is_dir():
        return path
    if not base or path.exists() or path.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1:
        do = "give an existing folder, package:NAME/folder, or a hub name such as organisation/model"
        raise ConfigError("there is no model folder of this name", where="model.base", saw=base, do=do)
    return _hub_folder(base)


def _package_folder(base: str) -> Path:
    """Find `package:NAME/folder` without importing the package."""
    name, _, inside = base.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    roots = (spec.submodule_search_locations if spec else None) or []
    for root in roots:
        if (folder := Path(root) / inside).is_dir():
            return folder
    what = f"package {name} has no folder {inside!r}" if roots else f"package {name} is not installed"
    do = "install the package, or correct NAME and folder in package:NAME/folder"
    raise ConfigError(what, where="model.base", saw=base, do=do)


def _hub_folder(name: str) -> Path:
    """Find a hub model in the local cache, else download it."""
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if _is_complete(folder):
            return folder
    except (OSError, ValueError):
        pass  # not in the cache, or not a valid hub name: the next call says which
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED, etag_timeout=5))
    except (OSError, ValueError) as error:
        what = f"there is no folder {name}, the hub cache does not hold it, and the hub did not give it"
        do = "give a folder, package:NAME/folder, or a hub name such as organisation/model with a network connection"
        raise ConfigError(what, where="model.base", saw=str(error).splitlines()[0], do=do) from error


def _is_complete(folder: Path) -> bool:
    """Tell whether a cached model has all its weight files: an interrupted download leaves some out."""
    shards = [
        index.parent / shard
        for index in folder.rglob("*.safetensors.index.json")
        for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    ]
    return all(shard.is_file() for shard in shards) and any(folder.rglob("*.safetensors"))
