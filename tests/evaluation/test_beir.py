"""BEIR folders in their variants and with their faults, and what the benchmark says about some of its sets."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from evaluation_sets import QRELS, QUERIES, write_beir

from tdro.config import TaskConfig
from tdro.errors import ConfigError, DataError
from tdro.evaluation.beir import FORUMS
from tdro.evaluation.benchmarks import Benchmark, Oddity, Task
from tdro.evaluation.tasks import find_task, find_tasks


def find(folder: Path, **options: object) -> Task:
    """Find the task in a folder, under the folder's name."""
    return find_task(folder.name, TaskConfig(path=str(folder), **options))


def read(folder: Path, **options: object) -> Benchmark:
    """Read the only part of a task."""
    (part,) = find(folder, **options).parts
    return part.read(folder.parent / "cache", None)


def contents(benchmark: Benchmark) -> tuple[object, ...]:
    """Everything that was read."""
    documents = benchmark.documents
    ids = documents.ids_at(np.arange(len(documents)))
    return (ids, documents[:], benchmark.query_ids, benchmark.query_texts, benchmark.qrels, benchmark.oddities)


def test_reads_what_was_written(tmp_path: Path) -> None:
    benchmark = read(write_beir(tmp_path / "bees"))
    texts = ["Bees dance", "sleep"], ("q1", "q2"), ("who dances", "who sleeps")
    assert contents(benchmark) == (["d1", "d2"], *texts, {"q1": {"d1": 2}, "q2": {"d2": 1}}, {})
    assert (benchmark.name, benchmark.main, benchmark.ignore_identical_ids) == ("bees", "ndcg@10", False)


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
    assert read(write_beir(tmp_path / "bees", qrels=qrels)).qrels == {"q1": {"d1": 2}, "q2": {"d2": 1}}


def test_every_form_of_jsonl_reads_alike(tmp_path: Path) -> None:
    expected = contents(read(write_beir(tmp_path / "a")))
    variants: list[list[object]] = [
        [{"id": "d1", "title": "Bees", "text": "dance", "metadata": {}}, {"id": "d2", "title": None, "text": "sleep"}],
        [{"_id": "d1", "title": "Bees", "text": "dance"}, {"_id": "d2", "title": "", "text": "sleep"}],
    ]
    for number, documents in enumerate(variants):
        folder = write_beir(tmp_path / str(number), documents)
        assert contents(read(folder)) == expected
        content = (folder / "corpus.jsonl").read_bytes()
        (folder / "corpus.jsonl").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
        assert contents(read(folder)) == expected
        (folder / "corpus.jsonl").unlink()
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(content))
        assert contents(read(folder)) == expected


def test_integer_ids_are_read_as_strings(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "n", [{"_id": 7, "text": "a"}], [{"_id": 8, "text": "b"}], "8\t7\t1\n")
    assert contents(read(folder))[:4] == (["7"], ["a"], ("8",), ("b",))


def test_other_split_is_read_from_its_own_file(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "bees")
    (folder / "qrels" / "dev.tsv").write_text("q2\td2\t1\n")
    assert read(folder, split="dev").query_ids == ("q2",)


def test_what_does_not_fit_together_is_counted_and_its_first_cases_are_named(tmp_path: Path) -> None:
    queries = [*QUERIES, {"_id": "q3", "text": "not judged"}, {"_id": "q4", "text": "judged 0 only"}]
    queries.append({"_id": "q6", "text": " "})
    gone = "".join(f"q1\tgone{i}\t1\n" for i in range(7))
    folder = write_beir(tmp_path / "odd", queries=queries, qrels=QRELS + "q4\td1\t0\nq5\td1\t1\nq6\td1\t1\n" + gone)
    benchmark = read(folder)
    assert benchmark.query_ids == ("q1", "q2", "q4", "q6")
    assert len(benchmark.qrels["q1"]) == 8
    assert benchmark.oddities == {
        "unknown_documents": Oddity(7, ("gone0", "gone1", "gone2", "gone3", "gone4")),
        "unjudged_queries": Oddity(1, ("q3",)),
        "missing_queries": Oddity(1, ("q5",)),
        "queries_without_relevant": Oddity(1, ("q4",)),
        "empty_queries": Oddity(1, ("q6",)),
    }


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n{"_id": ', "corpus.jsonl:2"),
        ("corpus.jsonl", '{"_id": "d1"}\n', "without text.*corpus.jsonl:1:text"),
        ("corpus.jsonl", '{"_id": "a b", "text": "a"}\n', "white space.*corpus.jsonl:1:_id"),
        ("corpus.jsonl", '{"_id": 1, "text": "a"}\n{"_id": "1", "text": "b"}\n', "twice.*corpus.jsonl:2:_id"),
        ("corpus.jsonl", "", "corpus.jsonl"),
        ("queries.jsonl", "[1]\n", "not a JSON object.*queries.jsonl:1"),
        ("queries.jsonl", '{"text": "a"}\n', "id is missing.*queries.jsonl:1:id"),
        ("queries.jsonl", '{"_id": true, "text": "a"}\n', "id is missing.*queries.jsonl:1:_id"),
        ("queries.jsonl", '{"_id": "", "text": "a"}\n', "id is empty.*queries.jsonl:1:_id"),
        ("queries.jsonl", '{"_id": 1, "text": "a"}\n{"_id": "1", "text": "b"}\n', "twice.*queries.jsonl:2:_id"),
        ("queries.jsonl", '{"_id": "q1"}\n', "text is missing.*queries.jsonl:1:text"),
        ("queries.jsonl", '{"_id": "q1", "title": 3, "text": ""}\n', "title is missing.*queries.jsonl:1:title"),
        ("queries.jsonl", '{"_id": "q9", "text": "a"}\n', "no judged query has a text.*test.tsv"),
        ("queries.jsonl", b'{"_id": "q1", "text": "\xff"}\n', "UTF-8.*queries.jsonl:1"),
        ("queries.jsonl", "", "file is empty.*queries.jsonl"),
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
    folder = write_beir(tmp_path / "bad")
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"(?s){message}"):
        read(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("corpus.jsonl", "without corpus"),
        ("queries.jsonl", "without queries"),
        ("qrels/test.tsv", "evaluation set without qrels"),
    ],
)
def test_missing_file_is_named(tmp_path: Path, file: str, message: str) -> None:
    folder = write_beir(tmp_path / "bad")
    (folder / file).unlink()
    with pytest.raises(DataError, match=f"(?s){message}.*{file}"):
        find(folder)


def test_check_looks_at_qrels_and_leaves_texts_unread(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "bees")
    (folder / "corpus.jsonl").write_text("not read")
    (part,) = find(folder).parts
    part.check()
    (folder / "qrels" / "test.tsv").write_text("q1\td1\tgood\n")
    with pytest.raises(DataError, match=r"test\.tsv:1:score"):
        part.check()


def test_missing_folder_and_folder_without_a_task_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)evaluation set not found.*nowhere"):
        find(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"(?s)no evaluation set.*nothing"):
        find(tmp_path)


def test_folder_of_tasks_is_all_of_them_on_the_command_line_and_refused_as_one(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_beir(tmp_path / name)
    (tmp_path / "notes").mkdir()
    assert [task.name for task in find_tasks(tmp_path, TaskConfig(path=""))] == ["a", "b"]
    assert [task.name for task in find_tasks(tmp_path / "b", TaskConfig(path=""))] == ["b"]
    with pytest.raises(DataError, match=r"(?s)several tasks.*a, b"):
        find(tmp_path)


def test_options_that_a_beir_folder_does_not_read_are_refused(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "bees")
    for options in ({"languages": ("de",)}, {"corpus": "elsewhere"}):
        with pytest.raises(ConfigError, match="does not go with"):
            find(folder, **options)


def test_msmarco_is_judged_on_dev_and_others_on_test(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "msmarco")
    (folder / "qrels" / "dev.tsv").write_text("q2\td2\t1\n")
    assert read(folder).query_ids == ("q2",)
    assert read(folder, split="test").query_ids == ("q1", "q2")
    assert find(folder).parts[0].settings["split"] == "dev"


def test_identical_ids_are_ignored_where_the_benchmark_says_so_and_where_asked(tmp_path: Path) -> None:
    ignored = {name: read(write_beir(tmp_path / name)).ignore_identical_ids for name in ("arguana", "quora", "fiqa")}
    assert ignored == {"arguana": True, "quora": True, "fiqa": False}
    assert not read(tmp_path / "arguana", ignore_identical_ids=False).ignore_identical_ids
    assert read(tmp_path / "fiqa", ignore_identical_ids=True).ignore_identical_ids
    write_beir(tmp_path / "quora-indomain")
    assert not read(tmp_path / "quora-indomain").ignore_identical_ids


def test_cqadupstack_has_a_part_for_each_forum_and_says_which_are_missing(tmp_path: Path) -> None:
    for forum in FORUMS:
        write_beir(tmp_path / "cqadupstack" / forum)
    task = find(tmp_path / "cqadupstack")
    assert [part.label for part in task.parts] == [f"cqadupstack/{forum}" for forum in FORUMS]
    assert (len(task.parts), task.oddities) == (12, {})
    for forum in ("tex", "unix"):
        (tmp_path / "cqadupstack" / forum / "queries.jsonl").unlink()
        (tmp_path / "cqadupstack" / forum / "corpus.jsonl").unlink()
    assert find(tmp_path / "cqadupstack").oddities == {"missing_parts": Oddity(2, ("tex", "unix"))}
    write_beir(tmp_path / "scifact")
    assert [task.name for task in find_tasks(tmp_path, TaskConfig(path=""))] == ["cqadupstack", "scifact"]


def test_content_tells_every_change_of_files_and_settings(tmp_path: Path) -> None:
    folder, cache = write_beir(tmp_path / "bees"), tmp_path / "cache"

    def content(**options: object) -> str:
        return find(folder, **options).parts[0].content(cache)

    same = content()
    assert same == content() != content(ignore_identical_ids=True)
    moved = write_beir(tmp_path / "elsewhere" / "bees")
    assert find(moved).parts[0].content(cache) == same
    for file, line in (("corpus.jsonl", '{"_id": "d3", "text": ""}\n'), ("qrels/test.tsv", "q2\td1\t0\n")):
        with (folder / file).open("a") as stream:
            stream.write(line)
        assert content() != same
        same = content()


def test_shared_evaluation_sets_are_found_and_read_without_oddities(tmp_path: Path) -> None:
    folder = Path(os.environ.get("TDRO_SHARED", "../shared")) / "data" / "eval"
    if not folder.is_dir():
        pytest.skip("no shared data")
    tasks = {task.name: task for task in find_tasks(folder, TaskConfig(path=""))}
    assert len(tasks) == 11
    benchmark = tasks["scifact"].parts[0].read(tmp_path, None)
    assert (len(benchmark.query_ids), len(benchmark.documents), benchmark.oddities) == (300, 5183, {})
