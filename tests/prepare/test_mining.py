"""Mining: which ranks are used, what can never be a negative, and what is counted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tdro.data.reading import read_dataset
from tdro.data.records import Passage, Row
from tdro.errors import ConfigError, DataError
from tdro.prepare.mining import MiningReport, mine
from tdro.retrieval.search import Encode


def passage(number: float, name: str = "") -> Passage:
    """Make a passage whose text is its similarity to every query."""
    return Passage(name or f"d{number}", "", str(number))


def encode_number(texts: Sequence[str]) -> np.ndarray:
    """Encode a passage as the number that it is."""
    return np.array([[float(text)] for text in texts], dtype=np.float32)


def encode_one(texts: Sequence[str]) -> np.ndarray:
    """Encode every query as 1."""
    return np.ones((len(texts), 1), dtype=np.float32)


def mine_rows(
    rows: Sequence[Row],
    folder: Path,
    *,
    encode_query: Encode = encode_one,
    encode_corpus: Encode = encode_number,
    corpus: Sequence[Passage] | None = None,
    ranks: tuple[int, int] = (2, 100),
    negatives: int = 16,
    only_missing: bool = False,
    query_chunk: int = 16384,
    seed: int = 0,
) -> tuple[list[Row], MiningReport]:
    """Mine, and read back what was written."""
    out = folder / "mined.jsonl"
    report = mine(
        rows,
        out,
        dataset="test",
        encode_query=encode_query,
        encode_corpus=encode_corpus,
        seed=seed,
        corpus=corpus,
        ranks=ranks,
        negatives=negatives,
        only_missing=only_missing,
        query_chunk=query_chunk,
    )
    return list(read_dataset("test", out, cache=folder / "cache")), report


def numbers(row: Row) -> list[float]:
    """The negatives of a row as numbers."""
    return [float(negative.text) for negative in row.negatives]


def test_window_skips_the_first_ranks_and_ends_before_the_last(tmp_path: Path) -> None:
    row = Row("q", "query", (passage(50),), ())
    (mined,), report = mine_rows([row], tmp_path, corpus=[passage(n) for n in range(101)], ranks=(2, 5))
    assert numbers(mined) == [98, 97, 96]  # ranks 0 and 1 are 100 and 99
    assert (report.short, report.mined, report.negatives) == (1, 1, 3)


def test_ranks_are_counted_among_the_non_positives(tmp_path: Path) -> None:
    positives = (passage(100), passage(98))
    corpus = [passage(n) for n in range(101)]
    (mined,), _ = mine_rows([Row("q", "query", positives, ())], tmp_path, corpus=corpus, ranks=(2, 5))
    assert numbers(mined) == [96, 95, 94]  # 99 is rank 0, 97 is rank 1


def test_default_window_reaches_from_the_third_to_the_hundredth_non_positive(tmp_path: Path) -> None:
    corpus = [passage(n) for n in range(300)]
    (mined,), _ = mine_rows([Row("q", "query", (passage(299),), ())], tmp_path, corpus=corpus, negatives=1000)
    assert numbers(mined) == list(range(296, 198, -1))  # 298 is the first non-positive, 199 the hundredth
    assert len(mined.negatives) == 98


def test_drawn_negatives_are_distinct_and_ordered_by_rank(tmp_path: Path) -> None:
    rows = [Row(f"q{i}", f"query {i}", (passage(1000 + i),), ()) for i in range(50)]
    mined, report = mine_rows(rows, tmp_path, corpus=[passage(n) for n in range(200)])
    for row in mined:
        assert numbers(row) == sorted(set(numbers(row)), reverse=True)
        assert len(row.negatives) == 16
        assert {100 <= n < 198 for n in numbers(row)} == {True}
    assert (report.short, report.negatives) == (0, 50 * 16)
    assert len({tuple(numbers(row)) for row in mined}) == 50  # every row draws for itself


def test_every_rank_of_the_window_is_drawn_equally_often(tmp_path: Path) -> None:
    rows = [Row(f"q{i}", f"query {i}", (passage(1000),), ()) for i in range(2000)]
    mined, _ = mine_rows(rows, tmp_path, corpus=[passage(n) for n in range(12)], ranks=(2, 10), negatives=2)
    counts = np.bincount([int(n) for row in mined for n in numbers(row)])
    assert counts[:2].sum() == 0  # ranks 10 and 11
    assert np.all(np.abs(counts[2:] - 2000 * 2 / 8) < 5 * np.sqrt(2000 * 0.25 * 0.75))


def test_positive_is_excluded_by_id_and_by_text(tmp_path: Path) -> None:
    corpus = [Passage("d1", "", "Old  version"), Passage("d2", "Caf\u00e9", "AU lait"), Passage("d3", "", "other")]
    row = Row("q", "query", (Passage("d1", "", "new version"), Passage("d9", "", "cafe\u0301 au\nlait")), ())
    (mined,), _ = mine_rows([row], tmp_path, encode_corpus=encode_one, corpus=corpus, ranks=(0, 10))
    assert [negative.id for negative in mined.negatives] == ["d3"]


def test_passage_that_repeats_the_query_is_excluded(tmp_path: Path) -> None:
    corpus = [Passage("d1", "", "who  DANCES?"), Passage("d2", "", "other")]
    row = Row("q", "Who dances?", (Passage("d3", "", "bees"),), ())
    (mined,), _ = mine_rows([row], tmp_path, encode_corpus=encode_one, corpus=corpus, ranks=(0, 10))
    assert [negative.id for negative in mined.negatives] == ["d2"]


def test_positives_of_another_row_with_the_same_query_are_excluded(tmp_path: Path) -> None:
    rows = [Row("q1", "who dances", (passage(1),), ()), Row("q2", "Who dances", (passage(2),), ())]
    rows.append(Row("q3", "who sleeps", (passage(3),), ()))
    mined, _ = mine_rows(rows, tmp_path, ranks=(0, 10))
    assert [numbers(row) for row in mined] == [[3], [3], [2, 1]]


def test_corpus_is_by_default_the_distinct_passages_of_the_dataset(tmp_path: Path) -> None:
    same_text = Passage("other id", "", "1.0")
    rows = [
        Row("q1", "one", (Passage("d1", "", "1.0"),), (passage(5),)),
        Row("q2", "two", (same_text, Passage("d1", "", "7")), ()),
    ]
    mined, report = mine_rows(rows, tmp_path, ranks=(0, 10))
    assert (report.corpus, report.shared_ids) == (3, 1)  # 1.0, 5 and 7; d1 stands for 1.0 and for 7
    assert [numbers(row) for row in mined] == [[5], [5]]


def test_negatives_are_replaced_unless_only_missing_ones_are_wanted(tmp_path: Path) -> None:
    rows = [Row("q1", "one", (passage(1),), (passage(9),)), Row("q2", "two", (passage(2),), ())]
    corpus = [passage(n) for n in range(4)]
    replaced, _ = mine_rows(rows, tmp_path / "a", corpus=corpus, ranks=(0, 2))
    assert [numbers(row) for row in replaced] == [[3, 2], [3, 1]]
    completed, report = mine_rows(rows, tmp_path / "b", corpus=corpus, ranks=(0, 2), only_missing=True)
    assert [numbers(row) for row in completed] == [[9], [3, 1]]
    assert (report.rows, report.kept, report.mined, report.negatives) == (2, 1, 1, 2)


def test_only_missing_draws_for_a_row_what_mining_all_rows_would_draw(tmp_path: Path) -> None:
    rows = [Row(f"q{i}", f"query {i}", (passage(500 + i),), (passage(i),) * (i % 2)) for i in range(10)]
    corpus = [passage(n) for n in range(200)]
    everything, _ = mine_rows(rows, tmp_path / "a", corpus=corpus)
    missing, _ = mine_rows(rows, tmp_path / "b", corpus=corpus, only_missing=True, query_chunk=3)
    assert missing[::2] == everything[::2]
    assert missing[1::2] == rows[1::2]


def test_empty_window_falls_back_to_better_ranks_and_is_counted(tmp_path: Path) -> None:
    rows = [Row(f"q{i}", f"query {i}", (passage(i),), ()) for i in range(3)]
    mined, report = mine_rows(rows, tmp_path, ranks=(2, 100))
    assert [numbers(row) for row in mined] == [[2, 1], [2, 0], [1, 0]]
    assert (report.fallback, report.short, report.none) == (3, 3, 0)


def test_row_without_any_candidate_is_kept_and_counted(tmp_path: Path) -> None:
    rows = [Row("q", "query", (passage(1),), ())]
    mined, report = mine_rows(rows, tmp_path)
    assert mined == rows
    assert (report.rows, report.none, report.mined, report.fallback, report.short) == (1, 1, 0, 0, 0)
    assert (report.negative_similarity, report.inverted) == (None, None)


def test_report_compares_positives_with_negatives(tmp_path: Path) -> None:
    rows = [Row("q1", "one", (passage(8), passage(1)), ()), Row("q2", "two", (passage(9),), ())]
    corpus = [passage(n) for n in (1, 4, 6)]  # 8 and 9 are encoded beside the corpus
    mined, report = mine_rows(rows, tmp_path, corpus=corpus, ranks=(0, 2))
    assert [numbers(row) for row in mined] == [[6, 4], [6, 4]]
    assert report.positive_similarity == (8 + 1 + 9) / 3
    assert report.negative_similarity == (6 + 4 + 6 + 4) / 4
    assert report.inverted == 1 / 2  # in the first row 6 is closer than 1
    assert report.as_dict()["inverted"] == 1 / 2


def test_equals_a_plain_ranking_when_most_scores_are_tied(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = {f"text {i}": rng.integers(-1, 2, size=3).astype(np.float32) for i in range(120)}
    encode: Encode = lambda texts: np.array([vectors[text] for text in texts])  # noqa: E731
    passages = [Passage(f"d{i}", "", f"text {i}") for i in rng.permutation(80)]
    rows = [Row(f"q{i}", f"text {80 + i}", tuple(passages[2 * i : 2 * i + 2]), ()) for i in range(40)]
    mined, _ = mine_rows(
        rows, tmp_path, encode_query=encode, encode_corpus=encode, ranks=(3, 12), negatives=9, query_chunk=7
    )
    for before, after in zip(rows, mined, strict=True):
        ranked = sorted(passages, key=lambda p: (-float(vectors[before.query] @ vectors[p.text]), p.id))
        assert list(after.negatives) == [p for p in ranked if p not in before.positives][3:12]


def test_draw_depends_on_the_seed_and_not_on_chunks(tmp_path: Path) -> None:
    rows = [Row(f"q{i}", f"query {i}", (passage(500 + i),), ()) for i in range(10)]
    corpus = [passage(n) for n in range(200)]
    first, _ = mine_rows(rows, tmp_path / "a", corpus=corpus)
    chunked, _ = mine_rows(rows, tmp_path / "b", corpus=corpus[::-1], query_chunk=3)
    reseeded, _ = mine_rows(rows, tmp_path / "c", corpus=corpus, seed=1)
    assert first == chunked
    assert all(a.negatives != b.negatives for a, b in zip(first, reseeded, strict=True))


def test_rows_with_equal_query_ids_draw_independently(tmp_path: Path) -> None:
    rows = [Row("q", f"query {i}", (passage(500 + i),), ()) for i in range(2)]
    mined, _ = mine_rows(rows, tmp_path, corpus=[passage(n) for n in range(200)])
    assert mined[0].negatives != mined[1].negatives


def test_progress_counts_rows_after_every_chunk(tmp_path: Path) -> None:
    rows = [Row(f"q{i}", f"query {i}", (passage(i),), ()) for i in range(5)]
    seen: list[tuple[int, int]] = []
    mine(
        rows,
        tmp_path / "mined.jsonl.gz",
        dataset="test",
        encode_query=encode_one,
        encode_corpus=encode_number,
        seed=0,
        query_chunk=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(("ranks", "negatives"), [((5, 5), 16), ((-1, 5), 16), ((2, 100), 0)])
def test_impossible_options_are_refused(tmp_path: Path, ranks: tuple[int, int], negatives: int) -> None:
    with pytest.raises(ConfigError):
        mine_rows([Row("q", "query", (passage(1),), ())], tmp_path, ranks=ranks, negatives=negatives)


def test_empty_dataset_and_empty_corpus_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        mine_rows([], tmp_path)
    with pytest.raises(DataError, match="corpus to search is empty"):
        mine_rows([Row("q", "query", (passage(1),), ())], tmp_path, corpus=[], encode_corpus=encode_one)
    assert list(tmp_path.iterdir()) == []
