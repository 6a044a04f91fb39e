"""The table of distinct texts against a dictionary, and what is shared, recalled and made again."""

import os
from pathlib import Path

import numpy as np
import pytest

from tdro.data import unique
from tdro.data.examples import with_instruction
from tdro.data.reading import read_dataset, write_rows
from tdro.data.records import Passage, Row
from tdro.data.store import Rows
from tdro.data.unique import UniqueTexts, unique_texts
from tdro.errors import EnvironmentProblem

TEMPLATE = "Instruct: {instruction}\nQuery: {query}"
POOL = [Passage(f"p{j}", "Title" * (j % 2), f"passage {j} é") for j in range(12)]


def rows_of(folder: Path, seed: int, count: int = 40, pool: list[Passage] = POOL) -> Rows:
    """Random rows over a pool of passages; every passage occurs, and queries repeat."""
    random = np.random.default_rng(seed)
    made = []
    for i in range(count):
        first, *others = (pool[j] for j in random.permutation(len(pool))[: random.integers(1, 9)])
        positives = random.integers(0, len(others) + 1)
        passages = (first, *others)
        row = Row(f"q{i}", f"query {random.integers(25)}", passages[: positives + 1], passages[positives + 1 :])
        made.append(row)
    made += [Row(f"extra{j}", f"query {j}", (passage,), ()) for j, passage in enumerate(pool)]
    folder.mkdir(exist_ok=True)
    write_rows(made, folder / "rows.jsonl")
    return read_dataset("rows", folder / "rows.jsonl", cache=folder / "cache")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fifty rows fill many batches."""
    monkeypatch.setattr("tdro.data.store._BATCH_ROWS", 7)
    monkeypatch.setattr(unique, "_ROWS", 5)


def texts_of(rows: Rows, kind: str) -> list[str]:
    """All texts of a kind, laid end to end."""
    if kind == "queries":
        return [row.query for row in rows.source]
    return [passage.full_text for row in rows.source for passage in (*row.positives, *row.negatives)]


@pytest.mark.parametrize("kind", ["queries", "passages"])
@pytest.mark.parametrize("seed", range(5))
def test_every_place_has_the_number_of_its_text(tmp_path, kind, seed):
    rows = rows_of(tmp_path, seed)
    found, all_texts = unique_texts(rows, kind, cache=tmp_path), texts_of(rows, kind)
    assert len(found) == len(set(all_texts)) and set(found) == set(all_texts)
    assert found.ids_n.dtype == np.int32
    assert [found[number] for number in found.ids_n.tolist()] == all_texts
    assert found.find(all_texts).tolist() == found.ids_n.tolist()
    assert found.find([]).tolist() == []
    lengths = [1 if kind == "queries" else len(row.positives) + len(row.negatives) for row in rows]
    assert found.starts_n.tolist() == [0, *np.cumsum(lengths)]
    with pytest.raises(KeyError, match="unheard of"):
        found.find([all_texts[0], "unheard of"])


def test_the_sequence_depends_on_the_set_of_texts_alone(tmp_path):
    tables = [unique_texts(rows_of(tmp_path / str(seed), seed), "passages", cache=tmp_path) for seed in (1, 2)]
    assert list(tables[0]) == list(tables[1]) and tables[0].content == tables[1].content
    assert tables[0].ids_n.tolist() != tables[1].ids_n.tolist()
    fewer = unique_texts(rows_of(tmp_path / "fewer", 1, pool=POOL[:-1]), "passages", cache=tmp_path)
    assert fewer.content != tables[0].content


def test_an_instruction_is_part_of_the_texts_but_not_of_their_numbers(tmp_path):
    rows = rows_of(tmp_path, 0)
    plain = unique_texts(rows, "queries", cache=tmp_path, template=TEMPLATE)
    asked = unique_texts(rows, "queries", cache=tmp_path, instruction="Find {query} bees", template=TEMPLATE)
    assert list(asked) == [with_instruction(text, "Find {query} bees", TEMPLATE) for text in plain]
    assert asked.ids_n.tolist() == plain.ids_n.tolist()
    assert asked.find(plain[2:5]).tolist() == [2, 3, 4]
    others = [{"instruction": "a", "template": TEMPLATE}, {"instruction": "a", "template": "{instruction} {query}"}]
    keys = {unique_texts(rows, "queries", cache=tmp_path, **other).content for other in others}
    assert len(keys | {plain.content, asked.content}) == 4
    assert unique_texts(rows, "queries", cache=tmp_path).content == plain.content


def test_slices_are_those_of_a_list_and_read_nothing_else(tmp_path, monkeypatch):
    texts = unique_texts(rows_of(tmp_path, 3), "passages", cache=tmp_path)
    expected = list(texts)
    asked: list[int] = []
    read = Rows.passages_at
    monkeypatch.setattr(Rows, "passages_at", lambda self, *at: asked.append(len(at[0])) or read(self, *at))
    for part in (slice(0, 1), slice(5, 5), slice(3, 9), slice(9, 3, -4), slice(-2, None), slice(9, 999)):
        assert texts[part] == expected[part]
    assert asked == [len(expected[part]) for part in (slice(0, 1), slice(5, 5), slice(3, 9), slice(9, 3, -4))] + [2, 3]
    assert texts[-1] == expected[-1]
    with pytest.raises(IndexError):
        texts[len(texts)]


def read_again(rows: Rows, cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[UniqueTexts, int]:
    """Open a table; how many blocks of rows were read for it."""
    calls: list[int] = []
    with monkeypatch.context() as patched:
        read = Rows.passage_texts
        patched.setattr(Rows, "passage_texts", lambda *call: calls.append(1) or read(*call))
        return unique_texts(rows, "passages", cache=cache), len(calls)


def test_a_table_is_made_once_for_all_selections_and_keeps_no_file_open(tmp_path, monkeypatch):
    rows = rows_of(tmp_path, 0)
    made, calls = read_again(rows, tmp_path, monkeypatch)
    assert calls == -(-len(rows) // 5)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    found, calls = read_again(rows.select(np.array([3, 3, 0])), tmp_path, monkeypatch)
    assert calls == 0 and found.ids_n.tolist() == made.ids_n.tolist() and list(found) == list(made)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ValueError, match="read-only"):
        found.ids_n[0] = 1


@pytest.mark.parametrize("name", ["ids_n.npy", "first_U.npy", "hash_U.npy", "table.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_damaged_table_is_made_again(tmp_path, monkeypatch, name, content):
    rows = rows_of(tmp_path, 0)
    made, _ = read_again(rows, tmp_path, monkeypatch)
    expected = list(made)
    (damaged,) = tmp_path.glob(f"unique/*/{name}")
    damaged.unlink()
    if content is not None:
        damaged.write_bytes(content)
    found, calls = read_again(rows, tmp_path, monkeypatch)
    assert calls > 0 and list(found) == expected
    assert read_again(rows, tmp_path, monkeypatch)[1] == 0


def test_progress_counts_texts(tmp_path):
    rows = rows_of(tmp_path, 0)
    told: list[tuple[int, int]] = []
    found = unique_texts(rows, "passages", cache=tmp_path, progress=lambda *done: told.append(done))
    total = len(found.ids_n)
    assert [of for _, of in told] == [total] * len(told) and told[-1] == (total, total) and len(told) > 3
    unique_texts(rows, "passages", cache=tmp_path, progress=lambda *_: pytest.fail("made again"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "unique").write_text("a file in the way")
    with pytest.raises(EnvironmentProblem, match=r"(?s)table cannot be kept.*where: .*unique.*fresh"):
        unique_texts(rows_of(tmp_path, 0), "passages", cache=tmp_path)
