"""A mixture in the words of other trainers: plain JSON, `datasets.interleave_datasets`, ms-swift, axolotl.

Pure functions from probabilities, files, sizes and a seed to text. Datasets of probability 0 are left out, the others
keep their order. Only the JSON form has room for loss factors.
"""

import json
import math
import shlex
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import yaml

from tdro.data.sources import Source
from tdro.errors import ConfigError

STOPPING_STRATEGY = "all_exhausted"
"""Draw until every row of every dataset was seen, so that the shares hold to the end; the trainer's steps end it."""
PROMPT_TYPE = "chat_template"
"""How axolotl reads rows unless it is told otherwise."""

_BUILDERS = {
    "jsonl": "json", "jsonl.gz": "json", "parquet": "parquet", "arrow": "arrow", "csv": "csv", "csv.gz": "csv",
}  # fmt: skip
_SEEDS = 2**32  # ms-swift and axolotl hand their seed to numpy's older generator, which takes 32 bits
_AXOLOTL = """\
# The mixture of a tdro run for axolotl: {examples} queries, all in one epoch.
# axolotl draws no dataset with a probability: it concatenates the entries and shuffles. So each dataset is cut to its
# share of the queries, and one that is passed over more than once has an entry for every pass.
# A slice takes the first rows; shuffle a file whose order means something. Leave dataset_exact_deduplication off, or
# the later passes are dropped. `type` says how axolotl reads your rows.
"""


def as_json(probabilities: Mapping[str, float], loss_factors: Mapping[str, float] | None = None) -> str:
    """Write a mixture as `{"dataset": probability}`, which `robust.weights` reads as well.

    With loss factors it becomes `{"probabilities": {...}, "loss_factors": {...}}`.

    Args:
        probabilities: Dataset -> probability.
        loss_factors: Dataset -> factor of its loss, where the weights act on the loss.

    Returns:
        JSON with a line end.

    Raises:
        ConfigError: No probability is above 0.

    Example:
        >>> print(as_json({"nq": 0.75, "quora": 0.25, "snli": 0.0}), end="")
        {
         "nq": 0.75,
         "quora": 0.25
        }
    """
    shares = _shares(probabilities)
    if loss_factors is None:
        return _to_json(shares)
    return _to_json({"probabilities": shares, "loss_factors": {name: loss_factors[name] for name in shares}})


def as_interleave(probabilities: Mapping[str, float], sources: Mapping[str, Source], seed: int) -> str:
    """Write what `datasets.load_dataset` and `datasets.interleave_datasets` take, as JSON with parallel lists.

    Dataset i is `load_dataset(builders[i], data_files=data_files[i], split="train")`; probabilities, seed and
    stopping_strategy are arguments of `interleave_datasets`.

    Args:
        probabilities: Dataset -> probability.
        sources: Dataset -> its files.
        seed: Seed of the draws.

    Returns:
        JSON with a line end.

    Raises:
        ConfigError: No probability is above 0.

    Example:
        >>> from pathlib import Path
        >>> mixture = json.loads(as_interleave({"nq": 1.0}, {"nq": Source("jsonl.gz", (Path("nq.jsonl.gz"),))}, 42))
        >>> mixture["builders"], mixture["data_files"], mixture["stopping_strategy"]
        (['json'], ['nq.jsonl.gz'], 'all_exhausted')
    """
    shares = _shares(probabilities)
    content = {
        "datasets": list(shares),
        "builders": [_builder(sources[name]) for name in shares],
        "data_files": [_files(sources[name]) for name in shares],
        "probabilities": list(shares.values()),
        "seed": seed,
        "stopping_strategy": STOPPING_STRATEGY,
    }
    return _to_json(content)


def as_ms_swift(probabilities: Mapping[str, float], sources: Mapping[str, Source], seed: int) -> str:
    """Write the arguments of `swift sft` (or `pt`, `rlhf`) that make ms-swift interleave the datasets.

    One line, quoted as a shell and `xargs` read it. Where a dataset has several files, its folder is named.

    Args:
        probabilities: Dataset -> probability.
        sources: Dataset -> its files.
        seed: Seed of the draws; of more than 32 bits, the lower ones.

    Returns:
        Arguments, separated by spaces, with a line end.

    Raises:
        ConfigError: No probability is above 0.

    Example:
        >>> from pathlib import Path
        >>> sources = {name: Source("jsonl", (Path(f"{name}.jsonl"),)) for name in ("nq", "quora")}
        >>> as_ms_swift({"nq": 0.75, "quora": 0.25}, sources, 42).split(" --")[:3]
        ['--dataset nq.jsonl quora.jsonl', 'interleave_prob 0.75 0.25', 'stopping_strategy all_exhausted']
    """
    shares = _shares(probabilities)
    arguments = ["--dataset", *(_path(sources[name]) for name in shares)]
    arguments += ["--interleave_prob", *map(repr, shares.values())]
    arguments += ["--stopping_strategy", STOPPING_STRATEGY, "--data_seed", str(seed % _SEEDS)]
    return shlex.join(arguments) + "\n"


def not_for_ms_swift(sources: Mapping[str, Source]) -> list[str]:
    """List the datasets whose files ms-swift cannot open: a packed file, or several Arrow files.

    It tells a file's kind by its last suffix, and reads no folder that `datasets.save_to_disk` wrote.

    Example:
        >>> from pathlib import Path
        >>> not_for_ms_swift({"nq": Source("jsonl.gz", (Path("nq.jsonl.gz"),))})
        ['nq']
    """
    unreadable = [("jsonl.gz", False), ("arrow", True)]  # kind, several files
    return [name for name, source in sources.items() if (source.kind, len(source.files) > 1) in unreadable]


def as_axolotl(
    probabilities: Mapping[str, float],
    sources: Mapping[str, Source],
    sizes: Mapping[str, int],
    examples: int,
    seed: int,
    prompt_type: str = PROMPT_TYPE,
) -> str:
    """Write axolotl's `datasets:` so that one epoch over them has the mixture.

    axolotl has no sampling probabilities, so a dataset gets its share of `examples` in rows: an entry for every whole
    pass over its rows, and one for the rest. A share that rounds to no row is left out.

    Args:
        probabilities: Dataset -> probability.
        sources: Dataset -> its files.
        sizes: Dataset -> rows, at least 1.
        examples: Queries of the whole training, at least 1.
        seed: Seed of the shuffle; of more than 32 bits, the lower ones.
        prompt_type: axolotl's `type`: how it reads a row.

    Returns:
        YAML with a line end.

    Raises:
        ConfigError: No probability is above 0.

    Example:
        >>> from pathlib import Path
        >>> text = as_axolotl({"nq": 1.0}, {"nq": Source("jsonl", (Path("nq.jsonl"),))}, {"nq": 100}, 250, 42)
        >>> [entry["split"] for entry in yaml.safe_load(text)["datasets"]]
        ['train[:100]', 'train[:100]', 'train[:50]']
    """
    shares = _shares(probabilities)
    text = _AXOLOTL.format(examples=examples) + "datasets:\n"
    for name, count in rows_of(shares, examples).items():
        passes, rest = divmod(count, sizes[name])
        text += f"# {name}: probability {shares[name]:.6g}, {count} queries, {count / sizes[name]:.4g} epochs\n"
        for rows in [sizes[name]] * passes + [rest] * (rest > 0):
            text += _to_yaml([{**_axolotl_files(sources[name]), "split": f"train[:{rows}]", "type": prompt_type}])
    return text + _to_yaml({"shuffle_merged_datasets": True, "num_epochs": 1, "seed": seed % _SEEDS})


def rows_of(probabilities: Mapping[str, float], examples: int) -> dict[str, int]:
    """Share out a number of queries: p * examples, rounded so that the sum is exact (largest remainders first).

    Args:
        probabilities: Dataset -> probability; they sum to 1.
        examples: Queries to share out.

    Returns:
        Dataset -> queries; datasets that get none are absent.

    Example:
        >>> rows_of({"a": 0.5, "b": 0.3, "c": 0.2}, 9)
        {'a': 4, 'b': 3, 'c': 2}
    """
    exact = {name: Fraction(p) * examples for name, p in probabilities.items()}
    rows = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(rows, key=lambda name: rows[name] - exact[name])
    for name in by_remainder[: examples - sum(rows.values())]:
        rows[name] += 1
    return {name: count for name, count in rows.items() if count}


def _shares(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Probabilities above 0, scaled where their sum is not 1."""
    total = math.fsum(probabilities.values())
    if total <= 0:
        raise ConfigError("no dataset has a probability above 0", saw=dict(probabilities), do="choose another plan")
    scale = 1.0 if abs(total - 1) < 1e-12 else total
    return {name: p / scale for name, p in probabilities.items() if p > 0}


def _files(source: Source) -> str | list[str]:
    """The files of a dataset as `data_files` takes them."""
    files = [str(file) for file in source.files]
    return files[0] if len(files) == 1 else files


def _path(source: Source) -> str:
    """The file of a dataset, or the folder of its files."""
    return str(source.files[0] if len(source.files) == 1 else source.files[0].parent)


def _builder(source: Source) -> str:
    """The `datasets` builder that reads the files of a dataset."""
    if source.kind not in _BUILDERS:
        do = "write it as jsonl with tdro convert, and name that file in the study"
        raise ConfigError("other trainers do not read this kind of file", where=source.files[0], saw=source.kind, do=do)
    return _BUILDERS[source.kind]


def _axolotl_files(source: Source) -> dict[str, Any]:
    """The keys by which axolotl finds a dataset; files are listed, as a saved dataset by its folder has no slices."""
    files = {"data_files": _files(source)} if len(source.files) > 1 else {}
    return {"path": _path(source), **files, "ds_type": _builder(source)}


def _to_json(content: object) -> str:
    """JSON as the other files of a run have it."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _to_yaml(content: object) -> str:
    """YAML in block style."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1_000_000)
