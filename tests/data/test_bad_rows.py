import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tdro.data.reading import read_dataset
from tdro.errors import DataError

GOOD = {
    "tevatron": {"query": "q", "positive_passages": [{"docid": "1", "text": "p"}], "negative_passages": []},
    "flagembedding": {"query": "q", "pos": ["p"], "neg": ["n"]},
    "sentence-transformers": {"anchor": "q", "positive": "p", "negative": "n"},
}


def error_of(path, tmp_path, **options):
    """Read a dataset that is bad, check that nothing of it stays in the cache, and return the error."""
    with pytest.raises(DataError) as caught:
        read_dataset("n", path, cache=tmp_path / "cache", **options)
    assert not (tmp_path / "cache").is_dir() or {p.name for p in (tmp_path / "cache").iterdir()} <= {"sources"}
    assert caught.value.do
    return caught.value


def altered(layout, **changes):
    """A good row with some columns changed; `...` removes a column."""
    return {column: value for column, value in (GOOD[layout] | changes).items() if value is not ...}


def positives(*passages):
    return altered("tevatron", positive_passages=list(passages))


T, F, S = "tevatron", "flagembedding", "sentence-transformers"
BAD_ROWS = [
    # layout, row (a dict or the text of the line), field, what is wrong, what is shown
    (T, '{"query": "q", "positive_passages": [', "", "not JSON: Expecting value at column 38", "_passages"),
    (T, '{"query": "q"} {"query": "r"}', "", "not JSON: Extra data at column 16", '{"query": "r"}'),
    (T, "{'query': 'q'}", "", "not JSON: Expecting property name", "'query'"),
    (T, "[" * 100_000, "", "not JSON", "[[["),
    (T, "1" * 5000, "", "not JSON", "111"),
    (T, '["q", "p"]', "", "the dataset starts in the tevatron layout", "['q', 'p']"),
    (T, "[1, 2]", "", "not a JSON object", "[1, 2]"),
    (T, "NaN", "", "NaN is no JSON number", "NaN"),
    (T, "null", "", "not a JSON object", ""),
    (T, {}, ":query", "row without query", "{}"),
    (T, altered(T, query=...), ":query", "row without query", "positive_passages"),
    (T, altered(T, query=None), ":query", "row without query", "'query': None"),
    (T, altered(T, query=7), ":query", "query is not a string", "7"),
    (T, altered(T, query=float("nan")), "", "NaN is no JSON number", "NaN"),
    (T, '{"query": "q", "query": "r", "pos": ["p"]}', "", "the key 'query' stands twice", '"r"'),
    (T, altered(T, query=["q"]), ":query", "query is not a string", "['q']"),
    (T, altered(T, query=""), ":query", "query is empty", "''"),
    (T, altered(T, query=" \t\n\u3000"), ":query", "query is empty", r"' \t\n\u3000'"),
    (T, altered(T, query="\ud83d"), ":query", "text is not valid Unicode", r"\ud83d"),
    (T, altered(T, query_id=1.5), ":query_id", "id is neither text nor a whole number", "1.5"),
    (T, altered(T, query_id=True), ":query_id", "id is neither text nor a whole number", "True"),
    (T, altered(T, positive_passages=...), ":positive_passages", "row without positive", "'query': 'q'"),
    (T, altered(T, positive_passages=None), ":positive_passages", "row without positive", "None"),
    (T, positives(), ":positive_passages", "row without positive", "[]"),
    (T, altered(T, positive_passages="p"), ":positive_passages", "positives are not a list", "'p'"),
    (T, altered(T, positive_passages={"text": ["p"]}), ":positive_passages", "positives are not a list", "{'text'"),
    (T, positives("p", None), ":positive_passages[1]", "positive is neither text nor an object with text", ""),
    (T, positives(["p"]), ":positive_passages[0]", "positive is neither text nor an object", "['p']"),
    (T, positives({"docid": "1"}), ":positive_passages[0].text", "positive without text", "{'docid': '1'}"),
    (T, positives({"text": None}), ":positive_passages[0].text", "positive without text", "{'text': None}"),
    (T, positives({"text": 0.5}), ":positive_passages[0].text", "positive without text", "0.5"),
    (T, positives({"text": "p", "score": float("-inf")}), "", "-Infinity is no JSON number", "-Infinity"),
    (T, positives({"text": "p", "score": "high"}), ":positive_passages[0].score", "score is not a finite", "'high'"),
    (T, positives({"text": "p", "rank": 1.5}), ":positive_passages[0].rank", "rank is not a whole number", "1.5"),
    (T, positives({"text": "p", "model": 3}), ":positive_passages[0].model", "model is not a string", "3"),
    (T, altered(T, prompt=["find"]), ":prompt", "prompt is not a string", "['find']"),
    (T, positives({"text": " "}), ":positive_passages[0].text", "text of a positive is empty", "' '"),
    (T, positives({"title": "Bees", "text": ""}), ":positive_passages[0].text", "text of a positive is empty", "''"),
    (T, positives({"title": 3, "text": "p"}), ":positive_passages[0].title", "title is not a string", "3"),
    (T, positives({"docid": [], "text": "p"}), ":positive_passages[0].docid", "id is neither text nor", "[]"),
    (T, positives({"_id": 0.5, "text": "p"}), ":positive_passages[0]._id", "id is neither text nor", "0.5"),
    (T, positives({"text": "a\udc00"}), ":positive_passages[0].text", "text is not valid Unicode", r"a\udc00"),
    (T, altered(T, negative_passages="n"), ":negative_passages", "negatives are not a list", "'n'"),
    (T, altered(T, negative_passages={"text": "n"}), ":negative_passages", "negatives are not a list", "{'text': 'n'}"),
    (T, altered(T, negative_passages=[3]), ":negative_passages[0]", "negative is neither text nor an object", "3"),
    (T, altered(T, negative_passages=["n", ""]), ":negative_passages[1]", "text of a negative is empty", "''"),
    (T, altered(T, negatives=["n"]), "", "does not read these columns", "['negatives']"),
    (T, GOOD[F], "", "the dataset starts in the tevatron layout", "['query', 'pos', 'neg']"),
    (T, GOOD[F] | GOOD[T], "", "does not read these columns", "['pos', 'neg']"),
    (F, altered(F, pos=...), ":pos", "row without positive", "'query': 'q'"),
    (F, altered(F, pos=[]), ":pos", "row without positive", "[]"),
    (F, altered(F, pos="p"), ":pos", "positives are not a list", "'p'"),
    (F, altered(F, pos=[["p"]]), ":pos[0]", "positive is neither text nor an object", "['p']"),
    (F, altered(F, neg=[None]), ":neg[0]", "negative is neither text nor an object", ""),
    (F, altered(F, neg=5), ":neg", "negatives are not a list", "5"),
    (F, altered(F, pos_scores=[]), ":pos_scores", "scores are not a list of as many as there are passages (1)", "[]"),
    (F, altered(F, neg_scores=0.5), ":neg_scores", "scores are not a list", "0.5"),
    (F, altered(F, neg_scores=["0.5"]), ":neg_scores[0]", "score is not a finite number", "'0.5'"),
    (F, altered(F, prompt=5), ":prompt", "prompt is not a string", "5"),
    (F, GOOD[T], "", "the dataset starts in the flagembedding layout", "positive_passages"),
    (S, altered(S, anchor=...), ":anchor", "row without query", "'positive': 'p'"),
    (S, altered(S, anchor=None), ":anchor", "row without query", "None"),
    (S, altered(S, positive=...), ":positive", "row without positive", "'anchor': 'q'"),
    (S, altered(S, positive=["p"]), ":positive", "positive is neither text nor an object", "['p']"),
    (S, altered(S, negative=["n"]), ":negative", "negative is neither text nor an object", "['n']"),
    (S, altered(S, negative=""), ":negative", "text of a negative is empty", "''"),
    (S, altered(S, label=0), ":label", "may not be a positive pair", "0"),
    (S, altered(S, score=0.8), ":score", "may not be a positive pair", "0.8"),
    (S, altered(S, query="q"), "", "two columns could be the query", "['anchor', 'query']"),
    (S, altered(S, answer="p"), "", "two columns could be the positive", "['positive', 'answer']"),
    (S, altered(S, negatives=["n"]), "", "does not read these columns", "['negatives']"),
    (
        S,
        {"sentence1": "q", "sentence2": "p"},
        "",
        "the dataset starts in the sentence-transformers layout",
        "sentence2",
    ),
]


@pytest.mark.parametrize(("layout", "row", "field", "what", "saw"), BAD_ROWS)
def test_a_bad_row_is_named_with_line_field_value_and_a_way_out(layout, row, field, what, saw, tmp_path):
    path = tmp_path / "data.jsonl"
    line = row if isinstance(row, str) else json.dumps(row)
    path.write_text(f"{json.dumps(GOOD[layout])}\n\n{line}\n", encoding="utf-8")
    error = error_of(path, tmp_path)
    assert error.where == f"{path}:3{field}"
    assert what in error.what
    assert saw in str(error)


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"question": "q", "context": "p"}, "layout not recognised"),
        ({"query": "q", "negative": "n"}, "layout not recognised"),
        ({"query": "q", "positive_document_ids": [1]}, "layout not recognised"),
        ({}, "layout not recognised"),
        ({"query": "q", "pos": ["p"], "hard_negatives": ["n"]}, "the flagembedding layout does not read these columns"),
        ({"text": "q", "pos": ["p"]}, "row without query"),
        ({"positive": "p"}, "row without query"),
    ],
)
def test_a_first_row_of_no_layout_is_refused_with_the_columns_seen(record, what, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record), encoding="utf-8")
    error = error_of(path, tmp_path)
    assert str(error.where).startswith(f"{path}:1")
    assert what in error.what
    if "layout" in what:
        assert all(name in error.do for name in GOOD)
        assert set(error.saw) <= set(record)


def test_labels_that_say_positive_are_harmless(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [altered(S, label=1), altered(S, label=None), altered(S, label=1.0)]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert len(read_dataset("n", path, cache=tmp_path / "cache")) == 3


def test_a_row_outside_the_sample_is_not_checked(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(GOOD[F]) + "\nnot JSON\n", encoding="utf-8")
    outcomes = set()
    for seed in range(20):
        try:
            outcomes.add(len(read_dataset("n", path, cache=tmp_path / "cache", max_rows=1, seed=seed)))
        except DataError as error:
            outcomes.add(error.where)
    assert outcomes == {1, f"{path}:2"}


# --- files


def line(**changes):
    return json.dumps(altered(T, **changes)).encode() + b"\n"


BAD_FILES = [
    # name, bytes, place after the path, what is wrong
    ("empty.jsonl", b"", "", "empty dataset"),
    ("blank.jsonl", b"\xef\xbb\xbf\r\n \n\n", "", "empty dataset"),
    ("empty.jsonl.gz", gzip.compress(b"", mtime=0), "", "empty dataset"),
    ("nothing.jsonl.gz", b"", "", "empty dataset"),
    ("latin.jsonl", line() + line(query="caf\x00").replace(b"\\u0000", b"\xe9"), ":2", "not UTF-8"),
    ("utf16.jsonl", line().decode().encode("utf-16"), ":1", "not UTF-8"),
    ("list.json", json.dumps([GOOD[T], 5]).encode(), ":1", "not a JSON object"),
    ("pretty.json", json.dumps(GOOD[T], indent=1).encode(), ":1", "not JSON"),
    ("plain.jsonl.gz", line(), "", "not a gzip file"),
    ("cut.jsonl.gz", gzip.compress(line() * 3, mtime=0)[:-12], "", "gzip file ends too early"),
    ("tail.jsonl.gz", gzip.compress(line(), mtime=0) + b"garbage", "", "not a gzip file, or a damaged one"),
    ("spoilt.jsonl.gz", gzip.compress(line() * 3, mtime=0)[:-8] + b"12345678", "", "not a gzip file, or a damaged one"),
    ("text.parquet", line(), "", "file cannot be read"),
    ("nothing.parquet", b"", "", "file cannot be read"),
    ("table.xlsx", b"query,pos\n", "", "unknown kind of file"),
]


@pytest.mark.parametrize(("name", "content", "place", "what"), BAD_FILES)
def test_a_bad_file_is_named(name, content, place, what, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    for options in ({}, {"max_rows": 2}):
        error = error_of(path, tmp_path, **options)
        assert what in error.what
        if "gz" not in name:
            assert str(error.where) == f"{path}{place}"


def test_a_gzip_file_that_is_cut_off_tells_how_far_it_goes(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    rows = b"".join(line(query=f"{i} {i**9}") for i in range(5000))
    path.write_bytes(gzip.compress(rows)[:-2000])
    error = error_of(path, tmp_path)
    assert error.what == "gzip file ends too early"
    number = int(str(error.where).rsplit(":", 1)[1])
    assert 2000 < number <= 5000


def test_a_missing_file_is_met_with_the_closest_names(tmp_path):
    (tmp_path / "msmarco.jsonl.gz").touch()
    (tmp_path / "hotpot.parquet").touch()
    error = error_of(tmp_path / "msmarko.jsonl", tmp_path)
    assert error.what == "no such file or folder"
    assert "msmarco.jsonl.gz" in error.do
    assert "hotpot" not in error.do


def test_a_missing_folder_is_met_with_the_part_of_the_path_that_exists(tmp_path):
    assert error_of(tmp_path / "a" / "b" / "nq.jsonl", tmp_path).do.endswith(f"as far as {tmp_path}")


# --- folders


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ([], "folder without data files"),
        (["README.md", ".hidden.jsonl", "_SUCCESS"], "folder without data files"),
        (["a.jsonl", "b.parquet"], "several kinds"),
        (["a.jsonl", "a.jsonl.gz"], "several kinds"),
        (["train.jsonl", "test.jsonl"], "several splits"),
        (["nq-train-00000.jsonl", "nq-dev-00000.jsonl"], "several splits"),
    ],
)
def test_a_folder_that_is_not_one_dataset_is_refused(names, what, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(line())
    error = error_of(folder, tmp_path)
    assert what in error.what
    assert error.where == folder


def test_a_bad_row_in_a_part_file_is_named_by_that_part(tmp_path):
    for name, content in (("a.jsonl", line() * 5), ("b.jsonl", line() + line(query=""))):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    assert error_of(tmp_path / "data", tmp_path).where == f"{tmp_path / 'data' / 'b.jsonl'}:2:query"


# --- tables


def test_a_bad_row_of_a_parquet_file_is_named_by_its_number(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD[F]] * 1500 + [altered(F, query=None)]), path, row_group_size=400)
    error = error_of(path, tmp_path)
    assert error.where == f"{path}:row 1501:query"
    assert error.what == "row without query"


def test_text_that_is_not_utf8_in_a_parquet_file_is_reported(tmp_path):
    path = tmp_path / "data.parquet"
    binary = pa.array([b"fine", b"caf\xe9"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, binary.buffers())
    pq.write_table(pa.table({"query": text, "positive": ["a", "b"]}), path)
    error = error_of(path, tmp_path)
    assert error.what == "file cannot be read"
    assert str(error.where).startswith(f"{path}:row 1 or one of the next")


def test_a_damaged_parquet_file_is_refused(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD[F]] * 10), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert error_of(path, tmp_path).where == path


@pytest.fixture
def saved(tmp_path):
    datasets.disable_progress_bars()
    folder = tmp_path / "saved"
    datasets.Dataset.from_list([GOOD[F]] * 3 + [altered(F, neg=[""])]).save_to_disk(folder)
    return folder


def test_a_bad_row_of_a_saved_dataset_is_named_by_its_number(saved, tmp_path):
    assert error_of(saved, tmp_path).where == f"{saved / 'data-00000-of-00001.arrow'}:row 4:neg[0]"


def test_a_saved_dataset_with_a_missing_file_is_refused(saved, tmp_path):
    (saved / "data-00000-of-00001.arrow").unlink()
    assert error_of(saved, tmp_path).what == "no such file or folder"


def test_a_saved_dataset_whose_state_is_damaged_is_refused(saved, tmp_path):
    (saved / "state.json").write_text("{}")
    assert error_of(saved, tmp_path).what == "not a saved dataset"


def test_a_saved_dataset_whose_rows_are_damaged_is_refused(saved, tmp_path):
    (saved / "data-00000-of-00001.arrow").write_bytes(b"x" * 100)
    assert error_of(saved, tmp_path).what == "file cannot be read"


def test_a_selection_that_was_not_written_out_is_refused(saved, tmp_path):
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    assert "selection" in error_of(saved, tmp_path).what


def test_saved_splits_are_refused_with_their_names(tmp_path):
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list([GOOD[F]])
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "splits")
    error = error_of(tmp_path / "splits", tmp_path)
    assert error.saw == ["test", "train"]
    assert str(tmp_path / "splits" / "test") in error.do
