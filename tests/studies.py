"""A complete study small enough for tests: three datasets, one evaluation set, a model made on the fly."""

import json
from pathlib import Path
from typing import Any

from tiny_models import Family, make_tiny_model

from tdro.config import Study

WORDS = [
    "bee",
    "hive",
    "river",
    "sand",
    "bread",
    "yeast",
    "bird",
    "winter",
    "lens",
    "light",
    "clock",
    "tower",
    "iron",
    "rust",
    "sky",
    "sun",
    "moon",
    "tide",
    "wind",
    "seed",
]


def sentence(*numbers: int) -> str:
    """A sentence of words picked by numbers."""
    return " ".join(WORDS[n % len(WORDS)] for n in numbers)


def row(i: int, kind: int, negatives: int) -> dict[str, Any]:
    """One training row; kinds differ in how query and positive are related and in length."""
    query = sentence(i, i * 7 + kind)
    positive = sentence(*(i + j * (kind + 1) for j in range(3 + 4 * kind)))
    passages = [{"docid": f"n{i}-{j}", "text": sentence(i + j + 3, i * j, kind, j)} for j in range(negatives)]
    return {
        "query_id": f"q{i}",
        "query": f"{query} {i}",
        "positive_passages": [{"docid": f"p{i}", "title": "", "text": f"{positive} {i}"}],
        "negative_passages": passages,
    }


def write_study_data(root: Path, *, negatives: int = 6, rows: tuple[int, ...] = (24, 40, 60)) -> None:
    """Write train/{one,two,three}.jsonl and eval/words in BEIR layout."""
    for kind, (name, count) in enumerate(zip(("one", "two", "three"), rows, strict=True)):
        path = root / "train" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row(i, kind, negatives)) + "\n" for i in range(count)), encoding="utf-8")
    folder = root / "eval" / "words"
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = [{"_id": f"d{i}", "title": "", "text": sentence(i, i + 1, i * 3)} for i in range(30)]
    queries = [{"_id": f"q{i}", "text": sentence(i, i * 3)} for i in range(8)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in corpus), encoding="utf-8")
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries), encoding="utf-8")
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(8))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")


def tiny_study(folder: Path, family: Family = "bert", **changes: dict[str, Any]) -> Study:
    """Make data, model and study under a folder; `changes` are merged into the sections."""
    root = folder / "root"
    if not root.exists():
        write_study_data(root)
        make_tiny_model(family, root / "model")
    training = {
        "steps": 6, "batch_size": 8, "temperature": 0.05, "learning_rate": 0.01, "warmup_steps": 2,
        "checkpoint_every": 4,
    }  # fmt: skip
    sections: dict[str, dict[str, Any]] = {
        "data": {
            "root": str(root),
            "datasets": {name: f"train/{name}.jsonl" for name in ("one", "two", "three")},
            "query_max_length": 16,
            "passage_max_length": 24,
        },
        "model": {"base": "{root}/model", "micro_batch_tokens": 120},
        "reference": training,
        "weights": {**training, "passages_per_query": 4, "step_size": 0.2},
        "evaluation": {"tasks": {"words": "eval/words"}},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return Study.model_validate({"name": "tiny", "output": str(folder / "run"), **sections})
