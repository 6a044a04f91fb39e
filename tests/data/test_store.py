"""Texts and scores of some rows, read by column, against the rows themselves."""

import json
from pathlib import Path

import numpy as np
import pytest

from tdro.data.reading import read_dataset, write_rows
from tdro.data.records import Passage, Row
from tdro.data.store import Rows


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    """Rows with one to three positives, none to four negatives, some with titles; in batches of four."""
    monkeypatch.setattr("tdro.data.store._BATCH_ROWS", 4)
    made = []
    for i in range(23):
        passages = [Passage(f"{i}-{j}", f"Title {j}" * (j % 2), f"passage {j} of {i} é") for j in range(7)]
        made.append(Row(f"q{i}", f"query {i} 蜂", tuple(passages[: i % 3 + 1]), tuple(passages[3 : 3 + i % 5])))
    write_rows(made, tmp_path / "rows.jsonl")
    return read_dataset("rows", tmp_path / "rows.jsonl", cache=tmp_path / "cache")


def passages_of(row: Row) -> list[str]:
    """All passages of a row, positives first."""
    return [passage.full_text for passage in (*row.positives, *row.negatives)]


def test_texts_of_neighbouring_rows_are_those_of_the_rows(rows):
    for start, end in ((0, 23), (3, 4), (4, 4), (2, 11), (20, 23)):
        expected = [rows[i] for i in range(start, end)]
        assert rows.query_texts(start, end) == [row.query for row in expected]
        assert rows.passage_texts(start, end) == [text for row in expected for text in passages_of(row)]


def test_texts_of_any_rows_are_found_in_the_order_given(rows):
    random = np.random.default_rng(0)
    for count in (0, 1, 50):
        row_P = random.integers(len(rows), size=count)
        place_P = np.array([random.integers(len(passages_of(rows[i]))) for i in row_P], np.int64)
        assert rows.queries_at(row_P) == [rows[i].query for i in row_P]
        assert rows.passages_at(row_P, place_P) == [
            passages_of(rows[i])[place] for i, place in zip(row_P, place_P.tolist(), strict=True)
        ]


def test_rows_are_counted_in_the_source_whatever_was_selected(rows):
    chosen = rows.select(np.array([20, 3, 3, 11]))
    assert chosen.queries_at(np.array([5, 0])) == [rows[5].query, rows[0].query]
    assert chosen.passages_at(np.array([22, 1]), np.array([0, 1])) == [
        passages_of(rows[22])[0],
        passages_of(rows[1])[1],
    ]


def test_iteration_gives_the_rows_one_by_one_whatever_was_selected(rows, monkeypatch):
    for at_once in (1, 3, 100):
        monkeypatch.setattr("tdro.data.store._ROWS_AT_ONCE", at_once)
        assert list(rows) == [rows[i] for i in range(len(rows))]
        for numbers in ([4], [7, 3, 4, 5, 6, 6], [2, 3, 4, 5, 21, 22], [22, 21]):
            chosen = rows.select(np.array(numbers))
            assert list(chosen) == [rows[i] for i in numbers]
            assert list(chosen.select(np.array([0]))) == [rows[numbers[0]]]


def score_of(row: int, place: int) -> float | None:
    """The score of a passage of the scored rows below: none in the first rows, some missing, some of two models."""
    return None if row < 6 or (row == 11 and place == 1) else row + place / 8


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    """Rows as above, with scores; in row 14 they are of two models."""
    monkeypatch.setattr("tdro.data.store._BATCH_ROWS", 4)
    made = []
    for i in range(23):
        passages = [
            Passage(f"{i}-{j}", "", f"passage {j}", score_of(i, j), None, "m" if i == 14 and j else "")
            for j in range(6)
        ]
        made.append(Row(f"q{i}", f"query {i}", tuple(passages[: i % 3 + 1]), tuple(passages[i % 3 + 1 :])))
    write_rows(made, tmp_path / "scored.jsonl")
    return read_dataset("scored", tmp_path / "scored.jsonl", cache=tmp_path / "cache")


def test_scores_are_kept_by_row_and_place_and_those_of_several_models_do_not_count(scored):
    assert scored.scores is not None
    row_P, place_P = (part.ravel() for part in np.meshgrid(np.arange(23), np.arange(6), indexing="ij"))
    expected = [None if row == 14 else score_of(row, place) for row, place in zip(row_P, place_P, strict=True)]
    np.testing.assert_array_equal(scored.scores.at(row_P, place_P), np.array(expected, float))
    assert scored.without_scores == 6 + 2
    assert scored.select(np.array([7, 11, 3, 20])).without_scores == 2
    assert scored.select(np.array([7, 20])).scores is scored.scores


def test_a_dataset_without_scores_keeps_no_table(rows, tmp_path):
    assert rows.scores is None and rows.without_scores == len(rows)
    assert [file.name for file in (tmp_path / "cache").glob("*/scores.bin")] == []


@pytest.mark.parametrize("harm", ["older version", "table cut off", "table gone", "table spoilt"])
def test_entries_without_their_scores_are_made_again(scored, tmp_path, harm):
    entry = tmp_path / "cache" / scored.info.fingerprint
    table, about = entry / "scores.bin", json.loads((entry / "info.json").read_text())
    if harm == "older version":
        del about["scores"]
        (entry / "info.json").write_text(json.dumps(about))
        table.unlink()
    elif harm == "table gone":
        table.unlink()
    else:
        content = table.read_bytes()
        table.write_bytes(content[:-8] if harm == "table cut off" else content[:-1] + b"?")
    again = read_dataset("scored", tmp_path / "scored.jsonl", cache=tmp_path / "cache")
    assert again.info == scored.info and again.scores is not None
    assert again.scores.at(np.array([20]), np.array([3])).tolist() == [20.375]
