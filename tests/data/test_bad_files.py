"""Broken files of every kind: each gives one DataError with its place and a way out, and nothing is stored of it."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tdro.data.reading import read_dataset, scan_rows
from tdro.errors import DataError

GOOD = {"query": "who dances", "pos": ["bees"], "neg": ["trees"]}
LINE = json.dumps(GOOD).encode() + b"\n"
TABLE = b"query,positive,negative\nwho dances,bees,trees\n"
CORPUS = b'{"_id": "d1", "title": "", "text": "bees"}\n{"_id": "d2", "text": "trees"}\n'
QUERIES = b'{"_id": "q1", "text": "who dances"}\n'
QRELS = b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n"

Make = Callable[[Path], Path]


def file(name: str, content: bytes) -> Make:
    """A file of this name and content."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def second(text: str | bytes) -> Make:
    """A jsonl file with a good line and a bad one."""
    return file("data.jsonl", LINE + (text.encode() if isinstance(text, str) else text) + b"\n")


def row(**changes: object) -> Make:
    """A jsonl file with a good line and one whose columns are changed."""
    return second(json.dumps(GOOD | changes))


def beir(corpus: bytes | None = CORPUS, queries: bytes | None = QUERIES, qrels: bytes | None = QRELS) -> Make:
    """A BEIR folder."""

    def make(folder: Path) -> Path:
        home = folder / "beir"
        (home / "qrels").mkdir(parents=True)
        parts = {"corpus.jsonl": corpus, "queries.jsonl": queries, "qrels/train.tsv": qrels}
        for name, content in parts.items():
            if content is not None:
                (home / name).write_bytes(content)
        return home

    return make


def parquet(table: pa.Table, cut: int = 0) -> Make:
    """A parquet file, without its last bytes."""

    def make(folder: Path) -> Path:
        path = folder / "data.parquet"
        pq.write_table(table, path)
        path.write_bytes(path.read_bytes()[: -cut or None])
        return path

    return make


def folder_of(**contents: bytes) -> Make:
    """A folder of files; __ stands for the dot of a name."""

    def make(folder: Path) -> Path:
        (folder / "parts").mkdir()
        for name, content in contents.items():
            (folder / "parts" / name.replace("__", ".")).write_bytes(content)
        return folder / "parts"

    return make


def saved_dataset(state: str, arrow: bytes) -> Make:
    """What `datasets.save_to_disk` writes, damaged."""
    return folder_of(state__json=state.encode(), data__arrow=arrow)


def link_to_nothing(folder: Path) -> Path:
    (folder / "data.jsonl").symlink_to(folder / "gone.jsonl")
    return folder / "data.jsonl"


def part_that_is_a_link_to_nothing(folder: Path) -> Path:
    path = folder_of(a__jsonl=LINE)(folder)
    (path / "b.jsonl").symlink_to(folder / "gone.jsonl")
    return path


def without_rights(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = file("data.jsonl", LINE)(folder)
    path.chmod(0)
    return path


def arrow_stream() -> bytes:
    """A saved dataset's Arrow file."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([GOOD] * 50)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 4
STATE = '{"_data_files": [{"filename": "data.arrow"}]}'
PACKED = gzip.compress(LINE * 3, mtime=0)

BAD_FILES: dict[str, tuple[Make, str, str]] = {
    # what it is: (how it is made, place after the path, what is said)
    "empty file": (file("a.jsonl", b""), "", "empty dataset"),
    "blank lines only": (file("a.jsonl", b"\n \r\n\t\n"), "", "empty dataset"),
    "empty list": (file("a.json", b" [ ]\n"), "", "empty dataset"),
    "header only": (file("a.csv", b"query,positive\n"), "", "empty dataset"),
    "empty table": (file("a.tsv", b""), "", "empty dataset"),
    "empty file among parts": (lambda f: f, "", "folder without data files"),
    "unknown ending": (file("a.xlsx", b"PK"), "", "unknown kind of file"),
    "no such file": (lambda f: f / "a.jsonl", "", "no such file or folder"),
    "link to nothing": (link_to_nothing, "", "symbolic link to nothing"),
    "part is a link to nothing": (part_that_is_a_link_to_nothing, "/b.jsonl", "symbolic link to nothing"),
    "no rights": (without_rights, "", "file cannot be read"),
    "name with NUL": (lambda f: Path(f"{f}/a\0.jsonl"), "", "no such file or folder"),
    # packed
    "gz that is not gz": (file("a.jsonl.gz", LINE), "", "not a gzip file"),
    "truncated gz": (file("a.jsonl.gz", PACKED[:-12]), "", "gzip file ends too early"),
    "gz of ten bytes": (file("a.jsonl.gz", PACKED[:10]), "", "gzip file ends too early"),
    "gz with garbage behind": (file("a.jsonl.gz", PACKED + b"garbage"), "", "not a gzip file, or a damaged one"),
    "gz with a wrong checksum": (file("a.jsonl.gz", PACKED[:-8] + b"12345678"), "", "not a gzip file, or a damaged"),
    "gz inside gz": (file("a.jsonl.gz", gzip.compress(PACKED)), ":1", "not UTF-8"),
    "truncated gz of a table": (file("a.csv.gz", gzip.compress(TABLE)[:-12]), "", "gzip file ends too early"),
    # encodings
    "latin-1": (second('{"query": "café", "pos": ["p"]}'.encode("latin-1")), ":2", "not UTF-8"),
    "UTF-16": (file("a.jsonl", LINE.decode().encode("utf-16")), ":1", "not UTF-8"),
    "UTF-16 without mark": (file("a.jsonl", LINE.decode().encode("utf-16-le")), ":1", "not JSON"),
    "lone surrogate": (second(r'{"query": "a\ud83d", "pos": ["p"]}'), ":2:query", "not valid Unicode"),
    "binary": (file("a.jsonl", bytes(range(256)) * 40), ":1", "not JSON"),
    "PNG": (file("a.jsonl", PNG), ":1", "not UTF-8"),
    "huge line of garbage": (file("a.jsonl", LINE + b"x" * 30_000_000), ":2", "not JSON: Expecting value"),
    "huge line of brackets": (file("a.jsonl", LINE + b"[" * 20_000_000), ":2", "not JSON that can be read"),
    # JSON
    "cut off": (second('{"query": "q", "pos": ["p"'), ":2", "not JSON"),
    "two objects in a line": (second(LINE[:-1] + LINE[:-1]), ":2", "not JSON: Extra data"),
    "single quotes": (second("{'query': 'q'}"), ":2", "not JSON"),
    "raw control character": (second('{"query": "a\tb", "pos": ["p"]}'), ":2", "not JSON: Invalid control character"),
    "duplicate keys": (second('{"query": "q", "pos": ["p"], "query": "r"}'), ":2", "the key 'query' stands twice"),
    "duplicate keys deeper": (second('{"query": "q", "pos": [{"text": "a", "text": "b"}]}'), ":2", "'text' stands"),
    "NaN": (second('{"query": NaN, "pos": ["p"]}'), ":2", "NaN is no JSON number"),
    "Infinity": (second('{"query": "q", "pos": ["p"], "size": Infinity}'), ":2", "Infinity is no JSON number"),
    "NaN as a score": (second('{"query": "q", "pos": ["p"], "pos_scores": [NaN]}'), ":2", "NaN is no JSON number"),
    "score beyond float": (second('{"query": "q", "pos": ["p"], "pos_scores": [1e999]}'), ":2:pos_scores[0]", "finite"),
    "whole number beyond float": (row(pos_scores=[10**400]), ":2:pos_scores[0]", "score is not a finite number"),
    "number of 5000 digits": (second("1" * 5000), ":2", "not JSON that can be read"),
    "list not closed": (file("a.json", b"[\n" + LINE), ":3", "the list around the rows is not closed"),
    "list cut in a row": (file("a.json", b"[" + LINE + b"," + LINE[:20]), ":2", "not JSON: Unterminated string"),
    "list without comma": (file("a.json", b"[" + LINE + LINE + b"]"), ":2", "no comma between two rows"),
    "list with a comma behind": (file("a.json", b"[" + LINE + b",\n]"), ":3", "not JSON: Expecting value"),
    "list with text behind": (file("a.json", b"[" + LINE + b"]\n" + LINE), ":3", "text after the list of rows"),
    "list with latin-1": (file("a.json", b"[" + LINE + b',{"query": "\xe9"}]'), ":2", "not UTF-8"),
    "list with NaN": (file("a.json", b"[" + LINE + b',{"query": NaN}]'), ":2", "NaN is no JSON number"),
    "list with a bad row": (file("a.json", b"[" + LINE + b',\n{"query": "q"}]'), ":3:pos", "row without positive"),
    # rows
    "list instead of an object": (second("[1, 2]"), ":2", "not a JSON object"),
    "text instead of an object": (second('"who dances"'), ":2", "not a JSON object"),
    "null": (second("null"), ":2", "not a JSON object"),
    "null query": (row(query=None), ":2:query", "row without query"),
    "number as query": (row(query=7), ":2:query", "query is not a string"),
    "list as query": (row(query=["q"]), ":2:query", "query is not a string"),
    "empty query": (row(query=""), ":2:query", "query is empty"),
    "white space as query": (row(query=" \u3000\n"), ":2:query", "query is empty"),
    "null passages": (row(pos=None), ":2:pos", "row without positive"),
    "no passages": (row(pos=[]), ":2:pos", "row without positive"),
    "text for a list": (row(pos="bees"), ":2:pos", "positives are not a list"),
    "object for a list": (row(neg={"text": "n"}), ":2:neg", "negatives are not a list"),
    "nested passages": (row(pos=[["bees"]]), ":2:pos[0]", "positive is neither text nor an object"),
    "mixed passages": (row(neg=["trees", 5]), ":2:neg[1]", "negative is neither text nor an object"),
    "passage without text": (row(pos=[{"docid": "1"}]), ":2:pos[0].text", "positive without text"),
    "empty passage": (row(neg=["", "trees"]), ":2:neg[0]", "text of a negative is empty"),
    "white space passage": (row(pos=[{"text": "\t"}]), ":2:pos[0].text", "text of a positive is empty"),
    "too few scores": (row(neg_scores=[]), ":2:neg_scores", "scores are not a list of as many"),
    "label 0": (file("a.jsonl", b'{"anchor": "q", "positive": "p", "label": 0}'), ":1:label", "not be a positive pair"),
    "unknown columns": (file("a.jsonl", b'{"question": "q", "context": "c"}'), ":1", "layout not recognised"),
    "ambiguous columns": (
        file("a.jsonl", b'{"query": "q", "anchor": "a", "positive": "p"}'),
        ":1",
        "two columns could",
    ),
    "unread passages": (row(hard_negatives=["n"]), ":2", "seem to hold passages"),
    "layout changes": (second('{"anchor": "q", "positive": "p"}'), ":2", "starts in the flagembedding layout"),
    "objects, then pairs": (second('["q", "p"]'), ":2", "starts in the flagembedding layout"),
    "pairs, then objects": (file("a.jsonl", b'["q", "p"]\n' + LINE), ":2", "starts in the pairs layout"),
    "pair of one": (file("a.jsonl", b'["q"]'), ":1", "fewer than two texts"),
    "pair with null": (file("a.jsonl", b'["q", null]'), ":1:[1]", "positive is neither text nor an object"),
    "set of one": (file("a.jsonl", b'{"set": ["q"]}'), ":1:set", "fewer than two texts"),
    "set with empty text": (file("a.jsonl", b'{"set": ["q", "r", ""]}'), ":1:set[2]", "text of a positive is empty"),
    "texts of three": (file("a.jsonl", b'{"texts": ["q", "r", "s"]}'), ":1:texts", "could be a set or a triplet"),
    "texts that do not match": (file("a.jsonl", b'{"texts": ["q", "r"], "label": 0.3}'), ":1:label", "positive pair"),
    # tables of text
    "no header": (file("a.csv", b"who dances,bees,trees\n"), ":1", "the first line does not name the columns"),
    "columns named twice": (file("a.csv", b"query,positive,positive\n"), ":1", "two columns have the same name"),
    "lists in a table": (file("a.csv", b"query,pos,neg\nq,p,n\n"), ":1", "cannot hold the lists"),
    "too few cells": (file("a.csv", TABLE + b"q,p\n"), ":3", "row of 2 cells, not 3"),
    "too many cells": (file("a.csv", TABLE + b"q,p,n,m\n"), ":3", "row of 4 cells, not 3"),
    "quote not closed": (file("a.csv", TABLE + b'q,"p,n\nr,s,t\n'), ":3", "not a csv table"),
    "text behind a quote": (file("a.tsv", b'query\tpositive\n"who" dances\tbees\n'), ":2", "not a tsv table"),
    "NUL byte": (file("a.csv", TABLE + b"q,p\0,n\n"), ":3", "NUL byte"),
    "UTF-16 table": (file("a.csv", TABLE.decode().encode("utf-16-le")), ":1", "NUL byte"),
    "latin-1 table": (file("a.csv", TABLE + b"caf\xe9,p,n\n"), ":3", "not UTF-8"),
    "empty cell": (file("a.csv", TABLE + b",p,n\n"), ":3:query", "row without query"),
    "label 0 in a table": (
        file("a.csv", b"query,positive,label\nq,p,1\nq,p,0\n"),
        ":3:label",
        "not be a positive pair",
    ),
    "label in words": (file("a.csv", b"query,positive,label\nq,p,yes\n"), ":2:label", "not be a positive pair"),
    # tables
    "truncated parquet": (parquet(pa.Table.from_pylist([GOOD] * 10), cut=20), "", "file cannot be read"),
    "text named parquet": (file("a.parquet", LINE), "", "file cannot be read"),
    "numbers for texts": (parquet(pa.table({"query": [1, 2], "positive": ["a", "b"]})), ":row 1:query", "not a string"),
    "NaN score in parquet": (
        parquet(pa.table({"query": ["q"], "pos": [["p"]], "pos_scores": [[float("nan")]]})),
        ":row 1:pos_scores[0]",
        "score is not a finite number",
    ),
    "state that is no JSON": (saved_dataset("{", b""), "/state.json", "not a saved dataset"),
    "state without files": (saved_dataset("{}", b""), "/state.json", "not a saved dataset"),
    "file of the state absent": (
        saved_dataset('{"_data_files": [{"filename": "x.arrow"}]}', b""),
        "/x.arrow",
        "no such",
    ),
    "arrow that is none": (saved_dataset(STATE, b"x" * 100), "/data.arrow", "file cannot be read"),
    "arrow cut off": (saved_dataset(STATE, arrow_stream()[:-900]), "/data.arrow", "file cannot be read"),
    "selection": (saved_dataset(STATE[:-1] + ', "_indices_data_files": [1]}', b""), "/state.json", "selection"),
    # folders
    "several kinds": (folder_of(a__jsonl=LINE, b__csv=TABLE), "", "data files of several kinds"),
    "several splits": (folder_of(train__jsonl=LINE, test__jsonl=LINE), "", "several splits"),
    "several saved splits": (folder_of(dataset_dict__json=b"{}"), "", "several splits"),
    "split of no split": (lambda f: f.parent / f"{f.name}#train", "", "no such split"),
    # BEIR
    "BEIR without corpus": (beir(corpus=None), "/corpus.jsonl", "BEIR folder without corpus"),
    "BEIR without queries": (beir(queries=None), "/queries.jsonl", "BEIR folder without queries"),
    "BEIR without qrels": (beir(qrels=None), "/qrels/train.tsv", "without judgements of the split train"),
    "BEIR with empty corpus": (beir(corpus=b""), "/qrels/train.tsv:2:corpus-id", "document without text"),
    "corpus that is no JSON": (beir(corpus=CORPUS + b"d3 text\n"), "/corpus.jsonl:3", "not JSON"),
    "corpus of lists": (beir(corpus=b"[1]\n"), "/corpus.jsonl:1", "not a JSON object"),
    "document without id": (beir(corpus=CORPUS + b'{"text": "x"}\n'), "/corpus.jsonl:3", "id is missing"),
    "document twice": (beir(corpus=CORPUS + CORPUS[:42]), "/corpus.jsonl:3:_id", "id occurs twice"),
    "document without text": (
        beir(corpus=b'{"_id": "d1", "text": ""}\n{"_id": "d2", "text": "x"}'),
        "/qrels/train.tsv:2:positive_passages[0].text",
        "text of a positive is empty",
    ),
    "query without text": (beir(queries=b'{"_id": "q1"}'), "/qrels/train.tsv:2:query", "row without query"),
    "unknown query": (beir(qrels=QRELS + b"q2\td1\t1\n"), "/qrels/train.tsv:4:query-id", "query without text"),
    "unknown document": (beir(qrels=QRELS + b"q1\td9\t1\n"), "/qrels/train.tsv:4:corpus-id", "document without text"),
    "column missing": (beir(qrels=QRELS + b"q1\td1\n"), "/qrels/train.tsv:4", "judgement without three or four"),
    "score not whole": (beir(qrels=QRELS + b"q1\td1\t0.5\n"), "/qrels/train.tsv:4:score", "not a whole number"),
    "score not a number": (beir(qrels=QRELS + b"q1\td1\thigh\n"), "/qrels/train.tsv:4:score", "not a whole number"),
    "wrong header": (beir(qrels=b"corpus-id\tquery-id\tscore\nd1\tq1\t1\n"), "/qrels/train.tsv:1", "not the query"),
    "unknown header": (beir(qrels=b"a\tb\tc\nq1\td1\t1\n"), "/qrels/train.tsv:1:score", "not a whole number"),
    "judged twice": (beir(qrels=QRELS + b"q1\td1\t0\n"), "/qrels/train.tsv:2", "judged twice for this query"),
    "nothing relevant": (beir(qrels=b"q1\td1\t0\n"), "", "empty dataset"),
    "qrels in latin-1": (beir(qrels=b"q\xe9\td1\t1\n"), "/qrels/train.tsv:1", "not UTF-8"),
}


SPREAD = {"gz inside gz", "UTF-16", "UTF-16 without mark", "binary", "PNG", "numbers for texts"}
"""What is wrong in several lines."""


def test_there_are_at_least_forty():
    assert len(BAD_FILES) >= 40


@pytest.fixture
def broken(request, tmp_path) -> tuple[Path, str, str]:
    make, place, what = BAD_FILES[request.param]
    (tmp_path / "data").mkdir()
    path = make(tmp_path / "data")
    return path, place, what


def the_place(path: Path, place: str, error: DataError) -> bool:
    """Whether an error is where it should be."""
    return str(error.where) == f"{str(path).partition('#')[0]}{place}"


@pytest.mark.parametrize("broken", BAD_FILES, indirect=True)
def test_a_broken_file_gives_one_error_with_place_and_remedy_and_stores_nothing(broken, tmp_path):
    path, place, what = broken
    with pytest.raises(DataError) as caught:
        read_dataset("n", path, cache=tmp_path / "cache")
    error = caught.value
    assert what in error.what
    assert the_place(path, place, error)
    assert error.do
    assert len(str(error)) < 2000
    assert not (tmp_path / "cache").is_dir() or {p.name for p in (tmp_path / "cache").iterdir()} <= {"sources"}


@pytest.mark.parametrize("broken", BAD_FILES, indirect=True)
def test_a_scan_yields_the_same_error_once_and_the_rows_around_it(broken, request, tmp_path):
    path, place, what = broken
    name = request.node.callspec.params["broken"]
    good = file("good.jsonl", LINE * 2)(tmp_path)
    found = [outcome for _, outcome in scan_rows("n", [good, path, good])]
    errors = [outcome for outcome in found if isinstance(outcome, DataError)]
    if what == "empty dataset":
        assert errors == []
    else:
        error = errors[0]
        assert len(errors) == 1 or name in SPREAD
        assert what in error.what
        assert the_place(path, place, error)
    assert len(found) - len(errors) >= 4


def test_a_scan_goes_on_after_every_bad_line(tmp_path):
    path = file("a.jsonl", LINE + b"{\n" + LINE + b"\xff\n\n" + b'{"query": ""}\n' + LINE)(tmp_path)
    found = list(scan_rows("n", [path]))
    assert [place for place, _ in found] == [f"{path}:{number}" for number in (1, 2, 3, 4, 6, 7)]
    assert [isinstance(outcome, DataError) for _, outcome in found] == [False, True, False, True, True, False]
    assert [row.query_id for _, row in found if not isinstance(row, DataError)] == ["n-1", "n-3", "n-6"]


def test_a_line_longer_than_any_row_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("tdro.data.lines.LONGEST_LINE", 1000)
    path = file("a.jsonl", LINE + b"x" * 5000)(tmp_path)
    _, (place, error) = scan_rows("n", [path])
    assert isinstance(error, DataError)
    assert "line of more than" in error.what
    assert place == f"{path}:2"
