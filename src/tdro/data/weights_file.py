"""Weights as a portable JSON file: the released format, plain `{name: weight}`, and the published presets."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tdro.errors import ConfigError
from tdro.files import read_json

PRESETS = ("paper-2408.10613",)
"""Published weights that ship with tdro: the last weights of the paper's 0.5B proxy, 25 datasets."""


def read_weights(source: str | Path) -> dict[str, float]:
    """Read weights from a preset or a JSON file in the released or the plain format.

    The weights are returned as they stand, not normalised; a file may hold a weight for a dataset of another study.

    Args:
        source: Name of a preset, or path of a file.

    Returns:
        Dataset -> weight.

    Raises:
        ConfigError: No such file, not JSON, a weight that is no number, negative, or all are 0.

    Example:
        >>> round(read_weights("paper-2408.10613")["miracl"], 4)
        0.1314
    """
    if str(source) in PRESETS:
        text = resources.files("tdro.data").joinpath("presets", f"{source}.json").read_text("utf-8")
    else:
        try:
            text = Path(source).read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            do = f"give a JSON file, a preset ({', '.join(PRESETS)}), 'learned' or 'uniform'"
            raise ConfigError("weights cannot be read", where=source, saw=str(error), do=do) from None
    try:
        content = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise ConfigError("weights file is not JSON", where=source, saw=str(error), do="mend the file") from None
    weights = content.get("domain_weights", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        do = 'write {"dataset": weight, ...} or the released format with "domain_weights"'
        raise ConfigError("weights file holds no weights", where=source, saw=content, do=do)
    checked = {name: _weight(value, f"{source}:{name}") for name, value in weights.items()}
    if not any(checked.values()):
        raise ConfigError("all weights are 0", where=source, saw=checked, do="give some dataset a weight above 0")
    return checked


def read_sizes(path: Path) -> dict[str, int]:
    """Read the sizes that a weights file in the released format records.

    Raises:
        ConfigError: The file cannot be read or has no sizes.
    """
    try:
        return {str(name): int(size) for name, size in read_json(path)["size"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        do = "give the folder of a run whose weights stage is finished"
        raise ConfigError("no sizes can be read", where=path, saw=str(error), do=do) from None


def read_diagnostics(path: Path) -> dict[str, Any]:
    """Read what a weights file says about how sure its weights are; empty where it says nothing.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        return dict(read_json(path).get("diagnostics", {}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        do = "give the folder of a run whose weights stage is finished"
        raise ConfigError("no diagnostics can be read", where=path, saw=str(error), do=do) from None


def released_format(weights: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Lay weights out as the released code does, descending by weight.

    `epoch` is weight * total size / size: passes over each dataset while as many queries are drawn as there are rows.

    Example:
        >>> released_format({"a": 0.25, "b": 0.75}, {"a": 10, "b": 30})["epoch"]
        {'b': 1.0, 'a': 1.0}

    Source: released code.
    """
    names = sorted(weights, key=lambda name: (-weights[name], name))
    total = sum(sizes[name] for name in names)
    return {
        "domain_ids": {name: i for i, name in enumerate(names)},
        "domain_weights": {name: weights[name] for name in names},
        "size": {name: sizes[name] for name in names},
        "epoch": {name: weights[name] * total / sizes[name] for name in names},
    }


def match_weights(weights: Mapping[str, float], datasets: Iterable[str], source: str) -> dict[str, float]:
    """Keep the weights of a study's datasets; a dataset without a weight gets 0.

    Raises:
        ConfigError: A weight is for a dataset that the study does not have.
    """
    datasets = list(datasets)
    for name in weights:
        if name not in datasets:
            close = difflib.get_close_matches(name, datasets, n=1)
            do = f"did you mean {close[0]!r}?" if close else f"the study has: {', '.join(datasets)}"
            raise ConfigError("weight for an unknown dataset", where=source, saw=name, do=do)
    return {name: weights.get(name, 0.0) for name in datasets}


def _weight(value: object, where: str) -> float:
    """Check one weight."""
    try:
        good = not isinstance(value, bool) and isinstance(value, int | float) and 0 <= float(value) < math.inf
    except OverflowError:
        good = False
    if not good:
        raise ConfigError("weight is not a number of at least 0", where=where, saw=value, do="write a number like 0.25")
    return float(value)  # type: ignore[arg-type]
