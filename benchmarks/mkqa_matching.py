"""What it costs to judge MKQA: 25 languages, 6,700 questions each, 100 passages per question.

python benchmarks/mkqa_matching.py [--passages 200000]
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from tdro.evaluation.mkqa import LANGUAGES, Mkqa, read_mkqa, tokenize_documents
from tdro.retrieval.search import Hits

QUESTIONS, DEPTH = 6700, 100
WORDS = 200_000  # different ones
LENGTH = 95  # words of a passage in the mean; punctuation comes on top
FOUND = 0.7  # share of questions with the passage of their answer among their 100, at a rank whose logarithm is uniform
ANSWERS = 3.0  # of a question, in the mean


@dataclass(frozen=True)
class Passages:
    """Passages in memory."""

    texts: list[str]
    content: str

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, part: slice) -> list[str]:
        return self.texts[part]


def generate(count: int) -> Passages:
    """Make passages of words as frequent as in Zipf's law, some accented or numbers, with commas and full stops."""
    rng = np.random.default_rng(0)
    letters = rng.choice(list("etaoinshrdlcumwfgypbvkzqxjé"), (WORDS, 9)).tolist()
    sizes = np.clip(rng.normal(2 + np.log10(np.arange(WORDS) + 1), 1), 1, 9).astype(int).tolist()
    words = np.array(["".join(row[:size]) for row, size in zip(letters, sizes, strict=True)], object)
    words[39::40] = [f"{i},{i % 1000:03}" for i in range(len(words[39::40]))]
    ending = np.array(["", ",", "."], object)
    weights = np.cumsum(1 / (np.arange(WORDS) + 3.0))
    texts = []
    for size in np.clip(rng.normal(LENGTH, 30, count), 8, None).astype(int).tolist():
        drawn = words[np.searchsorted(weights, rng.random(size) * weights[-1])]
        texts.append(" ".join((drawn + ending[rng.choice(3, size, p=[0.86, 0.08, 0.06])]).tolist()))
    return Passages(texts, f"generated {count}")


def phrase(text: str, rng: np.random.Generator) -> str:
    """Cut one to five words out of a passage."""
    words = text.split()
    start = int(rng.integers(len(words) - 5))
    return " ".join(words[start : start + int(rng.choice([1, 2, 3, 4, 5], p=[0.3, 0.4, 0.15, 0.1, 0.05]))])


def write_questions(passages: Passages, file: Path) -> np.ndarray:
    """Write questions in Apple's layout whose first answer stands in a passage and whose others stand in none.

    The others begin like phrases of passages, so that they cost as much as answers that are nearly there.

    Returns:
        int64 [Q], the number of that passage.
    """
    rng = np.random.default_rng(1)
    source_Q = rng.integers(len(passages), size=QUESTIONS)
    queries = dict.fromkeys(LANGUAGES, "question")
    with file.open("w", encoding="utf-8") as stream:
        for number, source in enumerate(source_Q.tolist()):
            near = rng.integers(len(passages), size=rng.poisson(ANSWERS - 1)).tolist()
            aliases = [f"{phrase(passages.texts[i], rng)} nowhere{number}" for i in near]
            answer = {"type": "entity", "text": phrase(passages.texts[source], rng), "aliases": aliases}
            record = {"example_id": number, "queries": queries, "answers": {"en": [answer]}}
            stream.write(json.dumps(record) + "\n")
    return source_Q


def rankings(source_Q: np.ndarray, passages: int, languages: tuple[str, ...]) -> Iterator[tuple[str, Hits]]:
    """Make the rankings of every language: random passages, among which many questions find the one they come from."""
    for seed, language in enumerate(languages):
        rng = np.random.default_rng([2, seed])
        indices_QK = rng.integers(passages, size=(len(source_Q), DEPTH))
        found = np.flatnonzero(rng.random(len(source_Q)) < FOUND)
        indices_QK[found, (DEPTH ** rng.random(len(found))).astype(int) - 1] = source_Q[found]
        yield language, Hits(indices_QK, np.zeros(indices_QK.shape, np.float32))


def judge_all(mkqa: Mkqa, source_Q: np.ndarray, passages: Passages, cache: Path) -> tuple[float, float]:
    """Judge every language.

    Returns:
        CPU seconds of opening the tokens and judging, and the mean of acc@100.
    """
    began = time.process_time()
    tokens = tokenize_documents(passages, cache)
    seconds, found = time.process_time() - began, []
    for language, hits in rankings(source_Q, len(passages), mkqa.languages):
        began = time.process_time()
        scores = mkqa.judge(language, hits, passages, tokens)
        seconds += time.process_time() - began
        found.append(scores["acc@100"].mean())
    return seconds, float(np.mean(found))


def mkqa_match_cpu_s(passages: int = 200_000, repeats: int = 3) -> tuple[float, dict[str, object]]:
    """Measure the CPU seconds of judging all 25 languages once the passages are tokenised.

    Args:
        passages: Size of the generated corpus.
        repeats: The median of so many repetitions counts.

    Returns:
        The CPU seconds, and what else is known: CPU seconds of each repetition, of reading the questions and of
        tokenising, tokens per passage and made per CPU second, mean acc@100.
    """
    corpus = generate(passages)
    with TemporaryDirectory() as folder:
        source_Q = write_questions(corpus, Path(folder, "mkqa.jsonl"))
        began = time.process_time()
        mkqa = read_mkqa(Path(folder, "mkqa.jsonl"))
        read = time.process_time() - began
        began = time.process_time()
        tokens = tokenize_documents(corpus, Path(folder))
        made = time.process_time() - began
        _, end_D = tokens.take(np.arange(len(corpus)))
        count = int(end_D[-1]) - len(corpus)
        del tokens, end_D
        runs = [judge_all(mkqa, source_Q, corpus, Path(folder)) for _ in range(repeats)]
    details = {
        "judge_cpu_s": [round(seconds, 2) for seconds, _ in runs],
        "read_cpu_s": round(read, 2),
        "tokenize_cpu_s": round(made, 2),
        "tokens_per_cpu_s": round(count / made),
        "tokens_per_passage": round(count / len(corpus), 1),
        "passages": len(corpus),
        "questions": len(mkqa.query_ids),
        "languages": len(mkqa.languages),
        "depth": DEPTH,
        "acc@100": round(runs[0][1], 4),
    }
    return median(seconds for seconds, _ in runs), details


def main() -> None:
    """Print the figure and its details."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    seconds, details = mkqa_match_cpu_s(options.passages, options.repeats)
    print(f"mkqa_match_cpu_s {seconds:.1f}")
    print(json.dumps(details, indent=1))


if __name__ == "__main__":
    main()
