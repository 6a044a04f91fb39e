"""Conversions from one layout to another, and what they say did not come along."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from tdro.data.reading import scan_rows
from tdro.errors import ConfigError, DataError
from tdro.prepare.convert import convert

FLAG = {"query": "q", "pos": ["p"], "neg": ["n", "m"], "pos_scores": [1], "prompt": "find", "type": "normal"}


def put(path: Path, *records: object) -> Path:
    """Write records, or lines, as jsonl."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[object]:
    return [row for _, row in scan_rows("a", [path])]


def test_what_has_no_place_is_counted_by_name(tmp_path):
    source = put(tmp_path / "a.jsonl", FLAG, FLAG | {"query_id": "7"})
    done = convert([source], "csv", tmp_path / "b.csv", name="a")
    assert done.layouts == {str(source): "flagembedding"}
    assert +done.written.lost == {"query ids": 1, "prompts": 2, "scores": 2}
    assert done.unread == ("type",)
    assert (done.written.rows, done.written.records) == (2, 2)


def test_there_and_back_again_through_every_layout_that_keeps_texts_and_ids(tmp_path):
    passages = [{"docid": f"d{i}", "title": f"t{i}", "text": f"text {i}"} for i in range(4)]
    record = {"query_id": "1", "query": "q", "positive_passages": passages[:2], "negative_passages": passages[2:]}
    first = put(tmp_path / "a.jsonl", record, record | {"query_id": "2", "query": "r"})
    convert([first], "beir", tmp_path / "beir", name="a")
    convert([tmp_path / "beir"], "tevatron", tmp_path / "b.jsonl.gz", name="a")
    assert rows_of(tmp_path / "b.jsonl.gz") == rows_of(first)


def test_sources_are_merged_and_their_made_ids_differ(tmp_path):
    a, b = put(tmp_path / "a.jsonl", FLAG), put(tmp_path / "b.jsonl", ["r", "s"], ["t", "u"])
    done = convert([a, b], "tevatron", tmp_path / "c.jsonl", name="both")
    assert [row.query_id for row in rows_of(tmp_path / "c.jsonl")] == ["both-1", "both-2", "both-3"]
    assert done.layouts == {str(a): "flagembedding", str(b): "pairs"}


def test_a_bad_row_stops_the_conversion_or_is_left_out_and_listed(tmp_path):
    source = put(tmp_path / "a.jsonl", FLAG, "{", FLAG | {"query": ""}, FLAG)
    with pytest.raises(DataError) as caught:
        convert([source], "tevatron", tmp_path / "b.jsonl", name="a")
    assert caught.value.where == f"{source}:2"
    assert not (tmp_path / "b.jsonl").exists()
    done = convert([source], "tevatron", tmp_path / "b.jsonl", name="a", skip_bad=True)
    assert (done.bad, [problem.where for problem in done.problems]) == (2, [f"{source}:2", f"{source}:3:query"])
    assert len(rows_of(tmp_path / "b.jsonl")) == 2


def test_a_file_that_is_cut_off_is_refused_even_when_bad_rows_are_left_out(tmp_path):
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(gzip.compress(b"\n".join([json.dumps(FLAG).encode()] * 1000))[:-12])
    with pytest.raises(DataError, match="ends too early"):
        convert([source], "tevatron", tmp_path / "b.jsonl", name="a", skip_bad=True)
    assert not (tmp_path / "b.jsonl").exists()


def test_a_sample_is_the_same_each_time(tmp_path):
    source = put(tmp_path / "a.jsonl", *(FLAG | {"query": str(i)} for i in range(50)))
    for name in ("b", "c"):
        assert convert([source], "tevatron", tmp_path / f"{name}.jsonl", name="a", max_rows=7).written.rows == 7
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()


def test_a_source_is_not_overwritten(tmp_path):
    source = put(tmp_path / "a.jsonl", FLAG)
    with pytest.raises(ConfigError, match="overwritten"):
        convert([source], "tevatron", tmp_path / "." / "a.jsonl", name="a")


def test_progress_counts_rows(tmp_path):
    seen: list[int] = []
    source = put(tmp_path / "a.jsonl", *[FLAG] * 2500)
    convert([source], "tevatron", tmp_path / "b.jsonl", name="a", progress=seen.append)
    assert seen == [1000, 2000]


@pytest.mark.parametrize(("layout", "name"), [("tevatron", "b.jsonl"), ("sentence-transformers", "b.parquet")])
def test_memory_does_not_grow_with_the_rows(layout, name, tmp_path, monkeypatch):
    monkeypatch.setattr("tdro.data.writing._TABLE_ROWS", 100)
    source = put(tmp_path / "a.jsonl", *(FLAG | {"query": f"{i} " + "x" * 20_000} for i in range(1_000)))
    tracemalloc.start()
    convert([source], layout, tmp_path / name, name="a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000 < source.stat().st_size
