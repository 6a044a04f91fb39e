"""Tasks of mteb become folders that are evaluated as mteb evaluates the tasks."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from studies import sentence
from tiny_models import make_tiny_model

from tdro.cli.main import main
from tdro.config import EvaluationConfig, TaskConfig
from tdro.devices import pick_device
from tdro.errors import ConfigError, DataError, EnvironmentProblem
from tdro.evaluation.beir import read_beir
from tdro.evaluation.evaluate import evaluate
from tdro.evaluation.tasks import find_task, find_tasks
from tdro.integrations.mteb import SearchModel
from tdro.integrations.mteb_tasks import fetch_folders, find_folders
from tdro.retrieval.encoders import open_encoder
from tdro.retrieval.rankers import DenseRanker

mteb = pytest.importorskip("mteb", reason="needs the extra mteb")
from datasets import Dataset  # noqa: E402
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402

Data = dict[str, Any]


def data(start: int = 0, **columns: list[Any]) -> Data:
    """One subset and split: titles for some, grades 0 to 2, a query that is a document, one that nobody judged."""
    numbers = range(start, start + 60)
    corpus = {
        "id": [f"d{i}" for i in numbers],
        "title": [f'bee "{i}"\u2028' if i % 3 == 0 else None for i in numbers],
        "text": [sentence(i, i) + ("\nđá" if i % 7 == 0 else "") for i in numbers],
    }
    queries = {"id": [f"d{start + 5}", "q1", "q2", "q3"], "text": [sentence(start + i, 3 * i) for i in (5, 6, 7, 8)]}
    grades = {q: {f"d{start + (7 * j + i) % 60}": (i + j) % 3 for j in range(25)} for i, q in enumerate(queries["id"])}
    del grades["q3"]
    return {
        "corpus": Dataset.from_dict({**corpus, **columns}),
        "queries": Dataset.from_dict(queries),
        "relevant_docs": {**grades, "unknown": {"d1": 1}},
        "top_ranked": None,
    }


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Make a task known to mteb; what it returns is filled with the subsets that are loaded."""

    def add(name: str, subsets: dict[str, dict[str, Any]], kind: str = "Retrieval", **more: Any) -> list[list[str]]:
        asked: list[list[str]] = []
        several = list(subsets) != ["default"]
        splits = list(next(iter(subsets.values())))

        class Task(AbsTaskRetrieval):
            """Has its data already."""

            metadata = TaskMetadata(
                name=name,
                description="words",
                type=kind,
                category="t2t",
                modalities=["text"],
                dataset={"path": "local/words", "revision": "1"},
                eval_splits=splits,
                eval_langs={each: ["eng-Latn"] for each in subsets} if several else ["eng-Latn"],
                main_score="ndcg_at_10",
            )
            ignore_identical_ids = more.get("ignore_identical_ids", False)

            def load_data(self, *_: Any, **__: Any) -> None:
                asked.append(list(self.hf_subsets))
                loaded = {each: subsets[each] for each in self.hf_subsets}
                self.dataset = {e: {split: make() for split, make in of.items()} for e, of in loaded.items()}
                self.data_loaded = True

        monkeypatch.setitem(sys.modules["mteb.get_tasks"]._TASKS_REGISTRY, name, Task)
        return asked

    return add


def fetch(name: str, to: Path) -> None:
    """Fetch a task."""
    fetch_folders(find_folders(name, to), to)


def test_the_folder_is_evaluated_as_mteb_evaluates_the_task(
    add: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add("WordsRetrieval", {"default": {"dev": data}}, ignore_identical_ids=True)
    model = str(make_tiny_model("bert", tmp_path / "bert"))
    theirs = mteb.evaluate(SearchModel(model), mteb.get_task("WordsRetrieval"), cache=None, show_progress_bar=False)
    expected = theirs.task_results[0].scores["dev"][0]

    assert main(["fetch", "mteb/WordsRetrieval", "--to", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    options = EvaluationConfig.model_validate(section(said)).tasks["WordsRetrieval"]
    assert (options.split, options.ignore_identical_ids) == ("dev", True)
    part = find_task("WordsRetrieval", options).parts[0]
    sides = open_encoder(model, device=pick_device())
    found = evaluate(DenseRanker(*sides, "m"), part.read(tmp_path / "c", None), scratch=tmp_path / "s")
    assert found.benchmark.query_ids == ("d5", "q1", "q2")
    for measure in ("ndcg@10", "recall@100"):
        assert round(found.means[measure], 5) == expected[measure.replace("@", "_at_")]
    assert 0.05 < found.means["ndcg@10"] < 0.95
    with_itself = evaluate(
        DenseRanker(*sides, "m"),
        read_beir("w", tmp_path / "WordsRetrieval", tmp_path / "c", "dev"),
        scratch=tmp_path / "s",
    )
    assert with_itself.means != found.means


def section(said: str) -> dict[str, Any]:
    """The lines for a study."""
    return dict(yaml.safe_load(said[said.index("evaluation:") :])["evaluation"])


def test_rows_keep_titles_ids_grades_and_instructions(add: Callable[..., Any], tmp_path: Path) -> None:
    def numbered() -> Data:
        return {
            "corpus": Dataset.from_dict({"id": [1, 2], "text": ["sun\u2028", "mo\non"], "title": [None, "Mond"]}),
            "queries": Dataset.from_dict({"id": [7, 8], "text": ["a", "b"], "instruction": ["not c", None]}),
            "relevant_docs": {"7": {"1": 2, "2": 0}, "8": {}},
            "top_ranked": None,
        }

    add("Numbered", {"default": {"test": numbered}}, "InstructionRetrieval")
    fetch("mteb/Numbered", tmp_path)
    place = tmp_path / "Numbered"
    rows = {f: [json.loads(line) for line in (place / f).read_bytes().splitlines()] for f in
            ("corpus.jsonl", "queries.jsonl")}  # fmt: skip
    assert rows["corpus.jsonl"] == [
        {"_id": "1", "title": "", "text": "sun\u2028"},
        {"_id": "2", "title": "Mond", "text": "mo\non"},
    ]
    assert rows["queries.jsonl"] == [{"_id": "7", "text": "a not c"}, {"_id": "8", "text": "b"}]
    assert (place / "qrels" / "test.tsv").read_text() == "query-id\tcorpus-id\tscore\n7\t1\t2\n7\t2\t0\n"


def test_miracl_with_hard_negatives_is_one_task_and_its_languages_come_one_by_one(
    add: Callable[..., Any], tmp_path: Path
) -> None:
    name = "MIRACLRetrievalHardNegatives"
    asked = add(name, {language: {"dev": data} for language in ("sw", "yo", "te")})
    fetch(f"mteb/{name}#yo", tmp_path)
    assert [path.name for path in (tmp_path / name).iterdir()] == ["yo"]
    fetch(f"mteb/{name}", tmp_path)
    fetch(f"mteb/{name}", tmp_path)
    assert asked == [["yo"], ["sw", "te"]]
    (task,) = find_tasks(tmp_path / name, TaskConfig(path=""))
    assert [part.label for part in task.parts] == [f"{name}/{language}" for language in ("sw", "te", "yo")]
    assert {part.settings["variant"] for part in task.parts} == {"hard-negatives"}


def test_other_subsets_and_splits_are_tasks_of_their_own(
    add: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add("Langs", {language: {"test": data, "dev": lambda: data(100)} for language in ("de", "c++")})
    assert main(["fetch", "mteb/Langs", "--to", str(tmp_path)]) == 0
    tasks = EvaluationConfig.model_validate(section(capsys.readouterr().out)).tasks
    assert list(tasks) == ["Langs-de-test", "Langs-de-dev", "Langs-c---test", "Langs-c---dev"]
    for name, options in tasks.items():
        benchmark = find_task(name, options).parts[0].read(tmp_path / "cache", None)
        assert benchmark.documents.ids_at(np.array([0])) == (["d0"] if name.endswith("test") else ["d100"])


def bad(**changes: Any) -> Callable[[], Data]:
    """Data with something wrong."""
    return lambda: {**data(), **changes}


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: data(text=[["a", "b"]] * 60), "corpus row 0: text"),
        (lambda: data(id=[f"d {i}" for i in range(60)]), r"(?s)white space.*corpus row 0: id"),
        (bad(queries=Dataset.from_dict({"id": ["1"], "text": [None]})), "query row 0: text"),
        (bad(relevant_docs={"q1": {"d1": 0.5}}), r"(?s)whole number.*q1, d1"),
        (bad(top_ranked={"q1": ["d1"]}), "gives each query the documents"),
    ],
)
def test_what_a_folder_cannot_hold_is_refused_and_leaves_nothing(
    add: Callable[..., Any], make: Callable[[], Data], complaint: str, tmp_path: Path
) -> None:
    add("Odd", {"default": {"test": make}})
    with pytest.raises(DataError, match=complaint):
        fetch("mteb/Odd", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("mteb/NFCorpsu", r"(?s)no such task.*closest: .*NFCorpus"),
        ("mteb/scifact", r"closest: .*SciFact"),
        ("mteb/Banking77Classification", r"(?s)not retrieval of texts.*Classification"),
        ("mteb/MIRACLReranking", "not retrieval of texts"),
        ("mteb/CQADupstackRetrieval", r"(?s)not retrieval.*CQADupstackAndroidRetrieval"),
        ("mteb/MIRACLRetrieval#sw", "fetch miracl/sw"),
        ("mteb/XMarket#fr", r"(?s)no such subset.*its subsets: de, en, es"),
    ],
)
def test_names_that_cannot_be_fetched(name: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=complaint):
        find_folders(name, tmp_path)


def test_a_task_that_cannot_be_loaded_is_one_error_with_its_cause(add: Callable[..., Any], tmp_path: Path) -> None:
    def fail() -> Data:
        raise ConnectionError("no route to the hub")

    add("Far", {"default": {"test": fail}})
    with pytest.raises(EnvironmentProblem, match=r"(?s)mteb/Far.*ConnectionError: no route.*HF_TOKEN"):
        fetch("mteb/Far", tmp_path)
    assert not (tmp_path / "Far").exists()


def test_a_missing_mteb_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(EnvironmentProblem, match=r"(?s)mteb is not installed.*tdro\[mteb\]"):
        find_folders("mteb/SciFact", tmp_path)
