"""Every training text is tokenised once for mining and all stages, and nothing but time depends on it."""

import json
from pathlib import Path

import pytest
from studies import tiny_study, write_study_data

from tdro.config import Study
from tdro.data import collate, token_cache
from tdro.errors import ConfigError
from tdro.files import cache_folder
from tdro.training import token_caches
from tdro.training.pipeline import run_study
from tdro.training.run import Run

OPTIONS = {
    "one": {"path": "train/one.jsonl", "instruction": "bee hive"},
    "two": {"path": "train/two.jsonl", "instruction": "bird winter", "symmetric": True},
    "three": {"path": "train/three.jsonl"},
}


def make_study(folder: Path, tokens: str, family: str = "static") -> Study:
    """A study that mines its negatives, with instructions and two evaluation tasks, in a run folder of its own."""
    tasks = {"words": "eval/words", "asked": {"path": "eval/words", "instruction": "find words"}}
    training = {"steps": 3, "batch_size": 8, "temperature": 0.05, "learning_rate": 0.01, "warmup_steps": 1}
    sections = {
        "reference": training,
        "weights": training,
        "data": {"datasets": OPTIONS, "tokens": tokens, "query_max_length": 60},
        "mining": {"ranks": [0, 9], "negatives": 4},
        "evaluation": {"tasks": tasks},
        "robust": {"plan": "top-share"},  # by weight, three steps would give the reference again, embeddings and all
    }
    study = tiny_study(folder, family, **sections)
    write_study_data(folder / "root", negatives=0)
    return study.model_copy(update={"output": str(folder / tokens)})


def count_texts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many texts each call tokenises."""
    counts: list[int] = []
    real = collate._tokenize

    def counted(tokenizer, texts, max_length):
        counts.append(len(texts))
        return real(tokenizer, texts, max_length)

    monkeypatch.setattr(collate, "_tokenize", counted)
    return counts


def distinct_texts(folder: Path) -> dict[str, tuple[int, int]]:
    """Distinct queries and passages of each dataset."""
    found = {}
    for name in OPTIONS:
        rows = [json.loads(line) for line in (folder / "root" / "train" / f"{name}.jsonl").read_text().splitlines()]
        passages = {p["text"] for row in rows for p in row["positive_passages"] + row["negative_passages"]}
        found[name] = (len({row["query"] for row in rows}), len(passages))
    return found


def outcome(study: Study) -> dict[str, object]:
    """What a study has found: models, weights, mined rows, scores."""
    folder = study.run_folder
    files = [
        *folder.rglob("*.safetensors"),
        *folder.glob("data/negatives/*.jsonl"),
        folder / "weights" / "weights.json",
    ]
    found: dict[str, object] = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {**found, "scores": json.loads((folder / "evaluation" / "summary.json").read_text())}


def test_cached_and_fresh_studies_are_the_same_bit_for_bit(tmp_path, monkeypatch):
    found = {}
    for tokens in ("fresh", "cached"):
        monkeypatch.setenv("TDRO_CACHE", str(tmp_path / f"cache-{tokens}"))
        study = make_study(tmp_path, tokens, "bert")
        run_study(Run(study))
        found[tokens] = outcome(study)
        assert (tmp_path / f"cache-{tokens}" / "tokens").exists() == (tokens != "fresh")
    assert len(found["fresh"]) == 3 + 3 + 2 and found["fresh"] == found["cached"]


@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_every_text_is_tokenised_once_in_all_stages_and_never_again(tmp_path, monkeypatch, family):
    study = make_study(tmp_path, "cached", family)
    counts = count_texts(monkeypatch)
    run_study(Run(study))
    evaluation = 30 + 8 + 8  # of each model: the corpus of both tasks, and the queries of each
    assert sum(counts) == sum(sum(texts) for texts in distinct_texts(tmp_path).values()) + 4 * evaluation
    counts.clear()
    other = {"output": str(tmp_path / "again"), "reference": study.reference.model_copy(update={"temperature": 0.06})}
    run_study(Run(study.model_copy(update=other)))
    assert sum(counts) == 3 * evaluation  # the base's embeddings are kept


def test_mining_and_training_share_the_passages(tmp_path, monkeypatch):
    study = make_study(tmp_path, "cached")
    run_study(Run(study), "mine")
    before = set((cache_folder() / "tokens").iterdir())
    assert len(before) == 2 * len(OPTIONS)
    counts = count_texts(monkeypatch)
    run_study(Run(study), "reference")
    assert set((cache_folder() / "tokens").iterdir()) == before and counts == []


def test_evaluation_embeds_every_text_of_the_tasks_once_for_each_model(tmp_path, monkeypatch):
    study = make_study(tmp_path, "auto")
    run_study(Run(study), "robust")
    counts = count_texts(monkeypatch)
    run_study(Run(study))
    assert counts == 4 * [30, 8, 8]  # corpus and queries of "words"; the corpus of "asked" is the same one


def test_another_way_to_the_tokens_does_not_undo_a_finished_study(tmp_path):
    study = make_study(tmp_path, "fresh")
    run_study(Run(study))
    data, events = study.data.model_copy(update={"tokens": "cached"}), []
    run_study(Run(study.model_copy(update={"data": data}), events.append))
    assert {event["stage"] for event in events if event["event"] == "stage_skipped"} >= {
        "reference",
        "weights",
        "robust",
    }
    assert not [event for event in events if event["event"] in ("step", "stage_finished", "mined")]


def test_progress_names_the_dataset(tmp_path):
    events: list[dict[str, object]] = []
    run_study(Run(make_study(tmp_path, "cached"), events.append))
    told = {
        e["dataset"]: (e["done"], e["total"]) for e in events if e["event"] == "progress" and e["stage"] == "tokens"
    }
    assert set(told) == set(OPTIONS)
    assert all(done == total for done, total in told.values())


def test_a_tokenizer_whose_tokens_cannot_be_kept_is_used_in_every_step(tmp_path, monkeypatch):
    def refuse(*_: object) -> str:
        raise ConfigError("the tokenizer draws its tokens by chance")

    for module in (token_caches, token_cache):
        monkeypatch.setattr(module, "identify", refuse)
    study = make_study(tmp_path, "cached")
    run = Run(study)
    run_study(run)
    assert not (cache_folder() / "tokens").exists()
    (note,) = run.journal.read("note", "tokens")
    assert "by chance" in note["text"]
