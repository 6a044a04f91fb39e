"""mteb, given our search, reports the scores that we report: with titles, grades, ties and instructions."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import sentence
from tiny_models import make_tiny_model

from tdro.devices import pick_device
from tdro.errors import ConfigError, DataError, EnvironmentProblem
from tdro.evaluation.beir import read_beir
from tdro.evaluation.evaluate import Evaluation, evaluate
from tdro.integrations import mteb as bridge
from tdro.integrations.mteb import SearchModel
from tdro.retrieval.encoders import encoder_fingerprint, open_encoder
from tdro.retrieval.rankers import DenseRanker

mteb = pytest.importorskip("mteb", reason="needs the extra mteb")
from datasets import Dataset  # noqa: E402
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402

PROMPT = "Find the passage about the same words"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder."""
    return str(make_tiny_model("bert", tmp_path_factory.mktemp("mteb") / "bert"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder: titles for some, each fourth text three times, grades 0 to 2, an unknown relevant document."""
    root = tmp_path_factory.mktemp("beir")
    documents = [
        {
            "_id": f"d{(i * 37) % 150}",
            "title": f"bee {i}" if i % 3 == 0 else "",
            "text": sentence(i // 3 if i % 4 else 0, i),
        }
        for i in range(150)
    ]
    documents += [{**row, "_id": f"{side}{row['_id']}"} for row in documents[::4] for side in "ae"]
    queries = [{"_id": f"q{i}", "text": sentence(i, 3 * i)} for i in range(12)]
    qrels = [
        (f"q{i}", documents[(i * 11 + 7 * j) % len(documents)]["_id"], (i + j) % 3)
        for i in range(12)
        for j in range(60)
    ]
    write(root / "corpus.jsonl", documents)
    write(root / "queries.jsonl", queries)
    (root / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, qrel)) for qrel in [*qrels, ("q3", "unknown", 1)])]
    (root / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows(file: Path) -> list[dict[str, Any]]:
    """Read rows, with the id where mteb has it."""
    read = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{"id": row.pop("_id"), **row} for row in read]


@pytest.fixture
def task(folder: Path) -> Any:
    """The folder as a task of mteb."""
    metadata = TaskMetadata(
        name="WordsRetrieval",
        description="words",
        prompt={"query": PROMPT},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        dataset={"path": "local/words", "revision": "1"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        qrels.setdefault(query, {})[document] = int(grade)

    class WordsRetrieval(AbsTaskRetrieval):
        """Reads local files."""

        def load_data(self, *_: Any, **__: Any) -> None:
            """Load what the test wrote."""
            corpus = Dataset.from_list(rows(folder / "corpus.jsonl"))
            queries = Dataset.from_list(rows(folder / "queries.jsonl"))
            found = {"corpus": corpus, "queries": queries, "relevant_docs": qrels, "top_ranked": None}
            self.dataset = {"default": {"test": found}}
            self.data_loaded = True

    WordsRetrieval.metadata = metadata
    return WordsRetrieval()


def ours(
    model: str, folder: Path, tmp_path: Path, instruction: str = "", template: str = "{instruction} {query}"
) -> Evaluation:
    """Our own evaluation."""
    sides = open_encoder(model, device=pick_device(), query_instruction=instruction, instruction_template=template)
    benchmark = read_beir("words", folder, tmp_path / "cache")
    return evaluate(DenseRanker(*sides, "model"), benchmark, scratch=tmp_path / "scratch")


def theirs(search: SearchModel, task: Any, tmp_path: Path) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """The scores and the rankings of mteb."""
    result = mteb.evaluate(search, task, cache=None, prediction_folder=tmp_path, show_progress_bar=False)
    file = tmp_path / "WordsRetrieval_predictions.json"
    rankings = json.loads(file.read_text(encoding="utf-8"))["default"]["test"]
    file.unlink()
    return result.task_results[0].scores["test"][0], rankings


def by_query(rankings: dict[str, dict[str, float]], qrels: Any) -> dict[str, dict[str, float]]:
    """What pytrec_eval, mteb's evaluator, makes of rankings."""
    import pytrec_eval

    measures = {"ndcg_cut.10", "recall.100"}
    scores: dict[str, dict[str, float]] = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(rankings)
    return scores


@pytest.mark.parametrize(
    ("instruction", "template"), [("", "{instruction} {query}"), (PROMPT, "{query} / {instruction}")]
)
def test_mteb_gives_our_scores(
    model: str, folder: Path, task: Any, tmp_path: Path, instruction: str, template: str
) -> None:
    expected = ours(model, folder, tmp_path, instruction, template)
    instructions = {"WordsRetrieval": instruction} if instruction else None
    search = SearchModel(model, instructions=instructions, instruction_template=template)
    scores, rankings = theirs(search, task, tmp_path)
    for measure in ("ndcg@10", "recall@100"):
        assert scores[measure.replace("@", "_at_")] == round(expected.means[measure], 5)  # mteb rounds its means
    assert scores["mrr_at_10"] == pytest.approx(expected.means["mrr@10"], abs=1e-6)
    assert 0.02 < scores["ndcg_at_10"] < 0.98
    single = by_query(rankings, {query: dict(grades) for query, grades in expected.benchmark.qrels.items()})
    for name, measure in (("ndcg_cut_10", "ndcg@10"), ("recall_100", "recall@100")):
        found = [single[query][name] for query in expected.benchmark.query_ids]
        assert found == pytest.approx(expected.scores[measure].tolist(), abs=1e-6)
    documents = expected.benchmark.documents
    for query, index_K, score_K in zip(
        expected.benchmark.query_ids, expected.hits.indices_QK, expected.hits.scores_QK, strict=True
    ):
        assert list(rankings[query]) == documents.ids_at(index_K)
        assert list(rankings[query].values()) == pytest.approx(score_K.tolist(), abs=1e-5)
    assert any((np.diff(score_K) == 0).any() for score_K in expected.hits.scores_QK)  # there were ties


def test_an_instruction_of_the_user_comes_before_that_of_mteb_which_must_be_asked_for(
    model: str, task: Any, tmp_path: Path
) -> None:
    template = "{instruction} {query}"
    told = {"instructions": {"WordsRetrieval": PROMPT}, "instruction_template": template}
    none = theirs(SearchModel(model), task, tmp_path)[1]
    own = theirs(SearchModel(model, **told), task, tmp_path)[1]
    asked = theirs(SearchModel(model, task_prompts=True, instruction_template=template), task, tmp_path)[1]
    both = theirs(
        SearchModel(model, task_prompts=True, instructions={"WordsRetrieval": ""}, instruction_template=template),
        task,
        tmp_path,
    )[1]
    assert own == asked != none == both


def test_a_query_keeps_the_instruction_that_its_task_gives_it(model: str, task: Any) -> None:
    def rank(**columns: list[str | None]) -> dict[str, dict[str, float]]:
        search = SearchModel(model)
        search.index(Dataset.from_dict({"id": ["a", "b"], "text": ["bee hive", "river"]}), task_metadata=task.metadata)
        queries = Dataset.from_dict({"id": ["1", "2"], **columns})
        return search.search(queries, task_metadata=task.metadata, top_k=2)

    own = rank(text=["sun", "moon"], instruction=["not the moon", None])
    assert own == rank(text=["sun not the moon", "moon"]) != rank(text=["sun", "moon"])


def test_reranking_ranks_the_given_documents_only(model: str, task: Any, folder: Path) -> None:
    search = SearchModel(model)
    search.index(Dataset.from_list(rows(folder / "corpus.jsonl")), task_metadata=task.metadata)
    queries = Dataset.from_list(rows(folder / "queries.jsonl")[:3])
    everything = search.search(queries, task_metadata=task.metadata, top_k=1000)
    given = {"q0": ["d5", "d7", "ad0", "d0", "d5"], "q1": ["d9"]}
    found = search.search(queries, task_metadata=task.metadata, top_k=3, top_ranked=given)
    in_order = [name for name in everything["q0"] if name in given["q0"]]
    assert list(found["q0"]) == in_order[:3] and list(found["q1"]) == ["d9"] and found["q2"] == {}
    for name, score in found["q0"].items():
        assert score == pytest.approx(everything["q0"][name], abs=1e-5)
    with pytest.raises(DataError, match="document to rerank is not in the corpus"):
        search.search(queries, task_metadata=task.metadata, top_k=3, top_ranked={"q0": ["nowhere"]})


def test_the_corpus_is_encoded_once_for_mteb_and_tdro(
    model: str, folder: Path, task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    ours(model, folder, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (own_cache / "embeddings").glob("*/shard-*")}
    theirs(SearchModel(model), task, tmp_path)
    theirs(SearchModel(model, instructions={"WordsRetrieval": PROMPT}), task, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (own_cache / "embeddings").glob("*/shard-*")} == before


def test_name_and_revision_are_the_content_and_other_settings_are_another_experiment(
    model: str, tmp_path: Path
) -> None:
    content = encoder_fingerprint(model)
    meta = SearchModel(model).mteb_model_meta
    assert (meta.name, meta.revision, len(content)) == (f"tdro/{content}", content, 16)
    assert SearchModel(model, name="me/words").mteb_model_meta.name == "me/words"
    names = {
        SearchModel(model, **options).mteb_model_meta.experiment_name
        for options in ({}, {"task_prompts": True}, {"instructions": {"A": "b"}}, {"precision": "float16"})
    }
    assert len(names) == 4
    assert SearchModel(model).mteb_model_meta == meta
    with pytest.raises(ConfigError, match="organisation/model"):
        SearchModel(model, name="words")


def test_mteb_keeps_results_apart_by_settings(model: str, task: Any, tmp_path: Path) -> None:
    cache = mteb.ResultCache(cache_path=tmp_path)
    scores = [
        mteb.evaluate(SearchModel(model, **options), task, cache=cache, show_progress_bar=False)
        .task_results[0]
        .get_score()
        for options in ({}, {"task_prompts": True}, {})
    ]
    assert scores[0] == scores[2] != scores[1]


@pytest.mark.parametrize(
    ("use", "complaint"),
    [
        (lambda search, **task: search.index(Dataset.from_dict({"id": ["1"], "image": ["x"]}), **task), "have no text"),
        (lambda search, **task: search.index(Dataset.from_dict({"id": [], "text": []}), **task), "no documents"),
        (
            lambda search, **task: (
                search.index(Dataset.from_dict({"id": ["1"], "text": ["x"]}), **task),
                search.search(Dataset.from_dict({"id": ["1"], "text": [["a", "b"]]}), top_k=1, **task),
            ),
            "query is no text",
        ),
    ],
)
def test_what_is_no_text_is_refused(model: str, task: Any, use: Callable[..., object], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        use(SearchModel(model), task_metadata=task.metadata)


def test_scores_fall_strictly_and_move_by_rounding_only() -> None:
    scores_K = np.array([0.5, 0.5, 0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0.0, 0.0, -1.0], np.float32)
    ranking = bridge._ranking(list("abcdefg"), scores_K)
    found = np.array(list(ranking.values()), np.float32)
    assert list(ranking) == list("abcdefg")
    assert (np.diff(found) < 0).all() and np.abs(found - scores_K).max() < 1e-6
    assert bridge._ranking(["a", "b", "a"], np.array([3, 2, 1], np.float32)) == {"a": 3.0, "b": 2.0}


def test_a_missing_mteb_is_named(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    with pytest.raises(EnvironmentProblem, match=r"(?s)mteb is not installed.*tdro\[mteb\]"):
        SearchModel(model)
