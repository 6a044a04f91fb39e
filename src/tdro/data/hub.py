"""Datasets of the Hugging Face hub: fetched once into the cache, then read like a dataset saved there."""

import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tdro.errors import DataError, EnvironmentProblem
from tdro.files import atomic_folder
from tdro.locks import one_at_a_time

_SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://(?P<name>[^/:\s]+/[^/:\s]+)(?:/(?P<config>[^/:\s]+))?:(?P<split>\S+)")


def is_address(path: str | Path) -> bool:
    """Tell whether a path names a dataset of the hub."""
    return isinstance(path, str) and path.startswith(_SCHEME)


def fetch(address: str, cache: Path) -> Path:
    """Fetch a dataset from the hub, or find it where an earlier call has put it.

    Args:
        address: `hf://OWNER/NAME:SPLIT`, or `hf://OWNER/NAME/CONFIG:SPLIT`; the split may be a slice, `train[:1000]`.
        cache: Folder of the datasets that were fetched. A dataset that changes on the hub is fetched again once its
            folder is deleted.

    Returns:
        A folder saved by `datasets.save_to_disk`.

    Raises:
        DataError: The address is not of that form, or the hub has no such dataset, configuration or split.
        EnvironmentProblem: The library `datasets` is not installed, or the hub cannot be reached.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        do = "write hf://OWNER/NAME:SPLIT or hf://OWNER/NAME/CONFIG:SPLIT, for example hf://owner/name:train"
        raise DataError("not an address of the Hugging Face hub", where=address, do=do)
    folder = cache / blake2b(address.encode(), digest_size=16).hexdigest()
    with one_at_a_time(folder.with_name(f".{folder.name}.lock")):
        if not (folder / "state.json").is_file():
            rows = _load(address, match["name"], match["config"], match["split"])
            with atomic_folder(folder) as temporary:
                rows.save_to_disk(temporary)
    return folder


def _load(address: str, name: str, config: str | None, split: str) -> Any:
    """Fetch one split of a dataset."""
    try:
        from datasets import load_dataset  # type: ignore[import-untyped]
    except ImportError:
        do = "pip install datasets, or give files"
        raise EnvironmentProblem("reading from the hub needs the library datasets", where=address, do=do) from None
    try:
        return load_dataset(name, config, split=split)
    except (FileNotFoundError, ValueError) as problem:
        do = "check owner, name, configuration and split on the hub; a private dataset needs `hf auth login`"
        raise DataError("the hub has no such dataset", where=address, saw=str(problem), do=do) from problem
    except Exception as problem:  # the library lets through what its own libraries raise without a network
        do = "check the network, or fetch the dataset elsewhere and give the folder saved by datasets.save_to_disk"
        saw = f"{type(problem).__name__}: {problem}"
        raise EnvironmentProblem("the hub cannot be reached", where=address, saw=saw, do=do) from problem
