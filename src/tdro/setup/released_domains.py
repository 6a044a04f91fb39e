"""Domain configs of the released code: names, weights, sizes and categories, and the datasets that come of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdro.errors import ConfigError
from tdro.files import read_json

HARD_ONLY_WORDS = ("classification", "clustering")
"""A domain with such a word in its name had hard negatives only."""
_SYMMETRIC = ("AllNLI", "altlex", "quora_duplicates", "SimpleWiki", "stackexchange_duplicate_questions")
_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".json", "")
_WEIGHTS_FILE = re.compile(r"(curr|mean|ema|top\d+)_weights")


@dataclass(frozen=True)
class Domains:
    """A domain config.

    Attributes:
        path: Its file; None where it is not there, or stood among the arguments.
        stem: Name of the file, also where it is not there.
        weights: Domain -> weight; equal ones where the file names none.
        sizes: Domain -> rows, where the file has them.
        categories: Domain -> the files it is made of, where it is a category.
    """

    path: Path | None
    stem: str
    weights: Mapping[str, float]
    sizes: Mapping[str, int]
    categories: Mapping[str, list[str]]

    @property
    def is_uniform(self) -> bool:
        """Whether all weights are equal; released files have them to about seven digits."""
        values = list(self.weights.values())
        return not values or max(values) - min(values) <= 1e-5 * max(values)

    @property
    def is_learned(self) -> bool:
        """Whether the file has one of the names that stage 1 writes."""
        return bool(_WEIGHTS_FILE.fullmatch(self.stem))


def read_domains(path: Path) -> Domains:
    """Read a domain config.

    Raises:
        ConfigError: It cannot be read, or one of its parts is not what it should be.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        do = "give the JSON file of --domain_config_path"
        raise ConfigError("domain config cannot be read", where=path, saw=str(error), do=do) from None
    return domains_of(content, str(path), path)


def domains_of(content: Any, where: str, path: Path | None = None) -> Domains:
    """Check what a domain config says.

    Example:
        >>> domains_of({"domain_ids": {"a": 0, "b": 1}, "size": {"a": 5, "b": 7}}, "x.json").weights
        {'a': 0.5, 'b': 0.5}
    """
    if not isinstance(content, dict):
        raise ConfigError("a domain config is a mapping", where=where, saw=content, do="see docs/released-options.md")
    parts: dict[str, dict[str, Any]] = {}
    for part in ("domain_ids", "domain_weights", "size", "category_list"):
        value = content.get(part) or {}
        if not isinstance(value, dict):
            raise ConfigError(f"{part} is a mapping from names", where=where, saw=value, do="mend the file")
        parts[part] = value
    names = list(parts["domain_weights"] or parts["domain_ids"] or parts["category_list"])
    if not names:
        do = 'write {"domain_ids": {name: number}, "domain_weights": {name: weight}, "size": {name: rows}}'
        raise ConfigError("domain config names no domains", where=where, saw=list(content), do=do)
    try:
        weights = {name: float(parts["domain_weights"].get(name, 1 / len(names))) for name in names}
        sizes = {name: int(parts["size"][name]) for name in names if parts["size"].get(name)}
        categories = {name: [str(file) for file in files] for name, files in parts["category_list"].items()}
    except (TypeError, ValueError, OverflowError) as error:
        do = "weights and sizes are numbers, a category is a list of names"
        raise ConfigError("domain config has a wrong value", where=where, saw=str(error), do=do) from None
    if any(not 0 <= weight < float("inf") for weight in weights.values()):
        raise ConfigError("a domain weight is not a number of at least 0", where=where, saw=weights, do="mend it")
    return Domains(path, path.stem if path else "", weights, sizes, categories)


def dataset_of(name: str, domains: Domains, folder: Path | None, *, hard_only_by_name: bool) -> dict[str, Any]:
    """Return what data.datasets says about a domain.

    Args:
        name: The domain.
        domains: Its config.
        folder: Where the files are, to see how their names end; None if not known.
        hard_only_by_name: Whether the name decided about in-batch negatives.
    """
    files = [_file_of(file, folder) for file in domains.categories.get(name, [name])]
    dataset: dict[str, Any] = {"path": files[0] if len(files) == 1 else files}
    if name in domains.sizes:
        dataset["size"] = domains.sizes[name]
    if is_symmetric(name):
        dataset["symmetric"] = True
    if hard_only_by_name and any(word in name for word in HARD_ONLY_WORDS):
        dataset["in_batch_negatives"] = False
    return dataset


def is_symmetric(name: str) -> bool:
    """Whether both sides of a domain got the instruction, as in the paper."""
    return name.startswith(_SYMMETRIC)


def valid_name(domain: str) -> str:
    """Turn the name of a domain into one that a dataset may have.

    Example:
        >>> valid_name("news/2018 en")
        'news_2018_en'
    """
    return re.sub(r"[^\w.-]", "_", domain).lstrip(".-") or "dataset"


def _file_of(name: str, folder: Path | None) -> str:
    """Name of a domain's file in the folder of preprocessed files."""
    endings = (ending for ending in _ENDINGS if folder is not None and (folder / f"{name}{ending}").exists())
    return name + next(endings, ".jsonl")
