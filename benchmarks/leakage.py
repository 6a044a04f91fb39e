"""Speed of the leakage check on a million short queries, and what it finds of planted leaks; figures of data.json.

    python benchmarks/leakage.py --data FOLDER

Texts are real: test queries of the evaluation sets, filled up to 20,000 with held-out training queries; a million
training queries made of the remaining ones, as they are and with words replaced by words of others, so that patterns
are as frequent as they are in real questions. Only queries of at most 16 words are used.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tdro.data.mixture import seeded
from tdro.data.reading import Rows, read_dataset, write_rows
from tdro.data.records import Passage, Row
from tdro.prepare.evaluation_queries import EvaluationSet, read_evaluation_sets
from tdro.prepare.leakage import LeakIndex, find_leaks
from tdro.prepare.planted import self_test

TESTS, TRAINING, LONGEST = 20_000, 1_000_000, 16
UNRELATED = ("package_desc", "agnews", "snli", "altlex")
"""Training datasets about other things than any evaluation set."""


def measure_leakage(data: Path, *, training: int = TRAINING, tests: int = TESTS) -> dict[str, float]:
    """Measure all figures of the leakage check.

    Args:
        data: Folder with train/*.jsonl.gz and eval/*/.
        training: Training queries.
        tests: Test queries.

    Returns:
        `dedup_exact_s_per_million`, `dedup_near_s_per_million` (seconds, index included), `recall_case`,
        `recall_typo`, `recall_swap`, `recall_drop` (near level, of 2,000 planted leaks each) and `false_hits`
        (among 5,000 unrelated real queries and 5,000 of mixed words).
    """
    real = _training_queries(data)
    sets = read_evaluation_sets(data / "eval")
    unrelated = [text for name in UNRELATED for text in real[name]]
    others = [text for name, texts in real.items() if name not in UNRELATED for text in texts]
    generator = seeded("leakage benchmark")
    generator.shuffle(others)
    own = _short([text for one in sets for text in one.queries])[:tests]
    held_out, pool = others[: tests - len(own)], [*others[tests - len(own) :], *unrelated]
    index_set = EvaluationSet("tests", tuple(map(str, range(tests))), (*own, *held_out), ((),) * tests)
    figures = _speed(_million(pool, training, generator), index_set, training)
    return figures | _recall(LeakIndex(sets), unrelated, generator)


def _speed(queries: Sequence[str], tests: EvaluationSet, training: int) -> dict[str, float]:
    """Time both levels on rows that are stored as tdro stores them."""
    figures = {}
    with TemporaryDirectory() as folder:
        rows = _stored(queries, Path(folder))
        for level in ("exact", "near"):
            began = time.perf_counter()
            find_leaks(rows, LeakIndex([tests], level))
            figures[f"dedup_{level}_s_per_million"] = (time.perf_counter() - began) * 1e6 / training
    return figures


def _recall(index: LeakIndex, unrelated: list[str], generator: np.random.Generator) -> dict[str, float]:
    """Plant leaks of real test queries, and look up real queries about other things."""
    planted = self_test(index, sample=2_000, unrelated=5_000)
    figures = {f"recall_{kind}": recall.share for kind, recall in planted.recall.items()}
    chosen = generator.choice(len(unrelated), 5_000, replace=False).tolist()
    hits = {leak.row for leak in index.find([unrelated[i] for i in chosen]) if leak.counts}
    return figures | {"false_hits": float(planted.false_hits + len(hits))}


def _training_queries(data: Path) -> dict[str, list[str]]:
    """Read the short queries of every training dataset."""
    with TemporaryDirectory() as folder:
        read = {p.name.split(".")[0]: read_dataset(p.name, p, cache=folder) for p in sorted(data.glob("train/*"))}
        return {name: _short(rows.query_texts(0, len(rows))) for name, rows in read.items()}


def _short(texts: Sequence[str]) -> list[str]:
    """Keep short texts."""
    return [text for text in texts if len(text.split()) <= LONGEST and len(text) <= 8 * LONGEST]


def _million(pool: list[str], count: int, generator: np.random.Generator) -> list[str]:
    """Make many queries of a few: each as it is once, then with one to three words replaced."""
    words = [word for text in pool for word in text.split()]
    base = generator.integers(len(pool), size=count - len(pool)).tolist()
    drawn = generator.integers(len(words), size=(len(base), 3)).tolist()
    places = generator.random((len(base), 3)).tolist()
    numbers = generator.integers(1, 4, size=len(base)).tolist()
    made = pool[:count]
    for i, new, where, number in zip(base, drawn, places, numbers, strict=True):
        text = pool[i].split()
        for j in range(number):
            text[int(where[j] * len(text))] = words[new[j]]
        made.append(" ".join(text))
    return made


def _stored(queries: Sequence[str], folder: Path) -> Rows:
    """Store queries as a dataset."""
    passage = (Passage("p", "", "some text"),)
    write_rows((Row(str(i), query, passage, ()) for i, query in enumerate(queries)), folder / "million.jsonl")
    return read_dataset("million", folder / "million.jsonl", cache=folder / "cache")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--training", type=int, default=TRAINING)
    arguments = parser.parse_args()
    print(json.dumps(measure_leakage(arguments.data, training=arguments.training), indent=1))


if __name__ == "__main__":
    main()
