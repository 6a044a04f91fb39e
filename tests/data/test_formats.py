"""What is read of each format, groups of files, and what is read back of what was written."""

import csv
import gzip
import json
import tempfile
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdro.data.reading import Scan, read_dataset, read_study_dataset, scan_rows, write_rows
from tdro.data.records import Passage, Row
from tdro.data.writing import write_dataset
from tdro.errors import ConfigError, DataError, EnvironmentProblem

FLAG = {"query": "who dances", "pos": ["bees"], "neg": ["trees", "stones"]}


def put(folder: Path, name: str, content: str | bytes) -> Path:
    """Write a file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(*paths: object) -> list[Row]:
    """All rows of some sources; none of them may be bad."""
    found = [row for _, row in scan_rows("n", paths)]
    assert not [row for row in found if isinstance(row, DataError)]
    return found


def texts_of(row: Row) -> tuple[str, list[str], list[str]]:
    """A row without its ids."""
    return row.query, [p.full_text for p in row.positives], [p.full_text for p in row.negatives]


def everything(row: Row) -> tuple[object, ...]:
    """A row with what equality leaves out."""
    return row, [(p.score, p.rank, p.model) for p in row.positives + row.negatives]


# --- plain pairs and sets, lists around all rows, tables of text


@pytest.mark.parametrize(
    ("name", "content", "layout", "expected"),
    [
        ("a.jsonl", '["q", "p"]\n["r", "s"]', "pairs", [("q", ["p"], []), ("r", ["s"], [])]),
        ("a.json", '["q", "p", "n", "m"]\n', "pairs", [("q", ["p"], ["n", "m"])]),
        ("a.json", '[["q", "p"], ["r", "s"]]', "pairs", [("q", ["p"], []), ("r", ["s"], [])]),
        ("a.jsonl", '{"set": ["q", "p", "r"]}', "sets", [("q", ["p", "r"], [])]),
        ("a.jsonl", '{"texts": ["q", "p"], "label": 1}', "sets", [("q", ["p"], [])]),
        ("a.json", "[" + json.dumps(FLAG) + "]", "flagembedding", [("who dances", ["bees"], ["trees", "stones"])]),
        ("a.csv", 'query,positive,negative\n"a, ""b""",p,n\n', "sentence-transformers", [('a, "b"', ["p"], ["n"])]),
        ("a.csv", 'query,positive\n"two\r\nlines",p\n', "sentence-transformers", [("two\r\nlines", ["p"], [])]),
        ("a.csv", "label, question ,answer\n1.0,q,p\n", "sentence-transformers", [("q", ["p"], [])]),
        ("a.tsv", "anchor\tpositive\tnegative_1\nq\tp, s\t\n", "sentence-transformers", [("q", ["p, s"], [])]),
    ],
)
def test_plain_formats(name, content, layout, expected, tmp_path):
    path = put(tmp_path, name, content)
    rows = read_dataset("n", path, cache=tmp_path / "cache")
    assert rows.info.layout == layout
    assert [texts_of(row) for row in rows] == expected
    packed = put(tmp_path, f"{name}.gz", gzip.compress(content.encode()))
    assert [texts_of(row) for row in rows_of(packed)] == expected


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "beir"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_marks_line_ends_and_a_missing_last_one_change_nothing(ending, newline, mark, last, tmp_path):
    def text(*lines: str) -> bytes:
        return (mark + newline.join(lines) + (newline if last else "")).encode()

    if ending == "beir":
        put(tmp_path, "b/corpus.jsonl", text('{"_id": "d", "text": "p1"}', '{"_id": 2, "title": "p", "text": "2"}'))
        put(tmp_path, "b/queries.jsonl", text('{"_id": "q", "text": "q1"}', '{"_id": "r", "text": "q2"}'))
        put(tmp_path, "b/qrels/train.tsv", text("query-id\tcorpus-id\tscore", "q\td\t1", "r\t2\t1"))
        path, expected = tmp_path / "b", [("q1", ["p1"], []), ("q2", ["p 2"], [])]
    else:
        lines = {
            "jsonl": ('{"query": "q1", "pos": ["p1"]}', '{"query": "q2", "pos": ["p 2"]}'),
            "json": ("[", '{"query": "q1", "pos": ["p1"]},', '{"query": "q2", "pos": ["p 2"]}', "]"),
            "csv": ("query,positive", "q1,p1", '"q2",p 2'),
            "tsv": ("query\tpositive", "q1\tp1", "q2\tp 2"),
        }
        path, expected = put(tmp_path, f"a.{ending}", text(*lines[ending])), [("q1", ["p1"], []), ("q2", ["p 2"], [])]
    assert [texts_of(row) for row in rows_of(path)] == expected


def test_a_list_of_rows_is_read_in_pieces_with_the_line_of_each_row(tmp_path, monkeypatch):
    monkeypatch.setattr("tdro.data.lines._CHUNK", 7)
    records = [FLAG | {"query": f"é {i} 🐝" * (i + 1)} for i in range(30)]
    path = put(tmp_path, "a.json", json.dumps(records, indent=1, ensure_ascii=False))
    found = list(scan_rows("n", [path]))
    assert [row.query for _, row in found] == [record["query"] for record in records]
    assert [place for place, _ in found] == [f"{path}:{2 + 10 * i}" for i in range(30)]


def test_scores_prompts_ranks_and_models_are_read(tmp_path):
    scored = {"pos_scores": [1], "neg_scores": [0.25, None], "prompt": "find", "type": "normal"}
    flag = put(tmp_path, "a.jsonl", json.dumps(FLAG | scored))
    passage = {"text": "p", "score": 0.5, "rank": 3, "model": "m", "url": "u"}
    tevatron = put(tmp_path, "b.jsonl", json.dumps({"query": "q", "positive_passages": [passage], "prompt": None}))
    scan = Scan("n", [flag, tevatron])
    (_, first), (_, second) = scan
    assert [p.score for p in first.positives + first.negatives] == [1.0, 0.25, None]
    assert first.prompt == "find"
    assert everything(second)[1] == [(0.5, 3, "m")]
    assert second.prompt == ""
    assert scan.unread == {"type", "url"}
    assert scan.layouts == {str(flag): "flagembedding", str(tevatron): "tevatron"}


# --- BEIR folders


@pytest.fixture
def beir(tmp_path) -> Path:
    documents = [{"_id": f"d{i}", "title": "T" * (i % 2), "text": f"text {i} é"} for i in range(6)]
    documents.append({"_id": "only", "title": "a title", "text": ""})
    corpus = "\n\n".join(json.dumps(document, ensure_ascii=False) for document in documents)
    put(tmp_path, "beir/corpus.jsonl.gz", gzip.compress(corpus.encode()))
    put(
        tmp_path,
        "beir/queries.jsonl",
        "".join(json.dumps({"_id": f"q{i}", "text": f"query {i}"}) + "\n" for i in "012"),
    )
    judged = ["q2 d5 2", "q0 d1 1", "q2 d0 0", "q0 d3 1", "q1 d4 0", "q2 d1 1", "q2 d5 2", "q0 only 1"]
    header = "query-id\tcorpus-id\tscore\n"
    put(tmp_path, "beir/qrels/train.tsv", header + "".join(line.replace(" ", "\t") + "\n" for line in judged))
    put(tmp_path, "beir/qrels/dev.tsv", "q1 0 d2 1\n")
    return tmp_path / "beir"


def test_a_beir_folder_gives_a_row_per_query_with_something_relevant(beir, tmp_path):
    rows = read_dataset("n", beir, cache=tmp_path / "cache")
    assert rows.info.layout == "beir"
    assert [(row.query_id, *texts_of(row)) for row in rows] == [
        ("q2", "query 2", ["T text 5 é", "T text 1 é"], ["text 0 é"]),
        ("q0", "query 0", ["T text 1 é", "T text 3 é", "a title"], []),
    ]
    assert [p.id for p in rows[0].positives] == ["d5", "d1"]
    assert rows[0].positives[0].title == "T"


def test_another_split_is_named_behind_the_folder(beir, tmp_path):
    rows = read_dataset("n", f"{beir}#dev", cache=tmp_path / "cache")
    assert [(row.query_id, *texts_of(row)) for row in rows] == [("q1", "query 1", ["text 2 é"], [])]
    with pytest.raises(DataError) as caught:
        read_dataset("n", f"{beir}#test", cache=tmp_path / "cache")
    assert f"{beir}#dev or {beir}#train" in caught.value.do


def test_a_sample_of_a_beir_folder_counts_the_queries(beir, tmp_path):
    assert len(read_dataset("n", beir, cache=tmp_path / "cache", max_rows=1)) == 1
    assert len(read_dataset("n", beir, cache=tmp_path / "cache", max_rows=9)) == 2


# --- groups


def test_a_group_of_several_kinds_and_layouts_is_one_dataset(beir, tmp_path):
    a = put(tmp_path, "a.jsonl", json.dumps(FLAG) + "\n" + json.dumps(FLAG))
    b = put(tmp_path, "b.csv", "question,answer\nwho sings,birds\n")
    rows = read_dataset("n", [a, beir, b], cache=tmp_path / "cache")
    assert [row.query_id for row in rows] == ["n-1", "n-2", "q2", "q0", "n-5"]
    assert rows.info.layout == "flagembedding + beir + sentence-transformers"
    assert rows.info.path == f"{a}, {beir}, {b}"
    assert [row.query for row in rows] == [row.query for row in rows_of(a, beir, b)]


def test_the_fingerprint_of_a_group_covers_all_files_and_their_order(tmp_path):
    a, b, c = (put(tmp_path, f"{name}.jsonl", json.dumps(FLAG | {"query": name})) for name in "abc")
    groups = [a, [a, b], [b, a], [a, c], [a, b, c], [a, a]]
    prints = [read_dataset("n", group, cache=tmp_path / "cache").info.fingerprint for group in groups]
    assert len(set(prints)) == len(groups)
    assert read_dataset("n", [a], cache=tmp_path / "cache").info.fingerprint == prints[0]


def test_the_fingerprint_of_one_file_is_what_it_always_was(tmp_path):
    path = put(tmp_path, "a.jsonl", json.dumps(FLAG))
    assert read_dataset("n", path, cache=tmp_path / "cache").info.fingerprint == "484c9a926540f5339670a6935fbb4888"


def test_a_sample_is_drawn_over_the_whole_group(tmp_path):
    a, b = (
        put(tmp_path, f"{name}.jsonl", "\n".join(json.dumps(FLAG | {"query": f"{name}{i}"}) for i in range(count)))
        for name, count in (("a", 3), ("b", 40))
    )
    rows = read_dataset("n", [a, b], cache=tmp_path / "cache", max_rows=10, seed=1)
    every = {row.query_id: row.query for row in rows_of(a, b)}
    assert len(rows) == 10
    assert all(every[row.query_id] == row.query for row in rows)
    assert [row.query for _, row in Scan("n", [a, b], max_rows=10, seed=1)] == [row.query for row in rows]


@pytest.mark.parametrize("sample", [None, 1])
def test_an_empty_file_in_a_group_is_refused(sample, tmp_path):
    a, b = put(tmp_path, "a.jsonl", json.dumps(FLAG)), put(tmp_path, "b.jsonl", "\n")
    with pytest.raises(DataError, match="empty dataset") as caught:
        read_dataset("n", [a, b], cache=tmp_path / "cache", max_rows=sample)
    assert caught.value.where == b


def test_a_group_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="needs a file"):
        read_dataset("n", [], cache=tmp_path / "cache")


def test_a_study_reads_all_files_of_a_dataset(tmp_path, monkeypatch):
    from tdro.config import Study

    monkeypatch.setenv("TDRO_CACHE", str(tmp_path / "cache"))
    for name in "ab":
        put(tmp_path, f"{name}.jsonl", json.dumps(FLAG | {"query": name}))
    data = {"root": str(tmp_path), "datasets": {"both": {"path": ["a.jsonl", "b.jsonl"]}, "one": "a.jsonl"}}
    study = Study.model_validate({"name": "s", "data": data, "model": {"base": "b"}})
    assert [row.query for row in read_study_dataset(study, "both")] == ["a", "b"]
    assert [row.query for row in read_study_dataset(study, "one")] == ["a"]


# --- the hub


def test_a_dataset_of_the_hub_is_fetched_once_and_read_like_a_saved_one(tmp_path, monkeypatch):
    datasets.disable_progress_bars()
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([FLAG, FLAG])

    monkeypatch.setattr(datasets, "load_dataset", load)
    for _ in range(2):
        rows = read_dataset("n", "hf://owner/name/en:train[:2]", cache=tmp_path / "cache")
    assert asked == [("owner/name", "en", "train[:2]")]
    assert len(rows) == 2
    assert rows.info.path == "hf://owner/name/en:train[:2]"
    read_dataset("n", "hf://owner/name:train", cache=tmp_path / "cache")
    assert asked[1] == ("owner/name", None, "train")


@pytest.mark.parametrize("address", ["hf://name:train", "hf://owner/name", "hf://owner/name:", "hf://a/b/c/d:train"])
def test_an_address_of_another_form_is_refused(address, tmp_path):
    with pytest.raises(DataError, match="not an address of the Hugging Face hub"):
        read_dataset("n", address, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ConnectionError("no route"), EnvironmentProblem),
        (RuntimeError("proxy"), EnvironmentProblem),
        (ValueError("Unknown split"), DataError),
        (datasets.exceptions.DatasetNotFoundError("no"), DataError),
    ],
)
def test_what_the_hub_refuses_is_told_from_what_the_network_does(raised, expected, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(expected) as caught:
        read_dataset("n", "hf://owner/name:train", cache=tmp_path / "cache")
    assert caught.value.where == "hf://owner/name:train"
    assert not list((tmp_path / "cache").glob("hub/[!.]*"))


def test_without_the_library_the_hub_is_a_problem_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(EnvironmentProblem, match="needs the library datasets"):
        read_dataset("n", "hf://owner/name:train", cache=tmp_path / "cache")


# --- round trips

letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(letters).filter(lambda text: text and not text.isspace())
words = st.text(st.characters(categories=["L", "N"]), min_size=1)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
scored = st.builds(
    Passage, words, st.just("") | texts, texts, numbers, st.none() | st.integers(0, 10**6), st.just("") | texts
)
full_rows = st.builds(
    Row, words, texts, st.lists(scored, min_size=1).map(tuple), st.lists(scored).map(tuple), st.just("") | texts
)


@settings(max_examples=25, deadline=None)
@given(st.lists(full_rows, min_size=1), st.sampled_from(["r.jsonl", "r.jsonl.gz"]))
def test_tevatron_holds_everything(rows, name):
    with tempfile.TemporaryDirectory() as folder:
        written = write_dataset(rows, Path(folder, name), "tevatron")
        assert (written.rows, written.records, +written.lost) == (len(rows), len(rows), {})
        assert [everything(row) for row in rows_of(Path(folder, name))] == [everything(row) for row in rows]


@settings(max_examples=25, deadline=None)
@given(st.lists(full_rows, min_size=1))
def test_flagembedding_holds_texts_scores_and_prompts(rows):
    with tempfile.TemporaryDirectory() as folder:
        lost = write_dataset(rows, Path(folder, "r.jsonl"), "flagembedding").lost
        back = rows_of(Path(folder, "r.jsonl"))
    assert [(row.query_id, row.prompt, *texts_of(row)) for row in back] == [
        (row.query_id, row.prompt, *texts_of(row)) for row in rows
    ]
    sides = [side for row in rows for side in (row.positives, row.negatives)]
    sides_back = [side for row in back for side in (row.positives, row.negatives)]
    for side, again in zip(sides, sides_back, strict=True):
        complete = all(p.score is not None for p in side)
        assert [p.score for p in again] == [p.score if complete else None for p in side]
    assert lost["scores"] == sum(p.score is not None for s in sides for p in s) - sum(
        p.score is not None for s in sides_back for p in s
    )
    assert lost["ranks"] == sum(p.rank is not None for s in sides for p in s)
    assert lost["titles (now part of the text)"] == sum(bool(p.title) for s in sides for p in s)


TABLES = [
    ("sentence-transformers", "r.jsonl"),
    ("sentence-transformers", "r.parquet"),
    ("csv", "r.csv"),
    ("csv", "r.csv.gz"),
    ("tsv", "r.tsv"),
]


@pytest.mark.parametrize(("layout", "name"), TABLES)
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(full_rows, min_size=1), data=st.data())
def test_tables_hold_the_texts(layout, name, rows, data):
    least = min(len(row.negatives) for row in rows)
    keep = data.draw(st.integers(0, least))
    with tempfile.TemporaryDirectory() as folder:
        written = write_dataset(rows, Path(folder, name), layout, negatives=keep)
        back = rows_of(Path(folder, name))
    expected = [(q, [p], negatives[:keep]) for q, ps, negatives in map(texts_of, rows) for p in ps]
    assert [texts_of(row) for row in back] == expected
    assert (written.rows, written.records) == (len(rows), len(expected))
    assert written.lost["negatives"] == sum(len(row.negatives) - keep for row in rows)
    assert written.lost["query ids"] == len(rows)
    assert written.lost["prompts"] == sum(bool(row.prompt) for row in rows)


documents = st.dictionaries(words, st.tuples(st.just("") | texts, texts), min_size=2, max_size=8)


@settings(max_examples=25, deadline=None)
@given(documents, st.dictionaries(words, texts, min_size=1, max_size=5), st.data())
def test_a_beir_folder_holds_ids_titles_and_both_sides(documents, queries, data):
    passages = [Passage(identifier, title, text) for identifier, (title, text) in documents.items()]
    rows = []
    for identifier, query in queries.items():
        order = data.draw(st.permutations(passages))
        positives = data.draw(st.integers(1, len(order)))
        rows.append(Row(identifier, query, tuple(order[:positives]), tuple(order[positives:])))
    with tempfile.TemporaryDirectory() as folder:
        written = write_dataset(rows, Path(folder, "new"), "beir")
        assert (written.rows, written.records, +written.lost) == (len(rows), len(rows), {})
        assert rows_of(Path(folder, "new")) == rows


PAIR = Row("q", "who dances", (Passage("d1", "", "bees"),), (Passage("d2", "T", "trees", 0.5, 4, "m"),), "find")


def test_sentence_transformers_columns_are_in_the_order_that_trainers_read(tmp_path):
    write_dataset([PAIR], tmp_path / "r.parquet", "sentence-transformers")
    assert pq.read_table(tmp_path / "r.parquet").to_pylist() == [
        {"anchor": "who dances", "positive": "bees", "negative": "T trees"}
    ]
    three = Row("q", "a", PAIR.positives, PAIR.negatives * 3)
    write_dataset([three], tmp_path / "r.jsonl", "sentence-transformers")
    assert list(json.loads((tmp_path / "r.jsonl").read_text())) == [
        "anchor",
        "positive",
        "negative_1",
        "negative_2",
        "negative_3",
    ]


def test_other_programs_read_the_tables(tmp_path):
    odd = Row("q", 'a "b", c\td', (Passage("1", "", "two\rlines"),), (Passage("2", "", "ü\r\n"),))
    write_dataset([odd], tmp_path / "r.csv", "csv")
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as table:
        assert list(csv.reader(table)) == [["anchor", "positive", "negative"], ['a "b", c\td', "two\rlines", "ü\r\n"]]


def test_ragged_negatives_are_refused_or_cut(tmp_path):
    rows = [PAIR, Row("r", "q2", PAIR.positives, PAIR.negatives * 3)]
    for layout, name in TABLES:
        with pytest.raises(DataError, match="needs as many in every row") as caught:
            write_dataset(rows, tmp_path / name, layout)
        assert "--negatives" in caught.value.do
        with pytest.raises(DataError, match="this row has 1 negatives, not 2"):
            write_dataset(rows, tmp_path / name, layout, negatives=2)
        assert not (tmp_path / name).exists()
        assert write_dataset(rows, tmp_path / name, layout, negatives=1).lost["negatives"] == 2


@pytest.mark.parametrize(
    ("layout", "name"), [*TABLES, ("tevatron", "r.jsonl"), ("flagembedding", "r.jsonl"), ("beir", "r")]
)
def test_nothing_is_written_of_no_rows(layout, name, tmp_path):
    with pytest.raises(DataError, match="no rows to write"):
        write_dataset([], tmp_path / name, layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([PAIR, Row("q", "another", PAIR.positives, ())], "one id stands for two texts"),
        ([PAIR, Row("r", "another", (Passage("d1", "", "wasps"),), ())], "one id stands for two texts"),
        ([Row("q", "who", PAIR.positives, PAIR.positives)], "a positive and a negative of one query"),
        ([PAIR, Row("q", PAIR.query, PAIR.negatives, ())], "a positive and a negative of one query"),
        ([Row("q 1", "who", PAIR.positives, ())], "white space"),
        ([Row("q", "who", (Passage("a\tb", "", "t"),), ())], "white space"),
    ],
)
def test_what_a_beir_folder_cannot_hold_is_refused(rows, what, tmp_path):
    with pytest.raises(DataError, match=what):
        write_dataset(rows, tmp_path / "new", "beir")
    assert not list(tmp_path.iterdir())


def test_rows_of_one_query_become_one_in_a_beir_folder(tmp_path):
    other = Row("q", PAIR.query, (Passage("d3", "", "wasps"),), PAIR.negatives)
    written = write_dataset([PAIR, other], tmp_path / "new", "beir")
    assert (written.rows, written.records) == (2, 1)
    assert rows_of(tmp_path / "new") == [Row("q", PAIR.query, PAIR.positives + other.positives, PAIR.negatives)]


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path):
    put(tmp_path, "mine/precious.txt", "x")
    with pytest.raises(ConfigError, match="something already"):
        write_dataset([PAIR], tmp_path / "mine", "beir")
    assert (tmp_path / "mine" / "precious.txt").exists()


@pytest.mark.parametrize(("layout", "name"), [("tevatron", "r.csv"), ("csv", "r.tsv"), ("flagembedding", "r.parquet")])
def test_a_name_that_does_not_fit_the_layout_is_refused(layout, name, tmp_path):
    with pytest.raises(ConfigError, match="to this name"):
        write_dataset([PAIR], tmp_path / name, layout)


def test_a_nul_character_does_not_fit_a_table_of_text(tmp_path):
    with pytest.raises(DataError, match="NUL"):
        write_dataset([Row("q", "a\0b", PAIR.positives, ())], tmp_path / "r.csv", "csv")


def test_passages_are_equal_whatever_their_scores(tmp_path):
    scored = Passage("d2", "T", "trees", 0.9)
    assert scored == PAIR.negatives[0]
    assert len({scored, PAIR.negatives[0]}) == 1
    write_rows([PAIR], tmp_path / "r.jsonl")
    stored = read_dataset("n", tmp_path / "r.jsonl", cache=tmp_path / "cache")[0]
    assert stored.negatives == PAIR.negatives
    assert (stored.negatives[0].score, stored.prompt) == (None, "")
