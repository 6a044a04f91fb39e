"""Rows that have ids in the place of texts: every form of the files with the texts, and every way they can fail."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tdro.config import Study
from tdro.data.reading import Collections, Rows, Scan, read_dataset, read_study_dataset
from tdro.data.records import Row
from tdro.errors import DataError

PASSAGES = [
    {"docid": "p1", "title": "Bees", "text": "dance"},
    {"docid": "p2", "title": "", "text": "trees\tgrow"},
    {"docid": 3, "title": "Ants", "text": ""},
]
QUERIES = [{"query_id": "q1", "query": "who dances"}, {"query_id": "7", "query": "wér grows"}]
ROWS = [
    {"query_id": "q1", "positive_passages": ["p1"], "negative_passages": [{"docid": "p2"}, 3]},
    {"query_id": 7, "positive_passages": [{"docid": "p2", "text": None, "score": 2}], "negative_passages": []},
    {
        "query_id": "q9",
        "query": "own",
        "positive_passages": [{"docid": "x", "text": "own"}],
        "negative_passages": ["p1"],
    },
]
EXPECTED = [
    ("q1", "who dances", [("p1", "Bees", "dance")], [("p2", "", "trees\tgrow"), ("3", "", "Ants")]),
    ("7", "wér grows", [("p2", "", "trees\tgrow")], []),
    ("q9", "own", [("x", "", "own")], [("p1", "Bees", "dance")]),
]


def lines(records: list[dict]) -> str:
    """Records as jsonl."""
    return "".join(json.dumps(record) + "\n" for record in records)


def tsv(records: list[dict]) -> str:
    """Records as lines of id, tab, text, or with a title between; texts must have no tab."""
    flat = [[str(value).replace("\t", " ") for value in record.values()] for record in records]
    return "".join("\t".join(cells) + "\r\n" for cells in flat)


def plain(folder: Path, name: str, records: list[dict]) -> Path:
    file = folder / f"{name}.jsonl"
    file.write_text("\ufeff" + lines(records).replace("\n", "\r\n\n"), encoding="utf-8")
    return file


def packed(folder: Path, name: str, records: list[dict]) -> Path:
    file = folder / f"{name}.jsonl.gz"
    file.write_bytes(gzip.compress(lines(records).encode()))
    return file


def listed(folder: Path, name: str, records: list[dict]) -> Path:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(records, indent=1))
    return file


def parquet(folder: Path, name: str, records: list[dict]) -> Path:
    file = folder / f"{name}.parquet"
    text = [{key: str(value) for key, value in record.items()} for record in records]
    pq.write_table(pa.Table.from_pylist(text), file)
    return file


def tabs(folder: Path, name: str, records: list[dict]) -> Path:
    file = folder / f"{name}.tsv"
    file.write_text(tsv(records), encoding="utf-8", newline="")
    return file


def headed(folder: Path, name: str, records: list[dict]) -> Path:
    file = folder / f"{name}.tsv.gz"
    first, *others = records[0]
    turned = [{key: record[key] for key in (first, *reversed(others))} for record in records]
    file.write_bytes(gzip.compress(("\t".join(turned[0]) + "\n" + tsv(turned)).encode()))
    return file


def parts(folder: Path, name: str, records: list[dict]) -> Path:
    (folder / name).mkdir()
    for i, record in enumerate(records):
        (folder / name / f"part-{i}.jsonl").write_text(lines([record]))
    return folder / name


def beir(folder: Path, name: str, records: list[dict]) -> Path:
    place = folder / "beir"
    (place / "qrels").mkdir(parents=True, exist_ok=True)
    named = [{"_id": str(next(iter(r.values()))), **dict(list(r.items())[1:])} for r in records]
    (place / f"{'corpus' if name == 'passages' else 'queries'}.jsonl").write_text(lines(named))
    return place


def seen(rows: Rows | list[Row]) -> list[tuple]:
    """Rows as tuples."""
    return [
        (row.query_id, row.query, *([(p.id, p.title, p.text) for p in side] for side in (row.positives, row.negatives)))
        for row in rows
    ]


@pytest.mark.parametrize("form", [plain, packed, listed, parquet, tabs, headed, parts, beir])
def test_texts_are_found_in_files_of_every_form(tmp_path, form: Callable[[Path, str, list[dict]], Path]):
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(ROWS))
    texts = Collections(form(tmp_path, "queries", QUERIES), form(tmp_path, "passages", PASSAGES))
    rows = read_dataset("bees", file, cache=tmp_path / "cache", texts=texts)
    expected = json.loads(json.dumps(EXPECTED).replace("\\t", " " if form in (tabs, headed) else "\\t"))
    assert json.loads(json.dumps(seen(rows))) == expected
    scanned = [row for _, row in Scan("bees", [file], texts=texts)]
    assert json.loads(json.dumps(seen(scanned))) == expected
    assert [p.score for p in scanned[1].positives] == [2]


@pytest.mark.parametrize(
    "row",
    [
        {"query_id": "q1", "pos": ["p1"], "neg": [3, {"id": "p2"}]},
        {"query_id": "q1", "positive": "p1", "negative_1": 3, "negative_2": "p2"},
    ],
)
def test_other_layouts_with_columns_may_have_ids_too(tmp_path, row):
    file = tmp_path / "rows.jsonl"
    file.write_text(lines([row]))
    texts = Collections(plain(tmp_path, "queries", QUERIES), plain(tmp_path, "passages", PASSAGES))
    (found,) = seen(read_dataset("bees", file, cache=tmp_path / "cache", texts=texts))
    assert found[:3] == ("q1", "who dances", [("p1", "Bees", "dance")])
    assert found[3] == [("3", "", "Ants"), ("p2", "", "trees\tgrow")]


def test_a_study_names_the_files_and_a_change_of_theirs_is_seen(tmp_path):
    (tmp_path / "rows.jsonl").write_text(lines(ROWS))
    plain(tmp_path, "queries", QUERIES)
    passages = plain(tmp_path, "passages", PASSAGES)
    options = {"path": "rows.jsonl", "queries": "queries.jsonl", "passages": "passages.jsonl"}
    content = {"name": "x", "model": {"base": "m"}, "data": {"root": str(tmp_path), "datasets": {"bees": options}}}
    before = read_study_dataset(Study.model_validate(content), "bees")
    assert seen(before) == EXPECTED
    passages.write_text(passages.read_text().replace("dance", "hum"))
    after = read_study_dataset(Study.model_validate(content), "bees")
    assert after[0].positives[0].text == "hum" and after.info.fingerprint != before.info.fingerprint


@pytest.mark.parametrize(
    ("row", "place", "said"),
    [
        ({"query_id": "q5", "positive_passages": ["p1"]}, "rows.jsonl:2:query_id", "queries.jsonl has no such id"),
        ({"positive_passages": ["p1"]}, "rows.jsonl:2:query_id", "neither query nor query_id"),
        ({"query_id": "q1", "positive_passages": ["p1", "dances"]}, "2:positive_passages[1]", "no such id"),
        ({"query_id": "q1", "positive_passages": [{"_id": 9}]}, "2:positive_passages[0]._id", "no such id"),
        ({"query_id": "q1", "positive_passages": [{"title": "x"}]}, "2:positive_passages[0].docid", "neither text nor"),
        ({"query_id": "q1", "positive_passages": ["p1"], "negative_passages": [True]}, "negative_passages[0]", "id is"),
        ({"query_id": True, "positive_passages": ["p1"]}, "rows.jsonl:2:query_id", "id is neither"),
    ],
)
def test_an_id_without_a_text_is_one_error_with_its_place(tmp_path, row, place, said):
    file = tmp_path / "rows.jsonl"
    file.write_text(lines([ROWS[0], row]))
    texts = Collections(plain(tmp_path, "queries", QUERIES), plain(tmp_path, "passages", PASSAGES))
    with pytest.raises(DataError) as error:
        read_dataset("bees", file, cache=tmp_path / "cache", texts=texts)
    assert place in str(error.value) and said in str(error.value)
    good, bad = [row for _, row in Scan("bees", [file], texts=texts)]
    assert isinstance(good, Row) and said in str(bad)


@pytest.mark.parametrize(
    ("name", "content", "place", "said"),
    [
        ("p.jsonl", '{"docid": "a", "text": "x"}\n\n{"docid": "a", "text": "y"}\n', "p.jsonl:3:docid", "occurs twice"),
        ("p.json", '[{"id": 1, "text": "x"},\n{"id": 1, "text": "y"}]', "p.json:2:id", "occurs twice"),
        ("p.tsv", "a\tx\n\na\ty\n", "p.tsv:3:_id", "occurs twice"),
        ("p.tsv", "a\tx\nb\n", "p.tsv:2", "line of 1 cells, not 2"),
        ("p.tsv", "just text\n", "p.tsv:1", "not id, tab, text"),
        ("p.tsv", "docid\turl\na\tx\n", "p.tsv:1", "not id, tab, text"),
        ("p.jsonl", '{"text": "x"}\n', "p.jsonl:1", "id is missing"),
        ("p.json", '[{"text": "x"}]', "p.json:1", "id is missing"),
        ("p.jsonl", "[1]\n", "p.jsonl:1", "not a JSON object"),
        ("p.csv", "docid,text\na,x\n", "p.csv", "not read from this kind"),
        ("p.jsonl", '{"docid": "p1", "text": 5}\n', "rows.jsonl:1:positive_passages[0].text", "without text"),
        ("q.jsonl", "", "q.jsonl", "no such file"),
    ],
)
def test_bad_files_of_texts_are_refused_with_their_place(tmp_path, name, content, place, said):
    file = tmp_path / "rows.jsonl"
    file.write_text(lines([{"query": "who", "positive_passages": ["p1"]}]))
    if content:
        (tmp_path / name).write_text(content)
    texts = Collections(passages=tmp_path / name)
    with pytest.raises(DataError) as error:
        read_dataset("bees", file, cache=tmp_path / "cache", texts=texts)
    assert place in str(error.value) and said in str(error.value)
    if not place.startswith("rows"):
        (problem,) = [row for _, row in Scan("bees", [file], texts=texts)]
        assert said in str(problem)


def test_without_such_files_ids_are_what_they_were(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(lines([{"query": "who", "positive_passages": ["p1"]}]))
    (row,) = read_dataset("bees", file, cache=tmp_path / "cache")
    assert row.positives[0].text == "p1"
    with pytest.raises(DataError, match="positive without text"):
        file.write_text(lines([{"query": "who", "positive_passages": [{"docid": "p1"}]}]))
        read_dataset("bees", file, cache=tmp_path / "cache")


def test_memory_holds_an_index_of_the_texts_and_not_the_texts(tmp_path):
    passages = [{"docid": f"p{i}", "title": "", "text": f"text {i} " + "x" * 10_000} for i in range(2_000)]
    texts = Collections(passages=listed(tmp_path, "passages", passages))
    file = tmp_path / "rows.jsonl"
    file.write_text(lines([{"query": "q", "positive_passages": [f"p{i}"]} for i in range(0, 2_000, 100)]))
    read_dataset("libraries", file, cache=tmp_path / "cache", texts=texts)
    tracemalloc.start()
    rows = read_dataset("bees", file, cache=tmp_path / "cache", texts=texts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.positives[0].text.split()[1] for row in rows] == [str(i) for i in range(0, 2_000, 100)]
    assert peak < 8e6  # the texts are 20 MB; a megabyte of a list is read at a time, and decoded
