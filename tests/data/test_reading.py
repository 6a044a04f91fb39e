import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdro.data import reading, store
from tdro.data.reading import read_dataset, write_rows
from tdro.data.records import DatasetInfo, Passage, Row
from tdro.data.sources import Source
from tdro.errors import ConfigError, DataError, EnvironmentProblem

SHARED = Path(os.environ.get("TDRO_SHARED", Path(__file__).parents[2] / ".." / "shared"))

CONTENT = [
    ("who dances", "bees", ["trees", "stones"]),
    ("what is 7 times 8", "56", []),
    ("谁在跳舞", "蜜蜂 🐝", ["树"]),
]


def tevatron(i: int, query: str, positive: str, negatives: list[str]) -> dict[str, object]:
    passages = [{"text": text, "title": ""} for text in negatives]
    return {"query_id": i, "query": query, "positive_passages": [{"text": positive}], "negative_passages": passages}


def tevatron_strings(i: int, query: str, positive: str, negatives: list[str]) -> dict[str, object]:
    return {"query_id": str(i), "query": query, "positive_passages": [positive], "negative_passages": negatives}


def flagembedding(i: int, query: str, positive: str, negatives: list[str]) -> dict[str, object]:
    return {"query_id": i, "query": query, "pos": [positive], "neg": negatives, "pos_scores": [0.5], "prompt": "find"}


def sentence_transformers(i: int, query: str, positive: str, negatives: list[str]) -> dict[str, object]:
    columns = {"negative_2": None, "negative_1": None} | dict(
        zip(["negative_1", "negative_2"], negatives, strict=False)
    )
    return {"query_id": i, "anchor": query, "positive": positive, **columns}


def pairs_with_label(i: int, query: str, positive: str, negatives: list[str]) -> dict[str, object]:
    named = {f"negative_{n}": text for n, text in reversed(list(enumerate(negatives)))}
    return {"query_id": i, "sentence1": query, "sentence2": positive, "label": 1, **named}


LAYOUTS = {
    tevatron: "tevatron",
    tevatron_strings: "tevatron",
    flagembedding: "flagembedding",
    sentence_transformers: "sentence-transformers",
    pairs_with_label: "sentence-transformers",
}


def as_jsonl(records: list[dict[str, object]], folder: Path) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def as_gzip(records: list[dict[str, object]], folder: Path) -> Path:
    path = folder / "data.jsonl.gz"
    path.write_bytes(gzip.compress(as_jsonl(records, folder).read_bytes()))
    return path


def as_gzip_with_a_plain_name(records: list[dict[str, object]], folder: Path) -> Path:
    return as_gzip(records, folder).replace(folder / "data.jsonl")


def as_parquet(records: list[dict[str, object]], folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(records), folder / "data.parquet", row_group_size=2)
    return folder / "data.parquet"


def as_saved_dataset(records: list[dict[str, object]], folder: Path) -> Path:
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(records).save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


def as_parts(records: list[dict[str, object]], folder: Path) -> Path:
    parts = folder / "parts"
    parts.mkdir()
    for number, record in enumerate(records):
        (parts / f"part-{number:05d}.jsonl").write_text(json.dumps(record), encoding="utf-8")
    (parts / "README.md").write_text("not data")
    return parts


FORMS = [as_jsonl, as_gzip, as_gzip_with_a_plain_name, as_parquet, as_saved_dataset, as_parts]


def numbered(count: int, folder: Path) -> Path:
    """Write rows whose query is their number in the file, from 1."""
    return as_jsonl([{"query": str(i), "pos": [f"p{i}"], "neg": []} for i in range(1, count + 1)], folder)


def queries(rows: reading.Rows) -> list[str]:
    return [row.query for row in rows]


def entries(cache: Path) -> list[str]:
    """Everything in the cache but the remembered hashes of the sources."""
    return sorted(child.name for child in cache.iterdir() if child.name != "sources") if cache.is_dir() else []


# --- layouts and forms


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_in_every_form_gives_the_same_rows(layout, form, tmp_path):
    path = form([layout(i, *content) for i, content in enumerate(CONTENT)], tmp_path)
    rows = read_dataset("bees", path, cache=tmp_path / "cache")
    assert rows.info == DatasetInfo("bees", str(path), LAYOUTS[layout], 3, rows.info.fingerprint)
    seen = [(row.query_id, row.query, [p.text for p in row.positives], [p.text for p in row.negatives]) for row in rows]
    assert seen == [(str(i), query, [positive], negatives) for i, (query, positive, negatives) in enumerate(CONTENT)]
    assert {p.title for row in rows for p in row.positives + row.negatives} == {""}
    assert rows[0].positives[0].id == "8debaa289b33d946"


def test_ids_and_titles_are_kept_and_whole_numbers_become_text(tmp_path):
    passages = [{"docid": 7, "title": "Bees", "text": "They dance."}, {"_id": "x", "text": " kept as it is\n"}]
    record = {"query_id": 3, "query": " who? ", "positive_passages": passages, "negative_passages": [{"text": "n"}]}
    row = read_dataset("bees", as_jsonl([record], tmp_path), cache=tmp_path / "cache")[0]
    assert row.query_id == "3"
    assert row.query == " who? "
    assert row.positives == (Passage("7", "Bees", "They dance."), Passage("x", "", " kept as it is\n"))


def test_a_passage_without_id_has_the_same_id_in_every_dataset(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first = as_jsonl([{"query": "q", "pos": [{"title": "Bees", "text": "dance"}], "neg": ["x"]}], tmp_path / "a")
    second = as_parquet([{"question": "r", "answer": "Bees dance", "negative": "x"}], tmp_path / "b")
    a = read_dataset("a", first, cache=tmp_path / "cache")[0]
    b = read_dataset("b", second, cache=tmp_path / "cache")[0]
    assert a.positives[0].full_text == b.positives[0].full_text
    assert a.positives[0].id == b.positives[0].id
    assert a.negatives == b.negatives


def test_byte_order_mark_crlf_and_blank_lines_are_accepted(tmp_path):
    path = tmp_path / "data.jsonl"
    line = b'{"query": "q", "pos": ["p"], "neg": []}'
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line + b"\r\n\n")
    rows = read_dataset("nq", path, cache=tmp_path / "cache")
    assert [row.query_id for row in rows] == ["nq-1", "nq-2"]


def test_numbers_of_rows_run_through_the_parts_of_a_dataset(tmp_path):
    records = [{"query": text, "pos": ["p"], "neg": []} for text in ("one", "two", "three")]
    rows = read_dataset("nq", as_parts(records, tmp_path), cache=tmp_path / "cache")
    assert [(row.query_id, row.query) for row in rows] == [("nq-1", "one"), ("nq-2", "two"), ("nq-3", "three")]


# --- access


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(store, "_BATCH_ROWS", 4)


def test_index_iteration_and_take_agree_across_batches(tmp_path, small_batches):
    rows = read_dataset("n", numbered(10, tmp_path), cache=tmp_path / "cache")
    assert len(rows) == 10
    assert queries(rows) == [str(i) for i in range(1, 11)] == [rows[i].query for i in range(10)]
    assert rows[np.int64(4)] == rows[4] == rows[-6]
    assert [rows[i].query for i in np.array([9, 0, 9, 4])] == ["10", "1", "10", "5"]
    assert [passage.text for row in rows for passage in row.positives] == [f"p{i}" for i in range(1, 11)]


def test_rows_without_negatives_are_counted_across_batches(tmp_path, small_batches):
    records = [{"query": "q", "pos": ["p"], "neg": ["n"] * (i % 3)} for i in range(11)]
    assert read_dataset("n", as_jsonl(records, tmp_path), cache=tmp_path / "cache").without_negatives == 4


@pytest.mark.parametrize("i", [3, -4, np.int64(10**6)])
def test_index_out_of_range_is_an_index_error(i, tmp_path):
    with pytest.raises(IndexError, match="which has 3 rows"):
        read_dataset("n", numbered(3, tmp_path), cache=tmp_path / "cache")[i]


def test_rows_are_mapped_not_loaded(tmp_path):
    records = [{"query": str(i), "pos": ["x" * 1000], "neg": ["y" * 1000]} for i in range(3000)]
    path = as_jsonl(records, tmp_path)
    before = pa.total_allocated_bytes()
    rows = read_dataset("n", path, cache=tmp_path / "cache")
    assert sum(len(row.positives[0].text) for row in rows) == 3_000_000
    assert pa.total_allocated_bytes() - before < 100_000


def test_long_rows_are_stored_in_smaller_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_BATCH_CHARACTERS", 10)
    rows = read_dataset("n", numbered(20, tmp_path), cache=tmp_path / "cache")
    stored = pa.ipc.open_file(pa.memory_map(str(tmp_path / "cache" / rows.info.fingerprint / "rows.arrow")))
    assert stored.num_record_batches >= 5
    assert queries(rows) == [str(i) for i in range(1, 21)]


# --- samples


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**32))
def test_a_sample_has_the_size_asked_for_and_is_the_same_again(total, wanted, seed):
    taken = list(reading._sample(total, wanted, seed))
    assert sum(taken) == min(total, wanted)
    assert taken == list(reading._sample(total, wanted, seed))


def test_every_row_is_as_likely_in_a_sample():
    counts = np.sum([list(reading._sample(10, 3, seed)) for seed in range(2000)], axis=0)
    expected, deviation = 2000 * 0.3, (2000 * 0.3 * 0.7) ** 0.5
    assert np.abs(counts - expected).max() < 4 * deviation


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_keeps_file_order_and_numbers_and_does_not_depend_on_the_form(form, tmp_path):
    records = [{"query": str(i), "pos": ["p"], "neg": ["n"]} for i in range(1, 31)]
    path = form(records, tmp_path)
    rows = read_dataset("n", path, cache=tmp_path / "cache", max_rows=7, seed=5)
    chosen = [i + 1 for i, taken in enumerate(reading._sample(30, 7, 5)) if taken]
    assert [(row.query_id, row.query) for row in rows] == [(f"n-{i}", str(i)) for i in chosen]
    assert rows.info.rows == 7


def test_another_seed_gives_another_sample_and_a_large_sample_gives_all(tmp_path):
    path = numbered(100, tmp_path)
    samples = [queries(read_dataset("n", path, cache=tmp_path / "c", max_rows=10, seed=seed)) for seed in (0, 1)]
    assert samples[0] != samples[1]
    assert len(read_dataset("n", path, cache=tmp_path / "c", max_rows=1000)) == 100


def test_a_sample_below_one_row_or_a_negative_seed_is_refused(tmp_path):
    path = numbered(3, tmp_path)
    with pytest.raises(ConfigError, match="max_rows must be at least 1"):
        read_dataset("n", path, cache=tmp_path / "cache", max_rows=0)
    with pytest.raises(ConfigError, match="seed must not be negative"):
        read_dataset("n", path, cache=tmp_path / "cache", seed=-1)


# --- cache


def forbid(*args: object) -> Iterator[object]:
    raise AssertionError("the source was read again")


def test_second_call_maps_the_rows_without_reading_the_source(tmp_path, monkeypatch):
    path = numbered(5, tmp_path)
    monkeypatch.setattr(reading, "_SETTLED_NS", -(10**18))
    first = read_dataset("n", path, cache=tmp_path / "cache")
    monkeypatch.setattr(reading, "hash_file", forbid)
    monkeypatch.setattr(store, "hash_file", forbid)
    monkeypatch.setattr(Source, "streams", forbid)
    second = read_dataset("n", path, cache=tmp_path / "cache")
    assert second.info == first.info
    assert queries(second) == queries(first)


def test_changed_content_of_the_same_size_and_time_is_noticed(tmp_path):
    path = numbered(5, tmp_path)
    status = path.stat()
    first = read_dataset("n", path, cache=tmp_path / "cache")
    path.write_text(path.read_text().replace('"query": "1"', '"query": "9"'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = read_dataset("n", path, cache=tmp_path / "cache")
    assert second[0].query == "9"
    assert second.info.fingerprint != first.info.fingerprint


def test_the_hash_of_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    read_dataset("n", numbered(5, tmp_path), cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / "sources").exists()


def test_fingerprint_covers_what_changes_the_rows_and_nothing_else(tmp_path):
    path = numbered(5, tmp_path)
    copy = shutil.copy(path, tmp_path / "copy.jsonl")
    variants = [
        ("n", path, {}),
        ("m", path, {}),
        ("n", path, {"max_rows": 3}),
        ("n", path, {"max_rows": 4}),
        ("n", path, {"max_rows": 3, "seed": 1}),
    ]
    prints = [read_dataset(n, p, cache=tmp_path / "cache", **k).info.fingerprint for n, p, k in variants]
    assert len(set(prints)) == len(prints)
    assert read_dataset("n", path, cache=tmp_path / "cache", seed=1).info.fingerprint == prints[0]
    assert read_dataset("n", copy, cache=tmp_path / "cache").info.fingerprint == prints[0]
    assert len(entries(tmp_path / "cache")) == len(prints)


def cut(entry: Path) -> None:
    content = (entry / "rows.arrow").read_bytes()
    (entry / "rows.arrow").write_bytes(content[: len(content) // 2])


def flip(entry: Path) -> None:
    content = bytearray((entry / "rows.arrow").read_bytes())
    content[len(content) // 2] ^= 255
    (entry / "rows.arrow").write_bytes(content)


def lose_rows(entry: Path) -> None:
    (entry / "rows.arrow").unlink()


def lose_info(entry: Path) -> None:
    (entry / "info.json").unlink()


def spoil_info(entry: Path) -> None:
    (entry / "info.json").write_text("[]")


@pytest.mark.parametrize("damage", [cut, flip, lose_rows, lose_info, spoil_info])
def test_a_damaged_entry_is_rebuilt(damage, tmp_path):
    path, cache = numbered(50, tmp_path), tmp_path / "cache"
    first = read_dataset("n", path, cache=cache)
    before = list(first)
    damage(cache / first.info.fingerprint)
    assert list(read_dataset("n", path, cache=cache)) == before
    assert entries(cache) == [first.info.fingerprint]


def test_a_copied_cache_is_used_as_it_is(tmp_path, monkeypatch):
    path = numbered(5, tmp_path)
    first = read_dataset("n", path, cache=tmp_path / "cache")
    shutil.copytree(tmp_path / "cache", tmp_path / "moved", copy_function=shutil.copyfile)
    monkeypatch.setattr(Source, "streams", forbid)
    assert queries(read_dataset("n", path, cache=tmp_path / "moved")) == queries(first)


def test_an_entry_that_another_process_stored_first_stays(tmp_path):
    entry = tmp_path / "cache" / "f"
    info = DatasetInfo("n", "p", "tevatron", 1, "f")
    mine, theirs = (Row(name, "q", (Passage("1", "", "p"),), ()) for name in ("mine", "theirs"))

    def slow() -> Iterator[Row]:
        store.write_entry(entry, [theirs], lambda count: info)
        yield mine

    store.write_entry(entry, slow(), lambda count: info)
    rows = store.open_entry(entry, "n", Path("p"))
    assert rows is not None
    assert list(rows) == [theirs]
    assert entries(tmp_path / "cache") == ["f"]


def test_an_error_in_the_middle_leaves_the_cache_empty(tmp_path, small_batches):
    path = numbered(10, tmp_path)
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(DataError):
        read_dataset("n", path, cache=tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path, streams = numbered(5, tmp_path), Source.streams

    def growing(source):
        with path.open("a") as file:
            file.write("\n")
        return streams(source)

    monkeypatch.setattr(Source, "streams", growing)
    with pytest.raises(DataError, match="changed while it was read"):
        read_dataset("n", path, cache=tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_a_problem_of_the_machine(tmp_path):
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(EnvironmentProblem, match="cache cannot be written"):
        read_dataset("n", numbered(5, tmp_path), cache=tmp_path / "cache")


# --- writing

texts = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text and not text.isspace())
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
passages = st.builds(Passage, ids, st.just("") | texts, texts)
some_rows = st.lists(
    st.builds(Row, ids, texts, st.lists(passages, min_size=1).map(tuple), st.lists(passages).map(tuple)), min_size=1
)


@settings(max_examples=40, deadline=None)
@given(some_rows, st.sampled_from(["r.jsonl", "r.jsonl.gz"]))
def test_written_rows_are_read_back_as_they_were(rows, name):
    with tempfile.TemporaryDirectory() as folder:
        assert write_rows(rows, Path(folder, name)) == len(rows)
        assert list(read_dataset("r", Path(folder, name), cache=Path(folder, "cache"))) == rows


ROW = Row("q", "ü", (Passage("1", "", "p"), Passage("2", "T", "s")), ())


def test_rows_are_written_in_the_tevatron_layout_without_empty_titles(tmp_path):
    write_rows([ROW], tmp_path / "new" / "r.jsonl")
    assert (tmp_path / "new" / "r.jsonl").read_text(encoding="utf-8") == (
        '{"query_id": "q", "query": "ü", "positive_passages": [{"docid": "1", "text": "p"}, '
        '{"docid": "2", "title": "T", "text": "s"}], "negative_passages": []}\n'
    )


def test_the_same_rows_give_the_same_packed_bytes_under_every_name(tmp_path):
    write_rows([ROW] * 3, tmp_path / "a.jsonl.gz")
    write_rows([ROW] * 3, tmp_path / "b.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    write_rows([ROW], tmp_path / "r.jsonl")
    before = (tmp_path / "r.jsonl").read_bytes()

    def failing() -> Iterator[Row]:
        yield ROW
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_rows(failing(), tmp_path / "r.jsonl")
    assert (tmp_path / "r.jsonl").read_bytes() == before
    assert os.listdir(tmp_path) == ["r.jsonl"]


def test_a_name_that_could_not_be_read_back_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="jsonl"):
        write_rows([ROW], tmp_path / "r.csv")


# --- real data


def test_real_rows_are_those_of_the_file(tmp_path):
    path = SHARED / "data" / "train" / "consumer_health.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent; set TDRO_SHARED")
    rows = read_dataset("consumer_health", path, cache=tmp_path / "cache")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert (row.query_id, row.query) == (record["query_id"], record["query"])
        assert [(p.id, p.text) for p in row.positives] == [(p["docid"], p["text"]) for p in record["positive_passages"]]
        assert row.negatives == ()
