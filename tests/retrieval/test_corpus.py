"""A corpus on disk: what is kept of repeated passages, how they are found, what is refused."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tdro.data.records import Passage
from tdro.errors import DataError
from tdro.retrieval import corpus as corpus_module
from tdro.retrieval import passage_table
from tdro.retrieval.corpus import PassageFile, store_corpus, text_keys

PASSAGES = [
    Passage("d3", "", "bees dance"),
    Passage("d1", "Rivers", "carry sand"),
    Passage("d2", "", "Bees  DANCE"),
    Passage("d1", "", "bread rises"),
    Passage("d0", "", " "),
    Passage("d4", "", "caf\u00e9"),
    Passage("d5", "", "cafe\u0301"),
]
KEPT = [PASSAGES[i] for i in (0, 1, 3, 5)]


@pytest.fixture(params=[1, 3, 1024])
def batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of several sizes."""
    monkeypatch.setattr(passage_table, "_BATCH", request.param)
    monkeypatch.setattr(corpus_module, "_READ", 2)


@pytest.mark.usefixtures("batch")
def test_of_passages_with_the_same_text_the_first_is_kept(tmp_path: Path) -> None:
    corpus = store_corpus(PASSAGES, tmp_path / "corpus")
    assert (len(corpus), corpus.shared_ids, corpus.empty) == (4, 1, 1)
    assert corpus.take(np.arange(4)) == KEPT
    assert corpus.take(np.array([3, 0, 3])) == [KEPT[3], KEPT[0], KEPT[3]]
    assert corpus[1:3] == ["Rivers carry sand", "bread rises"]
    assert corpus.take(np.array([], int)) == [] and corpus[4:9] == []


@pytest.mark.usefixtures("batch")
def test_passages_are_found_by_text_and_by_id(tmp_path: Path) -> None:
    corpus = store_corpus(PASSAGES, tmp_path / "corpus")
    keys = text_keys(["rivers CARRY sand", "nothing", "caf\u00e9", "bees dance"])
    assert corpus.find_texts(keys).tolist() == [1, -1, 3, 0]
    which, numbers = corpus.find_ids(["d4", "none", "d1"])
    assert sorted(zip(which.tolist(), numbers.tolist(), strict=True)) == [(0, 3), (2, 1), (2, 2)]


def test_places_are_those_of_ids_sorted_as_strings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [
        chr(int(code)) * int(n)
        for code, n in zip(rng.integers(0x61, 0x2FFFF, 300), rng.integers(1, 3, 300), strict=True)
    ]
    ids = [i for i in ids if not any(0xD800 <= ord(c) <= 0xDFFF for c in i)]
    corpus = store_corpus([Passage(i, "", f"text {n}") for n, i in enumerate(ids)], tmp_path / "corpus")
    order = np.argsort(corpus.place_P)
    assert [ids[i] for i in order] == sorted(ids)


def test_content_depends_on_texts_and_their_order_alone(tmp_path: Path) -> None:
    def content(name: str, *passages: Passage) -> str:
        return store_corpus(passages, tmp_path / name).content

    first, second = Passage("d1", "", "a b"), Passage("d2", "", "c")
    assert content("a", first, second) == content("b", Passage("x", "a", "b"), second)
    assert len({content("c", first, second), content("d", second, first), content("e", first)}) == 3


def test_ids_are_compared_themselves_and_not_by_their_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage_table, "_id_keys", lambda ids: np.zeros(len(ids), np.uint64))
    corpus = store_corpus(PASSAGES, tmp_path / "corpus")
    which, numbers = corpus.find_ids(["none", "d1"])
    assert sorted(zip(which.tolist(), numbers.tolist(), strict=True)) == [(1, 1), (1, 2)]


def test_an_empty_corpus_finds_nothing(tmp_path: Path) -> None:
    corpus = store_corpus([], tmp_path / "corpus")
    assert len(corpus) == 0 and corpus[0:5] == []
    assert corpus.find_texts(text_keys(["a"])).tolist() == [-1]
    assert [part.tolist() for part in corpus.find_ids(["a"])] == [[], []]


RECORDS = [{"_id": "d1", "title": "T", "text": "one"}, {"_id": 7, "text": "two"}, {"text": "three", "title": None}]


def write(path: Path, records: list) -> Path:
    """Write records in the form that the name asks for."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{k: str(v) for k, v in r.items() if v} for r in records]), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz", "corpus.parquet"])
def test_files_of_passages(tmp_path: Path, name: str) -> None:
    passages = list(PassageFile(write(tmp_path / name, RECORDS)))
    assert passages[0] == Passage("d1", "T", "one") and passages[1] == Passage("7", "", "two")
    assert passages[2].text == "three" and len(passages[2].id) == 16


def test_a_file_is_stored_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "corpus.jsonl", RECORDS)
    assert len(PassageFile(file).store(tmp_path / "cache")) == 3
    monkeypatch.setattr(PassageFile, "__iter__", lambda self: pytest.fail("read again"))
    assert PassageFile(file).store(tmp_path / "cache")[0:1] == ["T one"]
    monkeypatch.undo()
    write(file, RECORDS[:2])
    assert len(PassageFile(file).store(tmp_path / "cache")) == 2


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (["text"], ""), ({"_id": "1"}, ":text"), ({"text": 3}, ":text"), ({"text": "a", "title": 3}, ":title"),
        ({"text": "a", "_id": 1.5}, ":_id"), ({"text": "a", "id": True}, ":id"), ({"text": "\ud83d"}, ":text"),
        ({"text": "a", "id": "\ud83d"}, ":id"),
    ],
)  # fmt: skip
def test_a_record_that_is_no_passage_is_named(tmp_path: Path, record: object, field: str) -> None:
    file = write(tmp_path / "corpus.jsonl", [RECORDS[0], record])
    with pytest.raises(DataError, match=f"corpus.jsonl:2{field}\n"):
        PassageFile(file).store(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("corpora/[!.]*"))
