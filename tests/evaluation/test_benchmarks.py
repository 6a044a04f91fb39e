"""BEIR folders in their variants and with their faults; evaluations and the files written of them."""

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path

import ir_measures
import numpy as np
import pyarrow.parquet as pq
import pytest
from ir_measures import RR, R, nDCG

from tdro.errors import ConfigError, DataError
from tdro.evaluation.benchmarks import Benchmark, Oddities, check_beir, evaluate, read_beir, write_evaluation
from tdro.retrieval.search import Encode

DOCUMENTS = [{"_id": "d1", "title": "Bees", "text": "dance"}, {"_id": "d2", "text": "sleep"}]
QUERIES = [{"_id": "q1", "text": "who dances"}, {"_id": "q2", "text": "who sleeps"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td2\t1\n"


def write_folder(
    folder: Path, documents: Sequence[object] = DOCUMENTS, queries: Sequence[object] = QUERIES, qrels: str = QRELS
) -> Path:
    """Write an evaluation set."""
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps(record) + "\n" for record in queries))
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


def table_encoder(table: dict[str, list[float]]) -> Encode:
    """Encode by looking texts up."""
    return lambda texts: np.array([table[text] for text in texts], dtype=np.float32)


def count_encoder(size: int) -> Encode:
    """Encode a text as counts of its characters modulo `size`: small integers, so that many scores tie."""
    return lambda texts: np.array([np.bincount([ord(c) % size for c in t], minlength=size) for t in texts])


def random_benchmark(documents: int = 150, queries: int = 12) -> Benchmark:
    """Make a benchmark of random words in which most scores are tied."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abc"), 3)) for _ in range(documents + queries)]
    ids = tuple(f"d{i}" for i in rng.permutation(documents))
    query_ids = tuple(f"q{i}" for i in range(queries))
    qrels = {q: {str(d): int(rng.integers(0, 3)) for d in rng.choice(ids, 8, replace=False)} for q in query_ids}
    texts = tuple(words[:documents]), tuple(words[documents:])
    return Benchmark("words", ids, texts[0], query_ids, texts[1], qrels, Oddities(0, 0, 0, 0))


def test_reads_what_was_written(tmp_path: Path) -> None:
    benchmark = read_beir("bees", write_folder(tmp_path / "bees"))
    assert benchmark == Benchmark(
        name="bees",
        document_ids=("d1", "d2"),
        document_texts=("Bees dance", "sleep"),
        query_ids=("q1", "q2"),
        query_texts=("who dances", "who sleeps"),
        qrels={"q1": {"d1": 2}, "q2": {"d2": 1}},
        oddities=Oddities(0, 0, 0, 0),
    )


@pytest.mark.parametrize(
    "qrels",
    [
        "q1\td1\t2\nq2\td2\t1",
        "q1 0 d1 2\nq2 0 d2 1\n",
        "q1\tQ0\td1\t2\n\nq2\tQ0\td2\t1.0\n",
        "query-id\tcorpus-id\tscore\r\nq1\td1\t2\r\nq2\td2\t1\r\n",
        "\ufeffquery-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td2\t1\n",
        "\ufeffq1\td1\t2\nq2\td2\t1\n",
    ],
    ids=["no header", "trec, spaces", "trec, blank line, 1.0", "crlf", "bom, header", "bom, no header"],
)
def test_every_form_of_qrels_reads_alike(tmp_path: Path, qrels: str) -> None:
    benchmark = read_beir("bees", write_folder(tmp_path / "bees", qrels=qrels))
    assert benchmark.qrels == {"q1": {"d1": 2}, "q2": {"d2": 1}}


def test_every_form_of_jsonl_reads_alike(tmp_path: Path) -> None:
    expected = read_beir("bees", write_folder(tmp_path / "a"))
    variants = [
        [{"id": "d1", "title": "Bees", "text": "dance", "metadata": {}}, {"id": "d2", "title": None, "text": "sleep"}],
        [{"_id": "d1", "title": "Bees", "text": "dance"}, {"_id": "d2", "title": "", "text": "sleep"}],
    ]
    for number, documents in enumerate(variants):
        folder = write_folder(tmp_path / str(number), documents)
        assert read_beir("bees", folder) == expected
        content = (folder / "corpus.jsonl").read_bytes()
        (folder / "corpus.jsonl").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
        assert read_beir("bees", folder) == expected
        (folder / "corpus.jsonl").unlink()
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(content))
        assert read_beir("bees", folder) == expected


def test_integer_ids_are_read_as_strings(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "n", [{"_id": 7, "text": "a"}], [{"_id": 8, "text": "b"}], "8\t7\t1\n")
    benchmark = read_beir("n", folder)
    assert (benchmark.document_ids, benchmark.query_ids, benchmark.qrels) == (("7",), ("8",), {"8": {"7": 1}})


def test_other_split_is_read_from_its_own_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "bees")
    (folder / "qrels" / "dev.tsv").write_text("q2\td2\t1\n")
    assert read_beir("bees", folder, split="dev").query_ids == ("q2",)


def test_what_does_not_fit_together_is_left_out_and_counted(tmp_path: Path) -> None:
    queries = [*QUERIES, {"_id": "q3", "text": "not judged"}, {"_id": "q4", "text": "judged 0 only"}]
    folder = write_folder(tmp_path / "odd", queries=queries, qrels=QRELS + "q4\td1\t0\nq5\td1\t1\nq1\tgone\t1\n")
    benchmark = read_beir("odd", folder)
    assert benchmark.query_ids == ("q1", "q2", "q4")
    assert benchmark.qrels["q1"] == {"d1": 2, "gone": 1}
    assert benchmark.oddities == Oddities(
        unknown_documents=1, unjudged_queries=1, missing_queries=1, queries_without_relevant=1
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n{"_id": ', "corpus.jsonl:2"),
        ("corpus.jsonl", "[1]\n", "not a JSON object.*corpus.jsonl:1"),
        ("corpus.jsonl", '{"_id": "d1"}\n', "text is missing.*corpus.jsonl:1:text"),
        ("corpus.jsonl", '{"_id": "d1", "title": 3, "text": ""}\n', "title is missing.*corpus.jsonl:1:title"),
        ("corpus.jsonl", '{"text": "a"}\n', "id is missing.*corpus.jsonl:1:id"),
        ("corpus.jsonl", '{"_id": true, "text": "a"}\n', "id is missing.*corpus.jsonl:1:_id"),
        ("corpus.jsonl", '{"_id": "a b", "text": "a"}\n', "white space.*corpus.jsonl:1:_id"),
        ("corpus.jsonl", '{"_id": "", "text": "a"}\n', "id is empty.*corpus.jsonl:1:_id"),
        ("corpus.jsonl", '{"_id": 1, "text": "a"}\n{"_id": "1", "text": "b"}\n', "twice.*corpus.jsonl:2:_id"),
        ("corpus.jsonl", "", "file is empty.*corpus.jsonl"),
        ("corpus.jsonl", b'{"_id": "d1", "text": "\xff"}\n', "UTF-8.*corpus.jsonl:1"),
        ("queries.jsonl", '{"_id": "q1"}\n', "text is missing.*queries.jsonl:1:text"),
        ("queries.jsonl", '{"_id": "q9", "text": "a"}\n', "no judged query has a text.*test.tsv"),
        ("qrels/test.tsv", "", "qrels are empty.*test.tsv"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "qrels are empty.*test.tsv"),
        ("qrels/test.tsv", "q1\td1\tgood\n", "not a whole number.*test.tsv:1:score"),
        ("qrels/test.tsv", QRELS + "q1\td2\t0.5\n", "not a whole number.*test.tsv:4:score"),
        ("qrels/test.tsv", "q1\td1\tnan\n", "not a whole number.*test.tsv:1:score"),
        ("qrels/test.tsv", "q1\td1\n", "three or four columns.*test.tsv:1"),
        ("qrels/test.tsv", "q1\t\t1\n", "id is empty.*test.tsv:1:corpus-id"),
        ("qrels/test.tsv", QRELS + "q1\td1\t1\n", "judged twice.*test.tsv:4"),
        ("qrels/test.tsv", b"q\xff\td1\t1\n", "cannot be read.*test.tsv"),
    ],
)
def test_faulty_file_is_refused_with_its_place(tmp_path: Path, file: str, content: str | bytes, message: str) -> None:
    folder = write_folder(tmp_path / "bad")
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_beir("bad", folder)


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "bad")
    content = gzip.compress((folder / "corpus.jsonl").read_bytes())
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(content[:-12])
    with pytest.raises(DataError, match=r"corpus\.jsonl\.gz"):
        read_beir("bad", folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("corpus.jsonl", "without corpus"),
        ("queries.jsonl", "without queries"),
        ("qrels/test.tsv", "evaluation set without qrels"),
    ],
)
def test_missing_file_is_named(tmp_path: Path, file: str, message: str) -> None:
    folder = write_folder(tmp_path / "bad")
    (folder / file).unlink()
    with pytest.raises(DataError, match=f"(?s){message}.*{file}"):
        read_beir("bad", folder)
    with pytest.raises(DataError, match=f"(?s){message}.*{file}"):
        check_beir("bad", folder)


def test_check_looks_at_qrels_and_leaves_texts_unread(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "bees")
    (folder / "corpus.jsonl").write_text("not read")
    check_beir("bees", folder)
    (folder / "qrels" / "test.tsv").write_text("q1\td1\tgood\n")
    with pytest.raises(DataError, match=r"test\.tsv:1:score"):
        check_beir("bees", folder)


def test_missing_folder_and_missing_qrels_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)evaluation set not found.*nowhere"):
        read_beir("bad", tmp_path / "nowhere")
    folder = write_folder(tmp_path / "bad")
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "qrels").rmdir()
    with pytest.raises(DataError, match="evaluation set without qrels"):
        read_beir("bad", folder)


def test_evaluation_ranks_and_scores(tmp_path: Path) -> None:
    benchmark = read_beir("bees", write_folder(tmp_path / "bees"))
    encode_query = table_encoder({"who dances": [1, 0], "who sleeps": [1, 0.5]})
    encode_corpus = table_encoder({"Bees dance": [1, 0], "sleep": [0, 1]})
    evaluation = evaluate(encode_query, encode_corpus, benchmark)
    assert [ranking.document_ids for ranking in evaluation.rankings.values()] == [("d1", "d2"), ("d1", "d2")]
    assert evaluation.rankings["q2"].scores.tolist() == [1.0, 0.5]
    assert evaluation.scores["mrr@10"] == {"q1": 1.0, "q2": 0.5}
    assert evaluation.means["mrr@10"] == 0.75
    assert evaluation.means["recall@100"] == 1.0
    assert evaluation.no_results == 0


def test_identical_ids_are_dropped_only_on_request(tmp_path: Path) -> None:
    documents = [{"_id": i, "text": i} for i in ("a", "b", "c")]
    folder = write_folder(tmp_path / "same", documents, [documents[0]], "a\tc\t1\n")
    encode_query, encode_corpus = table_encoder({"a": [1]}), table_encoder({"a": [2], "b": [3], "c": [1]})
    benchmark = read_beir("same", folder)
    kept = evaluate(encode_query, encode_corpus, benchmark)
    dropped = evaluate(encode_query, encode_corpus, benchmark, ignore_identical_ids=True)
    assert kept.rankings["a"].document_ids == ("b", "a", "c")
    assert kept.scores["mrr@10"] == {"a": 1 / 3}
    assert dropped.rankings["a"].document_ids == ("b", "c")
    assert dropped.rankings["a"].scores.tolist() == [3.0, 1.0]
    assert dropped.scores["mrr@10"] == {"a": 1 / 2}


def test_dropping_the_identical_id_still_fills_k_places() -> None:
    benchmark = random_benchmark()
    renamed = Benchmark(
        benchmark.name,
        benchmark.document_ids,
        benchmark.document_texts,
        benchmark.document_ids[:12],
        benchmark.document_texts[:12],
        {d: {"d0": 1} for d in benchmark.document_ids[:12]},
        benchmark.oddities,
    )
    evaluation = evaluate(count_encoder(3), count_encoder(3), renamed, k=100, ignore_identical_ids=True)
    for query_id, ranking in evaluation.rankings.items():
        assert len(ranking.document_ids) == len(ranking.scores) == 100
        assert query_id not in ranking.document_ids


def test_query_whose_only_document_is_itself_counts_as_without_results(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "self", [{"_id": "a", "text": "a"}], [{"_id": "a", "text": "a"}], "a\ta\t1\n")
    encode = table_encoder({"a": [1, 0]})
    evaluation = evaluate(encode, encode, read_beir("self", folder), ignore_identical_ids=True)
    assert evaluation.no_results == 1
    assert evaluation.means == {"ndcg@10": 0.0, "recall@100": 0.0, "mrr@10": 0.0}


def test_fewer_than_one_hundred_documents_per_query_are_refused(tmp_path: Path) -> None:
    benchmark = read_beir("bees", write_folder(tmp_path / "bees"))
    with pytest.raises(ConfigError, match="100 best"):
        evaluate(count_encoder(3), count_encoder(3), benchmark, k=99)


def test_encoder_that_loses_a_text_is_refused(tmp_path: Path) -> None:
    benchmark = read_beir("bees", write_folder(tmp_path / "bees"))
    encode = count_encoder(3)
    with pytest.raises(DataError, match="one vector per query"):
        evaluate(lambda texts: encode(texts)[1:], encode, benchmark)
    with pytest.raises(DataError, match="2 ids, 1 vectors"):
        evaluate(encode, lambda texts: encode(texts)[1:], benchmark)


def test_run_file_gives_the_same_ranking_to_every_reader(tmp_path: Path) -> None:
    benchmark = random_benchmark()
    evaluation = evaluate(count_encoder(3), count_encoder(3), benchmark)
    assert any(len(set(ranking.scores)) < 20 for ranking in evaluation.rankings.values())
    write_evaluation(evaluation, tmp_path)
    run: dict[str, dict[str, float]] = {}
    for query_id, document, score in ir_measures.read_trec_run(str(tmp_path / "run.trec.gz")):
        run.setdefault(query_id, {})[document] = float(np.float32(score))
    for query_id, ranking in evaluation.rankings.items():
        read = run[query_id]
        assert len(set(read.values())) == len(read) == 150
        assert sorted(read, key=lambda document: -read[document]) == list(ranking.document_ids)
        assert np.allclose(list(read.values()), ranking.scores, rtol=1e-4, atol=1e-30)
    names = {nDCG @ 10: "ndcg@10", R @ 100: "recall@100", RR @ 10: "mrr@10"}
    for result in ir_measures.iter_calc(names, dict(benchmark.qrels), run):
        assert evaluation.scores[names[result.measure]][result.query_id] == result.value


def test_run_file_has_six_columns_and_ranks_from_one(tmp_path: Path) -> None:
    benchmark = read_beir("bees", write_folder(tmp_path / "bees"))
    encode = table_encoder({"who dances": [1], "who sleeps": [3], "Bees dance": [0.1], "sleep": [0.1]})
    write_evaluation(evaluate(encode, encode, benchmark), tmp_path / "out")
    lines = gzip.decompress((tmp_path / "out" / "run.trec.gz").read_bytes()).decode().splitlines()
    assert lines[0] == "q1 Q0 d1 1 0.100000001 tdro"
    assert lines[1] == "q1 Q0 d2 2 0.099999994 tdro"  # tied with d1, so one float32 lower
    assert len(lines) == 4


def test_scores_and_summary_hold_the_evaluation(tmp_path: Path) -> None:
    evaluation = evaluate(count_encoder(3), count_encoder(3), random_benchmark())
    write_evaluation(evaluation, tmp_path / "new" / "folder")
    table = pq.read_table(tmp_path / "new" / "folder" / "scores.parquet")
    assert table.column_names == ["query_id", "ndcg@10", "recall@100", "mrr@10"]
    assert table["query_id"].to_pylist() == list(evaluation.rankings)
    assert table["ndcg@10"].to_pylist() == list(evaluation.scores["ndcg@10"].values())
    summary = json.loads((tmp_path / "new" / "folder" / "summary.json").read_text())
    assert summary["measures"] == evaluation.means
    assert (summary["queries"], summary["documents"], summary["no_results"]) == (12, 150, 0)


def test_writing_twice_gives_the_same_bytes_and_no_other_files(tmp_path: Path) -> None:
    evaluation = evaluate(count_encoder(3), count_encoder(3), random_benchmark())
    contents = []
    for _ in range(2):
        write_evaluation(evaluation, tmp_path)
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == ["run.trec.gz", "scores.parquet", "summary.json"]


def test_shared_evaluation_sets_are_read_without_oddities() -> None:
    folder = Path(os.environ.get("TDRO_SHARED", "../shared")) / "data" / "eval"
    if not folder.is_dir():
        pytest.skip("no shared data")
    benchmark = read_beir("scifact", folder / "scifact")
    assert (len(benchmark.query_ids), len(benchmark.document_ids)) == (300, 5183)
    assert benchmark.oddities == Oddities(0, 0, 0, 0)
