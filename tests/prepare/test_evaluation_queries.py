"""Evaluation sets in every form."""

import gzip
import json

import pytest

from tdro.errors import DataError
from tdro.prepare.evaluation_queries import read_evaluation_sets


def beir(folder, *, judged="q1\td1\t1\nq1\td2\t0\n", name="test"):
    """Write a BEIR folder of two queries and two documents."""
    (folder / "qrels").mkdir(parents=True)
    queries = [{"_id": "q1", "text": "who dances"}, {"_id": "q2", "text": "who sings"}]
    corpus = [{"_id": "d1", "title": "Bees", "text": "They dance."}, {"_id": "d2", "title": "", "text": "Birds sing."}]
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    (folder / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in corpus))
    if judged:
        (folder / "qrels" / f"{name}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def test_beir_gives_judged_queries_and_relevant_documents(tmp_path):
    (one,) = read_evaluation_sets(beir(tmp_path / "bees"))
    assert (one.name, one.ids, one.queries, one.relevant) == ("bees", ("q1",), ("who dances",), ((0,),))
    assert [document.full_text for document in one.documents] == ["Bees They dance."]


def test_beir_without_qrels_gives_all_queries_and_another_split_is_named(tmp_path):
    (one,) = read_evaluation_sets(beir(tmp_path / "a", judged=""))
    assert one.ids == ("q1", "q2") and one.relevant == ((), ())
    with pytest.raises(DataError, match="choose one of: dev"):
        read_evaluation_sets(beir(tmp_path / "b", name="dev"))
    assert read_evaluation_sets(tmp_path / "b", split="dev")[0].ids == ("q1",)


def test_a_folder_of_beir_folders_gives_all_of_them(tmp_path):
    for name in ("b", "a"):
        beir(tmp_path / "sets" / name)
    assert [one.name for one in read_evaluation_sets(tmp_path / "sets")] == ["a", "b"]


def test_miracl_topics_and_mkqa(tmp_path):
    (tmp_path / "topics.sw.tsv").write_text("7#0\tNani anacheza?\n8#0\tWapi?\n", encoding="utf-8")
    (topics,) = read_evaluation_sets(tmp_path / "topics.sw.tsv")
    assert (topics.name, topics.ids, topics.queries) == ("topics.sw", ("7#0", "8#0"), ("Nani anacheza?", "Wapi?"))
    record = {"example_id": 5, "query": "who dances", "queries": {"en": "who dances", "de": "wer tanzt", "ar": None}}
    with gzip.open(tmp_path / "mkqa.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    (mkqa,) = read_evaluation_sets(tmp_path / "mkqa.jsonl.gz")
    assert (mkqa.ids, mkqa.queries) == (("5:en", "5:de"), ("who dances", "wer tanzt"))


@pytest.mark.parametrize(
    ("name", "content", "ids", "queries"),
    [
        ("a.txt", "who\n\nwhat\n", ("1", "2"), ("who", "what")),
        ("a.csv", 'id,Question\nx,"who, then"\n', ("x",), ("who, then",)),
        ("a.tsv", "query\tanswer\nwho\tbees\n", ("2",), ("who",)),
        ("a.jsonl", '\ufeff{"question": "who"}\r\n{"question": "what", "id": 4}', ("1", "4"), ("who", "what")),
        ("a.csv", "who\nwhat\n", ("1", "2"), ("who", "what")),
    ],
)
def test_plain_files(tmp_path, name, content, ids, queries):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    (one,) = read_evaluation_sets(tmp_path / name)
    assert (one.ids, one.queries) == (ids, queries)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"title_of": "x"}', "record without query\n.*a.jsonl:1"),
        ("a.jsonl", b'{"query": 3}', "not a string\n.*a.jsonl:1:query"),
        ("a.jsonl", b"[1]", "not a JSON object"),
        ("a.txt", b"\n\n", "evaluation set without queries"),
        ("a.txt", b"ok\n\xff\xfe", "file cannot be read\n.*a.txt"),
        ("a.csv", b"who,dances\n", "table without a query column\n.*a.csv:1"),
        ("a.tsv", b"1\twho\n2\n", "too few columns\n.*a.tsv:2"),
        ("a.tsv.gz", b"\x1f\x8bnothing", "file cannot be read"),
        ("a.pdf", b"", "unknown kind of file"),
    ],
)
def test_bad_files_say_where_and_what_to_do(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        read_evaluation_sets(tmp_path / name)


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        ("q1\td1\n", "three or four columns\n.*test.tsv:2"),
        ("q1\td1\t1\nq1\td2\tgood\n", "score is not a number\n.*test.tsv:3"),
        ("q9\td1\t1\n", "no judged query has a text"),
    ],
)
def test_bad_qrels(tmp_path, judged, expected):
    with pytest.raises(DataError, match=expected):
        read_evaluation_sets(beir(tmp_path / "bees", judged=judged))


def test_a_missing_path_names_its_neighbours(tmp_path):
    (tmp_path / "queries.txt").touch()
    with pytest.raises(DataError, match=r"did you mean .*queries\.txt"):
        read_evaluation_sets(tmp_path / "querys.txt")
