"""Mining: which ranks are used, what can never be a negative, and what is counted."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdro.data.reading import read_dataset
from tdro.data.records import Passage, Row
from tdro.errors import ConfigError, DataError
from tdro.prepare.candidates import Dense
from tdro.prepare.judges import Judge, PairScorer
from tdro.prepare.margins import Selection
from tdro.prepare.mining import MiningReport, mine
from tdro.retrieval.search import Encode
from tdro.retrieval.shards import Embedder


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
    judge: Judge | None = None,
    **selection: Any,
) -> tuple[list[Row], MiningReport]:
    """Mine, and read back what was written."""
    out = folder / "mined.jsonl"
    report = mine(
        rows,
        out,
        dataset="test",
        ranker=Dense(Embedder(encode_query), Embedder(encode_corpus)),
        seed=seed,
        corpus=corpus,
        selection=Selection(ranks=ranks, negatives=negatives, **selection),
        judge=judge,
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
        ranker=Dense(Embedder(encode_one), Embedder(encode_number)),
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


def written(folder: Path) -> list[dict[str, Any]]:
    """The rows as they stand in the file."""
    return [json.loads(line) for line in (folder / "mined.jsonl").read_text(encoding="utf-8").splitlines()]


def test_score_rank_and_source_are_written_with_every_passage(tmp_path: Path) -> None:
    corpus = [Passage(f"d{n}", "Title", str(n)) for n in (1, 4, 6, 8)]
    encode: Encode = lambda texts: encode_number([text.removeprefix("Title ") for text in texts])  # noqa: E731
    mine_rows([Row("q", "one", (corpus[3],), ())], tmp_path, encode_corpus=encode, corpus=corpus, ranks=(1, 3))
    (row,) = written(tmp_path)
    assert row["negative_passages"] == [
        {"docid": "d4", "title": "Title", "text": "4", "score": 4.0, "rank": 1, "model": "encoder"},
        {"docid": "d1", "title": "Title", "text": "1", "score": 1.0, "rank": 2, "model": "encoder"},
    ]
    assert row["positive_passages"] == [
        {"docid": "d8", "title": "Title", "text": "8", "score": 8.0, "model": "encoder"},
    ]


def test_top_takes_the_best_of_the_window(tmp_path: Path) -> None:
    row = Row("q", "query", (passage(1000),), ())
    (mined,), _ = mine_rows(
        [row], tmp_path, corpus=[passage(n) for n in range(200)], negatives=3, sampling="top", ranks=(5, 100)
    )
    assert numbers(mined) == [194, 193, 192]


def test_relative_margin_compares_with_the_worst_positive(tmp_path: Path) -> None:
    rows = [Row("q", "query", (passage(100), passage(50)), ())]
    corpus = [passage(n) for n in range(120)]
    (mined,), report = mine_rows(rows, tmp_path, corpus=corpus, ranks=(0, 80), negatives=1000, relative_margin=0.1)
    assert numbers(mined) == list(range(45, 37, -1))  # 45 = 0.9 * 50; the window of 80 without 100 and 50 ends at 38
    assert (report.looked_at, report.above_margin, report.outside_limits, report.negatives) == (80, 72, 0, 8)
    assert report.skipped == 72 / 80
    assert any("90% of the candidates were refused" in warning for warning in report.warnings)


def test_absolute_margin_and_limits_refuse_for_their_own_reasons(tmp_path: Path) -> None:
    rows = [Row("q", "query", (passage(50),), ())]
    (mined,), report = mine_rows(
        rows, tmp_path, corpus=[passage(n) for n in range(60)], ranks=(0, 59), absolute_margin=20, max_score=25,
        min_score=22, negatives=1000,
    )  # fmt: skip
    assert numbers(mined) == [25, 24, 23, 22]
    assert (report.above_margin, report.outside_limits) == (28, 5 + 22)  # 59..31 without 50; 30..26 and 21..0


def test_a_margin_that_refuses_nothing_changes_nothing(tmp_path: Path) -> None:
    rows = [Row(f"q{i}", f"query {i}", (passage(500 + i),), ()) for i in range(10)]
    corpus = [passage(n) for n in range(200)]
    plain, without = mine_rows(rows, tmp_path / "a", corpus=corpus)
    margin, report = mine_rows(rows, tmp_path / "b", corpus=corpus, relative_margin=0.01)
    assert plain == margin
    assert (without.skipped, report.skipped) == (None, 0.0)


def test_what_a_margin_leaves_is_drawn_equally_often(tmp_path: Path) -> None:
    rows = [Row(f"q{i}", f"query {i}", (passage(9),), ()) for i in range(2000)]
    corpus = [passage(n) for n in range(9)]
    mined, _ = mine_rows(rows, tmp_path, corpus=corpus, ranks=(0, 9), negatives=2, absolute_margin=4)
    counts = np.bincount([int(n) for row in mined for n in numbers(row)])
    assert len(counts) == 6 and counts.sum() == 4000  # 6, 7 and 8 are too close to 9
    assert np.all(np.abs(counts - 4000 / 6) < 5 * np.sqrt(4000 / 6))


def test_refused_rows_are_written_without_negatives_and_counted(tmp_path: Path) -> None:
    rows = [Row("q1", "one", (passage(1),), ()), Row("q2", "two", (passage(9),), ())]
    corpus = [passage(n) for n in range(4, 8)]
    mined, report = mine_rows(rows, tmp_path, corpus=corpus, ranks=(0, 4), absolute_margin=0)
    assert [numbers(row) for row in mined] == [[], [7, 6, 5, 4]]
    assert (report.none, report.refused_rows, report.mined) == (1, 1, 1)
    assert report.warnings == ["1 of 2 rows have no negatives (1 because every candidate was refused)"]


def count_pairs(asked: list[tuple[str, str]]) -> PairScorer:
    """A cross-encoder that prefers small numbers, and remembers what it was asked."""

    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        asked.extend(pairs)
        return [-float(text) for _, text in pairs]

    return PairScorer(score, "small")


def test_margins_look_at_the_scores_of_the_cross_encoder(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []
    rows = [Row("q", "query", (passage(50),), ())]
    (mined,), report = mine_rows(
        rows, tmp_path, corpus=[passage(n) for n in range(60)], ranks=(0, 20), negatives=1000, absolute_margin=5,
        judge=count_pairs(asked),
    )  # fmt: skip
    assert numbers(mined) == [59, 58, 57, 56, 55]  # -55 = -50 - 5
    assert (report.ranker, report.judge, report.above_margin) == ("encoder", "small", 15)
    assert {p["model"] for p in written(tmp_path)[0]["negative_passages"]} == {"encoder + small"}
    assert [p["score"] for p in written(tmp_path)[0]["negative_passages"]] == [-59, -58, -57, -56, -55]
    assert [(p["score"], p["model"]) for p in written(tmp_path)[0]["positive_passages"]] == [(-50, "encoder + small")]
    assert report.positive_similarity == -50
    assert len(asked) == 1 + 20


def test_the_cross_encoder_scores_only_what_can_matter(tmp_path: Path) -> None:
    rows = [Row(f"q{i}", f"query {i}", (passage(500 + i),), ()) for i in range(10)]
    corpus = [passage(n) for n in range(200)]
    plain, _ = mine_rows(rows, tmp_path / "a", corpus=corpus)
    asked: list[tuple[str, str]] = []
    judged, _ = mine_rows(rows, tmp_path / "b", corpus=corpus, judge=count_pairs(asked))
    assert judged == plain and len(asked) == 10 * (1 + 16)
    asked.clear()
    limited, report = mine_rows(rows, tmp_path / "c", corpus=corpus, judge=count_pairs(asked), min_score=-150)
    assert len(asked) == len(set(asked)) == 10 + report.looked_at < 10 * (1 + 98)
    assert all(len(row.negatives) == 16 and max(numbers(row)) <= 150 for row in limited)
    assert report.looked_at == 160 + report.outside_limits  # every candidate that was scored is taken or refused


def test_asking_for_some_scores_at_a_time_selects_what_all_scores_would(tmp_path: Path) -> None:
    rows = [Row(f"q{i}", f"query {i}", (passage(500 + i),), ()) for i in range(20)]
    corpus = [passage(n) for n in range(200)]
    encoder_itself = PairScorer(lambda pairs: [float(text) for _, text in pairs])
    at_once, _ = mine_rows(rows, tmp_path / "a", corpus=corpus, max_score=140)
    in_rounds, _ = mine_rows(rows, tmp_path / "b", corpus=corpus, max_score=140, judge=encoder_itself)
    assert at_once == in_rounds


def test_a_scorer_that_gives_something_else_than_scores_is_refused(tmp_path: Path) -> None:
    rows, corpus = [Row("q", "query", (passage(1),), ())], [passage(n) for n in range(4)]
    with pytest.raises(DataError, match="one score per pair"):
        mine_rows(rows, tmp_path, corpus=corpus, ranks=(0, 9), judge=PairScorer(lambda pairs: [0.0]))
    with pytest.raises(DataError, match="not a finite number"):
        mine_rows(rows, tmp_path, corpus=corpus, judge=PairScorer(lambda pairs: [float("nan")] * len(pairs)))


def plain_mine(rows: Sequence[Row], corpus: Sequence[Passage], ranks: tuple[int, int]) -> list[list[Passage]]:
    """Every passage of the window, by comparing everything with everything."""

    def plain(text: str) -> str:
        return " ".join(text.casefold().split())

    distinct: dict[str, Passage] = {}
    for one in corpus:
        distinct.setdefault(plain(one.full_text), one)
    found = []
    for row in rows:
        same = [other for other in rows if plain(other.query) == plain(row.query)]
        ids = {p.id for other in same for p in other.positives}
        texts = {plain(p.full_text) for other in same for p in other.positives} | {plain(row.query)}
        allowed = [p for text, p in distinct.items() if p.id not in ids and text not in texts]
        allowed.sort(key=lambda p: (-number_in(p.full_text), p.id))
        found.append(allowed[slice(*ranks)] or allowed)
    return found


def number_in(text: str) -> float:
    """The first number of a text."""
    return float(next(word for word in text.split() if word.isdigit()))


def test_equals_a_slow_exact_version_on_a_collection_full_of_repeats(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)

    def any_passage() -> Passage:
        text = (
            " ".join(rng.permutation(["a", "A", str(rng.integers(12))])[: rng.integers(1, 4)]) + f" {rng.integers(9)}"
        )
        return Passage(f"d{rng.integers(40)}", "T" * int(rng.integers(2)), text)

    corpus = [any_passage() for _ in range(300)]
    rows = [
        Row(f"q{i}", f"query {rng.integers(30)} 1", tuple(any_passage() for _ in range(rng.integers(1, 4))), ())
        for i in range(80)
    ]
    encode: Encode = lambda texts: np.array([[number_in(text)] for text in texts], np.float32)  # noqa: E731
    mined, _ = mine_rows(
        rows, tmp_path, encode_corpus=encode, corpus=corpus, ranks=(1, 15), negatives=1000, query_chunk=33
    )
    for row, expected in zip(mined, plain_mine(rows, corpus, (1, 15)), strict=True):
        scores = [number_in(p.full_text) for p in row.negatives]
        assert scores == [number_in(p.full_text) for p in expected]
        assert [p.id for p in row.negatives] == [p.id for p in expected]


def test_a_corpus_is_searched_alone(tmp_path: Path) -> None:
    rows = [Row("q1", "one", (passage(7),), (passage(9),)), Row("q2", "two", (passage(8),), ())]
    mined, report = mine_rows(rows, tmp_path, corpus=[passage(n) for n in (1, 2)], ranks=(0, 9))
    assert [numbers(row) for row in mined] == [[2, 1], [2, 1]]
    assert (report.corpus, report.positive_similarity) == (2, 7.5)


def test_passages_without_a_letter_are_left_out_and_counted(tmp_path: Path) -> None:
    row = Row("q", "one", (passage(7),), ())
    corpus = [Passage("empty", "", ""), Passage("blank", "", " \n"), passage(1)]
    (mined,), report = mine_rows([row], tmp_path, corpus=corpus, ranks=(0, 9))
    assert numbers(mined) == [1]
    assert (report.corpus, report.empty) == (1, 2)


def test_passages_that_change_between_two_readings_are_refused(tmp_path: Path) -> None:
    class Growing:
        """One passage more with every reading."""

        reads = 0

        def __iter__(self) -> Iterator[Passage]:
            self.reads += 1
            return iter([passage(n) for n in range(self.reads)])

    with pytest.raises(DataError, match="changed while they were read"):
        mine_rows([Row("q", "one", (passage(7),), ())], tmp_path, corpus=Growing())


def test_seconds_are_split_and_percentiles_rise(tmp_path: Path) -> None:
    rows = [Row(f"q{i}", f"query {i}", (passage(500 + i),), ()) for i in range(10)]
    _, report = mine_rows(rows, tmp_path, corpus=[passage(n) for n in range(200)])
    assert set(report.seconds_of) == {"read", "encode", "search", "judge", "write"}
    assert sum(report.seconds_of.values()) == pytest.approx(report.seconds, rel=1e-6)
    assert report.positive_percentiles["50"] == 504.5
    assert list(report.negative_percentiles.values()) == sorted(report.negative_percentiles.values())


def test_an_error_of_the_encoder_leaves_neither_file_nor_folder(tmp_path: Path) -> None:
    def broken(texts: Sequence[str]) -> np.ndarray:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        mine_rows([Row("q", "one", (passage(7),), ())], tmp_path, encode_corpus=broken)
    assert list(tmp_path.iterdir()) == []
