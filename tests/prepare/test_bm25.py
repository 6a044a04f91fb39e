"""Mining by BM25: its scores, its order, another encoder as the judge, and what is said without its package."""

import sys
from pathlib import Path

import numpy as np
import pytest
from exact_bm25 import bm25

from tdro.data.records import Passage, Row
from tdro.errors import EnvironmentProblem
from tdro.prepare.bm25 import Bm25
from tdro.prepare.candidates import Dense
from tdro.prepare.margins import Selection
from tdro.prepare.mining import MiningReport, mine
from tdro.retrieval.shards import Embedder

TEXTS = ["bees dance in the hive", "bees and more bees", "the river carries sand", "sand, sand, sand"]


def mine_rows(rows: list[Row], folder: Path, texts: list[str], **selection: object) -> tuple[list[list], MiningReport]:
    """Mine by BM25; the negatives of each row as (text, score)."""
    out, found = folder / "mined.jsonl", []
    corpus = [Passage(f"d{i}", "", text) for i, text in enumerate(texts)]
    report = mine(
        rows, out, dataset="test", ranker=Bm25(), seed=0, corpus=corpus, selection=Selection(ranks=(0, 9), **selection)
    )
    import json

    for line in out.read_text(encoding="utf-8").splitlines():
        found.append([(p["text"], p["score"]) for p in json.loads(line)["negative_passages"]])
    return found, report


def test_scores_are_those_of_the_definition(tmp_path: Path) -> None:
    positive = "rivers of sand"
    ((first, second),), report = mine_rows(
        [Row("q", "sand in the river", (Passage("p", "", positive),), ())], tmp_path, TEXTS, max_score=1.0
    )
    collection = [*TEXTS, positive]  # a positive that the corpus lacks counts in the statistics, and is not ranked
    scores = sorted(((bm25("sand in the river", text, collection), text) for text in TEXTS), reverse=True)
    assert scores[0][0] > 1.0 > scores[1][0] > scores[2][0] > 0 == scores[3][0]
    assert [text for text, _ in (first, second)] == [text for _, text in scores[1:3]]
    assert [score for _, score in (first, second)] == pytest.approx([score for score, _ in scores[1:3]], abs=1e-5)
    assert report.positive_similarity == pytest.approx(bm25("sand in the river", positive, collection), abs=1e-5)
    assert report.ranker == "bm25"


def test_passages_without_a_common_word_are_no_candidates(tmp_path: Path) -> None:
    rows = [Row("q1", "bees", (Passage("p", "", "x"),), ()), Row("q2", "clock", (Passage("p", "", "x"),), ())]
    found, report = mine_rows(rows, tmp_path, TEXTS)
    assert [sorted(text for text, _ in row) for row in found] == [sorted(TEXTS[:2]), []]
    assert (report.none, report.refused_rows) == (1, 0)


def test_equal_scores_are_ordered_by_id(tmp_path: Path) -> None:
    texts = [f"bees {letter}" for letter in "zyxwvutsrq"]
    rows = [Row("q", "bees", (Passage("p", "", "none"),), ())]
    (row,), _ = mine_rows(rows, tmp_path, texts, sampling="top", negatives=4)
    assert [text for text, _ in row] == texts[:4]


def test_an_encoder_can_score_what_bm25_has_found(tmp_path: Path) -> None:
    encode = Embedder(lambda texts: np.array([[float(len(text))] for text in texts], np.float32))
    rows = [Row("q", "sand", (Passage("p", "", "sand" * 5),), ())]
    corpus = [Passage(f"d{i}", "", text) for i, text in enumerate([*TEXTS, "sand"])]
    report = mine(
        rows,
        tmp_path / "mined.jsonl",
        dataset="test",
        ranker=Bm25(),
        judge=Dense(encode, encode, "lengths"),
        seed=0,
        corpus=corpus,
        selection=Selection(ranks=(0, 9), absolute_margin=4 * (20 - 16)),
    )
    text = (tmp_path / "mined.jsonl").read_text(encoding="utf-8")
    assert '"text": "sand, sand, sand", "score": 64.0' in text and "river" not in text  # 4 * 16; the river is longer
    assert (report.judge, report.positive_similarity, report.above_margin) == ("lengths", 80.0, 1)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'tdro\[mine\]'"):
        mine_rows([Row("q", "bees", (Passage("p", "", "x"),), ())], tmp_path, TEXTS)
