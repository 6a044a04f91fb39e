"""MIRACL in the layout of its files, in both variants; MKQA as a task."""

import gzip
import json
from pathlib import Path

import pytest
from evaluation_sets import DOCUMENTS, QUERIES, Listed, write_beir, write_lines
from test_results import write

from tdro.config import TaskConfig
from tdro.errors import ConfigError, DataError
from tdro.evaluation.benchmarks import Task
from tdro.evaluation.results import find_results, read_result
from tdro.evaluation.tasks import find_task, find_tasks


def write_miracl(folder: Path, language: str, *, corpus: Path | None = None, separator: str = "\t") -> None:
    """Write a language of the full variant: two documents in two files, numbered 9 and 10."""
    place = folder / f"miracl-v1.0-{language}"
    for kind in ("topics", "qrels"):
        (place / kind).mkdir(parents=True)
    topics = "".join(f"{query['_id']}\t{query['text']} {language}\n" for query in QUERIES)
    (place / "topics" / f"topics.miracl-v1.0-{language}-dev.tsv").write_text(topics, encoding="utf-8")
    lines = ["q1 Q0 1#0 1", "q1 Q0 2#0 0", "q2 Q0 2#0 1", "q9 Q0 1#0 1"]
    qrels = "".join(line.replace(" ", separator) + "\n" for line in lines)
    (place / "qrels" / f"qrels.miracl-v1.0-{language}-dev.tsv").write_text(qrels)
    documents = (corpus or folder) / f"miracl-corpus-v1.0-{language}"
    documents.mkdir(parents=True)
    for number, name in ((9, "1#0"), (10, "2#0")):
        record = {"docid": name, "title": f"Title {language}", "text": f"text {name}"}
        (documents / f"docs-{number}.jsonl.gz").write_bytes(gzip.compress(json.dumps(record).encode() + b"\n"))


def find(folder: Path, **options: object) -> Task:
    """Find a task under the folder's name."""
    return find_task(folder.name, TaskConfig(path=str(folder), **options))


@pytest.mark.parametrize("separator", ["\t", " "])
def test_full_variant_is_read_in_the_layout_of_its_files(tmp_path: Path, separator: str) -> None:
    for language in ("sw", "ar"):
        write_miracl(tmp_path / "miracl", language, separator=separator)
    task = find(tmp_path / "miracl")
    assert [part.label for part in task.parts] == ["miracl/ar", "miracl/sw"]
    benchmark = task.parts[1].read(tmp_path / "cache", None)
    assert benchmark.documents[:] == ["Title sw text 1#0", "Title sw text 2#0"]
    assert (benchmark.query_ids, benchmark.query_texts) == (("q1", "q2"), ("who dances sw", "who sleeps sw"))
    assert benchmark.qrels == {"q1": {"1#0": 1, "2#0": 0}, "q2": {"2#0": 1}}
    assert list(benchmark.oddities) == ["missing_queries"]
    assert task.parts[0].settings == {
        "kind": "miracl", "split": "dev", "ignore_identical_ids": False, "variant": "full", "language": "ar"
    }  # fmt: skip


def test_languages_and_a_corpus_elsewhere_can_be_chosen(tmp_path: Path) -> None:
    for language in ("sw", "ar", "te"):
        write_miracl(tmp_path / "miracl", language, corpus=tmp_path / "wiki")
    options = {"corpus": str(tmp_path / "wiki")}
    assert [part.name for part in find(tmp_path / "miracl", **options).parts] == ["ar", "sw", "te"]
    assert [part.name for part in find(tmp_path / "miracl", languages=("te", "ar"), **options).parts] == ["ar", "te"]
    with pytest.raises(ConfigError, match=r"(?s)language is not there.*yo.*ar, sw, te"):
        find(tmp_path / "miracl", languages=("yo",), **options)
    with pytest.raises(DataError, match=r"(?s)without documents.*miracl-corpus-v1\.0-ar"):
        find(tmp_path / "miracl")


def test_missing_topics_are_named(tmp_path: Path) -> None:
    write_miracl(tmp_path / "miracl", "sw")
    with pytest.raises(DataError, match=r"(?s)without its file.*topics\.miracl-v1\.0-sw-testA\.tsv"):
        find(tmp_path / "miracl", split="testA")


@pytest.mark.parametrize(
    ("topics", "message"),
    [("q1 no tab\n", "without a tab.*dev.tsv:1"), ("q1\ta\nq1\tb\n", "twice.*dev.tsv:2:id"), ("\n", "file is empty")],
)
def test_faulty_topics_are_refused(tmp_path: Path, topics: str, message: str) -> None:
    write_miracl(tmp_path / "miracl", "sw")
    (tmp_path / "miracl/miracl-v1.0-sw/topics/topics.miracl-v1.0-sw-dev.tsv").write_text(topics)
    with pytest.raises(DataError, match=f"(?s){message}"):
        find(tmp_path / "miracl").parts[0].read(tmp_path / "cache", None)


def test_hard_negatives_are_a_variant_of_their_own(tmp_path: Path) -> None:
    for language in ("sw", "yo"):
        write_beir(tmp_path / "pool" / language, split="dev")
    task = find(tmp_path / "pool")
    assert [(part.label, part.settings["variant"], part.settings["split"]) for part in task.parts] == [
        ("pool/sw", "hard-negatives", "dev"), ("pool/yo", "hard-negatives", "dev")
    ]  # fmt: skip
    assert task.parts[0].read(tmp_path / "cache", None).qrels == {"q1": {"d1": 2}, "q2": {"d2": 1}}
    assert [found.name for found in find_tasks(tmp_path, TaskConfig(path=""))] == ["pool"]
    with pytest.raises(ConfigError, match="corpus of MIRACL is not read"):
        find(tmp_path / "pool", corpus=str(tmp_path))
    write_miracl(tmp_path / "pool", "te")
    with pytest.raises(DataError, match="both variants"):
        find(tmp_path / "pool")


def test_score_is_the_mean_over_languages_and_mteb_gets_every_language(tmp_path: Path) -> None:
    for language in ("sw", "ar"):
        write_miracl(tmp_path / "miracl", language)
    write(find(tmp_path / "miracl"), Listed({"who dances sw": ["1#0"], "who sleeps sw": ["2#0"]}), tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "miracl" / "summary.json").read_text())
    assert summary["measures"] == {"ndcg@10": 0.5, "recall@100": 0.5, "mrr@10": 0.5}
    assert summary["parts"]["sw"]["ndcg@10"] == 1.0 and summary["variant"] == "full"
    mteb = json.loads((tmp_path / "out" / "miracl" / "mteb.json").read_text())
    assert mteb["task_name"] == "MIRACLRetrieval"
    assert [(s["hf_subset"], s["languages"], s["main_score"]) for s in mteb["scores"]["dev"]] == [
        ("ar", ["ara-Arab"], 0.0), ("sw", ["swa-Latn"], 1.0)
    ]  # fmt: skip
    assert list(find_results(tmp_path / "out")) == ["miracl/ar", "miracl/sw"]


def test_mkqa_is_a_task_whose_languages_share_one_corpus(tmp_path: Path) -> None:
    answers = {"en": [{"type": "entity", "text": "dance", "aliases": []}]}
    questions = [
        {"example_id": 1, "queries": {"en": "who", "de": "wer", "fr": "qui"}, "answers": answers},
        {"example_id": 2, "queries": {"en": "a", "de": "b", "fr": "c"}, "answers": {"en": [{"type": "unanswerable"}]}},
    ]
    write_lines(tmp_path / "mkqa" / "mkqa.jsonl", questions)
    with pytest.raises(ConfigError, match="needs documents"):
        find(tmp_path / "mkqa")
    write_lines(tmp_path / "wiki" / "corpus.jsonl", DOCUMENTS)
    write_lines(tmp_path / "wiki" / "queries.jsonl", QUERIES)
    task = find(tmp_path / "mkqa", corpus=str(tmp_path / "wiki"))
    assert ([part.label for part in task.parts], task.main) == (["mkqa/de", "mkqa/fr"], "acc@10")
    write(task, Listed({"wer": ["d2", "d1"]}), tmp_path / "out")
    result = read_result(tmp_path / "out" / "mkqa" / "de")
    assert (result.main, result.scores["acc@1"].tolist(), result.scores["acc@3"].tolist()) == ("acc@10", [0.0], [1.0])
    top = result.top().to_pylist()
    assert [(row["rank"], row["document_id"], row["relevance"]) for row in top] == [(1, "d2", 0), (2, "d1", 1)]
    summary = json.loads((tmp_path / "out" / "mkqa" / "summary.json").read_text())
    assert (summary["main"], summary["measures"]["acc@10"]) == ("acc@10", 0.5)
    assert summary["oddities"]["dropped: unanswerable"] == {"count": 1, "first": []}
    with pytest.raises(ConfigError, match="no splits"):
        find(tmp_path / "mkqa", corpus=str(tmp_path / "wiki"), split="dev")


def test_content_of_a_language_changes_with_its_own_files_only(tmp_path: Path) -> None:
    for language in ("sw", "ar"):
        write_miracl(tmp_path / "miracl", language)

    def contents() -> dict[str, str]:
        return {part.name: part.content(tmp_path / "cache") for part in find(tmp_path / "miracl").parts}

    before = contents()
    with (tmp_path / "miracl/miracl-v1.0-sw/qrels/qrels.miracl-v1.0-sw-dev.tsv").open("a") as file:
        file.write("q2 Q0 1#0 1\n")
    after = contents()
    assert before["ar"] == after["ar"] and before["sw"] != after["sw"]
