"""What is exported makes the other side sample the mixture; the other side is run, or imitated by its own loader."""

import argparse
import json
import math
import shlex
from collections import Counter
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, concatenate_datasets, interleave_datasets, load_dataset

from tdro.data.export import as_axolotl, as_interleave, as_json, as_ms_swift, not_for_ms_swift, rows_of
from tdro.data.sources import Source, find_source
from tdro.errors import ConfigError

MIXTURE = {"large": 0.55, "small": 0.25, "parts": 0.15, "saved": 0.05, "never": 0.0}
SIZES = {"large": 400, "small": 30, "parts": 50, "saved": 20, "never": 5}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Source]:
    """A file, a packed file, a folder of parquet files, a saved dataset of two files; rows say where they are from."""
    root = tmp_path_factory.mktemp("rows")
    rows = {name: [{"query": f"{name} {i}"} for i in range(size)] for name, size in SIZES.items()}
    for name in ("large", "small", "never"):
        Dataset.from_list(rows[name]).to_json(root / f"{name}.jsonl{'.gz' * (name == 'small')}")
    (root / "parts").mkdir()
    for part in (0, 1):
        Dataset.from_list(rows["parts"][part * 25 : part * 25 + 25]).to_parquet(root / "parts" / f"{part}.parquet")
    Dataset.from_list(rows["saved"]).save_to_disk(root / "saved", num_shards=2)
    paths = {"large": "large.jsonl", "small": "small.jsonl.gz", "never": "never.jsonl"}
    return {name: find_source(root / paths.get(name, name)) for name in SIZES}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    """Where `datasets` keeps what it has read."""
    return str(tmp_path_factory.mktemp("datasets"))


def origins(dataset) -> Counter:
    """How many rows come from which dataset."""
    return Counter(query.split()[0] for query in dataset["query"])


def within_four_deviations(seen: Counter, probabilities: dict[str, float]) -> bool:
    """Whether counts are what independent draws give in all but one of 15000 cases."""
    draws = sum(seen.values())
    return set(seen) == set(probabilities) and all(
        abs(seen[name] - p * draws) < 4 * math.sqrt(draws * p * (1 - p)) for name, p in probabilities.items()
    )


def test_json_holds_what_is_sampled_in_order_and_factors_beside_it():
    assert list(json.loads(as_json(MIXTURE)).items()) == list(MIXTURE.items())[:-1]
    factors = json.loads(as_json({"a": 0.5, "b": 0.5}, {"a": 1.5, "b": 0.5}))
    assert factors == {"probabilities": {"a": 0.5, "b": 0.5}, "loss_factors": {"a": 1.5, "b": 0.5}}


def test_interleave_datasets_draws_every_kind_of_files_with_the_probabilities(sources, cache):
    mixture = json.loads(as_interleave(MIXTURE, sources, 7))
    assert abs(math.fsum(mixture["probabilities"]) - 1) < 1e-12
    parts = [
        load_dataset(builder, data_files=files, split="train", cache_dir=cache)
        for builder, files in zip(mixture["builders"], mixture["data_files"], strict=True)
    ]
    assert {n: len(p) for n, p in zip(mixture["datasets"], parts, strict=True)} == {
        name: size for name, size in SIZES.items() if name != "never"
    }
    together = interleave_datasets(
        parts,
        probabilities=mixture["probabilities"],
        seed=mixture["seed"],
        stopping_strategy=mixture["stopping_strategy"],
    )
    seen = origins(together)
    assert within_four_deviations(seen, {name: p for name, p in MIXTURE.items() if p})
    assert all(seen[name] >= SIZES[name] for name in seen)
    assert len(set(together["query"])) == sum(SIZES.values()) - SIZES["never"]


def test_ms_swift_parses_the_arguments_and_interleaves_with_them(sources, cache):
    parser = argparse.ArgumentParser()  # as its parser declares the fields: lists of strings and floats, two strategies
    parser.add_argument("--dataset", nargs="+")
    parser.add_argument("--interleave_prob", nargs="+", type=float)
    parser.add_argument("--stopping_strategy", choices=["first_exhausted", "all_exhausted"])
    parser.add_argument("--data_seed", type=int)
    kept = {name: MIXTURE[name] / 0.75 for name in ("large", "small", "parts")} | {"small": 0.2 / 0.75}
    read = parser.parse_args(shlex.split(as_ms_swift(kept, sources, 2**40 + 3)))
    assert sum(read.interleave_prob) == pytest.approx(1, abs=1e-12) and read.data_seed == 3
    folder = sources["parts"].files[0].parent
    assert read.dataset == [str(sources["large"].files[0]), str(sources["small"].files[0]), str(folder)]
    parts = [load_dataset("json", data_files=path, split="train", cache_dir=cache) for path in read.dataset[:2]]
    parts.append(load_dataset(read.dataset[2], split="train", cache_dir=cache))
    together = interleave_datasets(
        parts, read.interleave_prob, read.data_seed, stopping_strategy=read.stopping_strategy
    )
    assert within_four_deviations(origins(together), dict(zip(kept, read.interleave_prob, strict=True)))


def test_ms_swift_arguments_survive_a_shell(tmp_path):
    awkward = Path("a folder/it's $HOME.jsonl")
    text = as_ms_swift({"a": 1.0}, {"a": Source("jsonl", (awkward,))}, 1)
    assert shlex.split(text)[1] == str(awkward) and text.count("\n") == 1


def test_files_that_ms_swift_cannot_open_are_listed(sources):
    assert not_for_ms_swift(sources) == ["small", "saved"]


def test_axolotls_loader_finds_exactly_the_planned_rows(sources, cache):
    config = yaml.safe_load(as_axolotl(MIXTURE, sources, SIZES, 1000, 7, "alpaca"))
    parts = []
    for entry in config["datasets"]:  # what its load_dataset_with_config does with a local path
        files = entry.get("data_files") if Path(entry["path"]).is_dir() else entry["path"]
        parts.append(load_dataset(entry["ds_type"], data_files=files, split=entry["split"], cache_dir=cache))
    together = concatenate_datasets(parts)
    assert origins(together) == {"large": 550, "small": 250, "parts": 150, "saved": 50}
    times = Counter(Counter(together["query"]).values())
    assert times == {1: 250, 2: 150 + 10, 3: 50 + 10, 8: 20, 9: 10}  # rows of each dataset differ by one pass at most
    assert {entry["type"] for entry in config["datasets"]} == {"alpaca"}
    assert (config["num_epochs"], config["shuffle_merged_datasets"], config["seed"]) == (1, True, 7)


def test_planned_rows_sum_exactly_and_are_never_a_row_away():
    probabilities = {f"d{i}": 1 / 7 for i in range(7)}
    for examples in (1, 6, 7, 100, 10**6 + 1):
        rows = rows_of(probabilities, examples)
        assert sum(rows.values()) == examples
        assert all(abs(rows.get(name, 0) - p * examples) < 1 for name, p in probabilities.items())


def test_a_share_of_no_row_is_left_out_of_axolotl(sources):
    config = yaml.safe_load(as_axolotl({"large": 0.999, "small": 0.001}, sources, SIZES, 100, 7))
    assert [entry["split"] for entry in config["datasets"]] == ["train[:100]"]


def test_nothing_to_sample_is_refused():
    with pytest.raises(ConfigError, match="probability above 0"):
        as_json({"a": 0.0})
