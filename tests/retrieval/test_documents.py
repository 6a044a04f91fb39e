"""Documents on disk: all are kept, found by id and ordered by id; what is refused, and where it stands."""

import gzip
import json
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tdro.data.records import Passage
from tdro.errors import DataError, EnvironmentProblem
from tdro.retrieval import documents as documents_module
from tdro.retrieval import passage_table
from tdro.retrieval.documents import Documents, store_documents

RECORDS = [
    {"_id": "d10", "title": "Rivers", "text": "carry sand"},
    {"_id": "d2", "title": "", "text": "bees dance"},
    {"_id": 7, "title": None, "text": "bees dance"},
    {"_id": "z", "text": ""},
    {"_id": "a", "title": "Only", "text": ""},
]


def write(path: Path, records: Sequence[Any]) -> Path:
    """Write records in the form that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".parquet":
        pq.write_table(
            pa.Table.from_pylist([{k: str(v) for k, v in r.items() if v is not None} for r in records]), path
        )
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


@pytest.fixture(params=[1, 2, 1024])
def batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of several sizes."""
    monkeypatch.setattr(passage_table, "_BATCH", request.param)
    monkeypatch.setattr(documents_module, "_COMPARED", request.param)


@pytest.mark.usefixtures("batch")
@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz", "corpus.parquet"])
def test_every_document_is_kept_in_the_order_of_the_file(tmp_path: Path, name: str) -> None:
    documents = store_documents(write(tmp_path / name, RECORDS), tmp_path / "cache")
    assert len(documents) == 5 and documents.empty == 1
    assert documents[0:5] == ["Rivers carry sand", "bees dance", "bees dance", "", "Only "]
    assert documents[1:3] == documents[1:3:1] == ["bees dance"] * 2 and documents[5:9] == []
    assert documents.ids_at(np.array([2, 0, 2])) == ["7", "d10", "7"]
    assert documents.take(np.array([4, 0])) == [Passage("a", "Only", ""), Passage("d10", "Rivers", "carry sand")]
    assert documents.find(["z", "none", "7", "d1", "z"]).tolist() == [3, -1, 2, -1, 3]
    assert documents.find([]).tolist() == [] and documents.find([]).dtype == np.int64
    assert documents.place_P.tolist() == [2, 3, 0, 4, 1]  # 7 < a < d10 < d2 < z


def test_places_are_those_of_ids_sorted_as_strings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = [c for c in rng.choice(np.arange(0x21, 0x2FFFF), 400, replace=False).tolist() if not 0xD800 <= c <= 0xDFFF]
    ids = [chr(c) * n for c in codes for n in (2, 1) if not chr(c).isspace()]
    file = write(tmp_path / "corpus.jsonl", [{"id": i, "text": "t"} for i in ids])
    documents = store_documents(file, tmp_path / "cache")
    assert documents.ids_at(np.argsort(documents.place_P)) == sorted(ids)
    assert documents.find(ids).tolist() == list(range(len(ids)))


def test_ids_are_compared_themselves_and_not_by_their_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage_table, "_id_keys", lambda ids: np.zeros(len(ids), np.uint64))
    documents = store_documents(write(tmp_path / "corpus.jsonl", RECORDS), tmp_path / "cache")
    assert documents.find(["z", "none", "7"]).tolist() == [3, -1, 2]


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10, 11):
        write(tmp_path / "miracl" / f"docs-{number}.jsonl.gz", [{"docid": f"{number}#0", "title": "T", "text": "x"}])
    write(tmp_path / "miracl" / "README.md", ["not a document"])
    documents = store_documents(tmp_path / "miracl", tmp_path / "cache")
    assert documents.ids_at(np.arange(5)) == ["0#0", "1#0", "2#0", "10#0", "11#0"]


def test_of_a_beir_folder_the_corpus_is_read(tmp_path: Path) -> None:
    write(tmp_path / "beir" / "corpus.jsonl.gz", RECORDS)
    write(tmp_path / "beir" / "queries.jsonl", [{"_id": "q", "text": "who dances"}])
    (tmp_path / "beir" / "qrels").mkdir()
    assert len(store_documents(tmp_path / "beir", tmp_path / "cache")) == 5


def test_the_same_bytes_are_read_once_and_content_is_that_of_the_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache = write(tmp_path / "a" / "corpus.jsonl", RECORDS), tmp_path / "cache"
    first = store_documents(file, cache)
    monkeypatch.setattr(documents_module, "passage_of", lambda *_: pytest.fail("read again"))
    again = store_documents(write(tmp_path / "b" / "other.jsonl", RECORDS), cache)
    monkeypatch.undo()
    assert again.content == first.content and len(list((cache / "documents").glob("[!.]*"))) == 1
    renamed = store_documents(write(file, [record | {"_id": f"x{n}"} for n, record in enumerate(RECORDS)]), cache)
    assert renamed.content == first.content and renamed.find(["x3"]).tolist() == [3]
    changed = store_documents(write(file, [*RECORDS, {"_id": "new", "text": ""}]), cache)
    assert changed.content != first.content and len(changed) == 6


@pytest.mark.parametrize("name", ["texts.arrow", "ids.bin", "id_starts.npy", "place_P.npy", "about.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_what_is_damaged_in_the_cache_is_made_again(tmp_path: Path, name: str, damage: str) -> None:
    file = write(tmp_path / "corpus.jsonl", RECORDS)
    store_documents(file, tmp_path / "cache")
    (stored,) = (tmp_path / "cache").glob(f"documents/*/{name}")
    if damage == "cut":
        os.truncate(stored, stored.stat().st_size // 2)
    else:
        stored.unlink()
    assert store_documents(file, tmp_path / "cache").find(["z"]).tolist() == [3]


def _store(file: Path, cache: Path, start: Any, found: Any) -> None:
    """Store documents when the others do."""
    start.wait()
    found.put(store_documents(file, cache).find(["d499"]).tolist())


def test_processes_that_store_the_same_documents_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    file = write(tmp_path / "corpus.jsonl", [{"_id": f"d{n}", "text": "x" * 50} for n in range(500)])
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_store, args=(file, tmp_path / "cache", start, found)) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [found.get(timeout=30) for _ in workers] == [[499]] * 4
    for worker in workers:
        worker.join()


@pytest.mark.parametrize(
    ("record", "field", "what"),
    [
        (["text"], "", "not an object"),
        ({"text": "a"}, ":id", "without id"),
        ({"_id": "", "text": "a"}, ":id", "without id"),
        ({"_id": None, "text": "a"}, ":id", "without id"),
        ({"_id": " ", "text": "a"}, ":_id", "without id"),
        ({"docid": "a b", "text": "a"}, ":docid", "white space"),
        ({"id": "a\n", "text": "a"}, ":id", "white space"),
        ({"id": 1.5, "text": "a"}, ":id", "neither text nor"),
        ({"id": "\ud83d", "text": "a"}, ":id", "not valid Unicode"),
        ({"_id": "1"}, ":text", "without text"),
        ({"_id": "1", "text": None}, ":text", "without text"),
        ({"_id": "1", "text": "\ud83d"}, ":text", "not valid Unicode"),
        ({"_id": "1", "text": "a", "title": 3}, ":title", "not a string"),
        ({"_id": "d10", "text": "again"}, ":_id", "id occurs twice"),
    ],
)
def test_a_record_that_is_no_document_is_named(tmp_path: Path, record: object, field: str, what: str) -> None:
    file = write(tmp_path / "corpus.jsonl", [*RECORDS, record, {"_id": "last", "text": "after it"}])
    with pytest.raises(DataError, match=f"{what}.*\n.*corpus.jsonl:6{field}\n"):
        store_documents(file, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("documents/[!.]*"))


@pytest.mark.usefixtures("batch")
def test_of_repeated_ids_the_first_repetition_is_named(tmp_path: Path) -> None:
    records = [{"_id": i, "text": "t"} for i in ("b", "a", "c", "b", "d", "a", "a")]
    with pytest.raises(DataError, match=r"3 ids occur more than once\n.*corpus.jsonl:4:_id\n.*'b'"):
        store_documents(write(tmp_path / "corpus.jsonl", records), tmp_path / "cache")


def test_no_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no documents"):
        store_documents(write(tmp_path / "corpus.jsonl", []), tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "where"), [("corpus.jsonl", "corpus.jsonl:50\n"), ("corpus.jsonl.gz", "too early\n.*.gz\n")]
)
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, name: str, where: str) -> None:
    file = write(tmp_path / name, [{"_id": f"d{n}", "text": os.urandom(40).hex()} for n in range(50)])
    os.truncate(file, file.stat().st_size - 20)
    with pytest.raises(DataError, match=where):
        store_documents(file, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("documents/[!.]*"))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "corpus.jsonl", RECORDS)

    def write_places(order_P: np.ndarray, folder: Path) -> None:
        write(file, RECORDS[:3])
        passage_table.write_places(order_P, folder)

    monkeypatch.setattr(documents_module, "write_places", write_places)
    with pytest.raises(DataError, match="changed while they were read"):
        store_documents(file, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "documents").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="TDRO_CACHE"):
        store_documents(write(tmp_path / "corpus.jsonl", RECORDS), tmp_path / "cache")


def test_documents_opened_twice_are_the_same(tmp_path: Path) -> None:
    stored = store_documents(write(tmp_path / "corpus.jsonl", RECORDS), tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "documents").glob("[!.]*")
    assert Documents(folder)[0:5] == stored[0:5]
