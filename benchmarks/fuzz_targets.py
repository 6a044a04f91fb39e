"""Everything of tdro that reads files which others may have written or damaged, each with valid files to start from."""

import gzip
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from fuzz_mutations import csv_of, parquet_of

from tdro.config import Study, WeightsConfig
from tdro.core.groups import COLUMNS
from tdro.data.reading import read_dataset, scan_rows
from tdro.data.weights_file import read_diagnostics, read_sizes, read_weights, released_format
from tdro.errors import TdroError
from tdro.evaluation.judgements import read_qrels, read_queries, read_topics
from tdro.evaluation.mkqa import read_mkqa
from tdro.evaluation.results import find_results, read_result
from tdro.retrieval.documents import store_documents
from tdro.retrieval.shards import encode_shards
from tdro.study_file import load_study, save_study
from tdro.training.budget import Budget, keep_budget, kept_budget
from tdro.training.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from tdro.training.journal import Journal
from tdro.training.replay import replay_losses, replay_run, signal_of
from tdro.training.run import Run

RECIPES = Path(__file__).parents[1] / "recipes"
TEXTS = ["bees dance", "trees", "the river carries sand"]


@dataclass(frozen=True)
class File:
    """A valid file: where it is, how it can be damaged (see `fuzz_mutations.damage`; empty: it is left alone)."""

    path: str
    kind: str
    content: bytes


@dataclass(frozen=True)
class Target:
    """Something that reads files.

    Attributes:
        name: Its name.
        share: Its part of all inputs, in comparison with the others.
        variants: Sets of valid files; in an input one file of one set is damaged.
        read: Reads the files in a folder; may raise a TdroError.
    """

    name: str
    share: float
    variants: tuple[tuple[File, ...], ...]
    read: Callable[[Path], object]


def targets() -> list[Target]:
    """Return all targets; every variant can be read as it stands."""
    return [
        Target("study file", 2, _study_files(), lambda folder: load_study(folder / "study.yaml")),
        Target("weights file", 2, _weights_files(), _read_weights),
        Target("journal", 2, _journals(), _read_journal),
        Target("replay", 2, (_recorded(),), _replay),
        Target("rows", 6, _row_files(), _read_rows),
        Target("evaluation set", 4, _evaluation_files(), _read_evaluation),
        Target("result", 1, (_results(),), _read_result),
        Target("checkpoint", 2, (_checkpoint(),), _read_checkpoint),
        Target("embeddings", 1, (_embeddings(),), _read_embeddings),
        Target("documents", 2, _documents(), _read_documents),
        Target("run folder", 1, _run_folders(), _read_run_folder),
    ]


def _json(value: object) -> bytes:
    """Write JSON."""
    return json.dumps(value, ensure_ascii=False).encode()


def _lines(values: list[object]) -> bytes:
    """Write JSON lines."""
    return b"".join(_json(value) + b"\n" for value in values)


@contextmanager
def _written() -> Iterator[Path]:
    """Have tdro write into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _files_of(folder: Path, kinds: dict[str, str]) -> tuple[File, ...]:
    """Take what was written; each file is damaged as its ending says."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(File(str(path.relative_to(folder)), kinds.get(path.suffix, ""), path.read_bytes()) for path in paths)


def _study() -> Study:
    """A small study."""
    data = {"datasets": {"one": "one.jsonl", "two": {"path": ["a.jsonl", "b.jsonl"], "symmetric": True}}}
    return Study.model_validate({"name": "small", "data": data, "model": {"base": "model"}})


def _study_files() -> tuple[tuple[File, ...], ...]:
    """The recipes, some with the one that they extend; and a study with all options."""
    in_full = save_study(_study(), {"versions": {"tdro": "1"}})
    texts = {path.name: path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))}
    recipes = (
        (File("study.yaml", "bytes", text), *(File(name, "bytes", texts[name]) for name in _extended(text)))
        for text in texts.values()
    )
    as_json = _json(_study().model_dump(mode="json"))
    return (*recipes, (File("study.yaml", "bytes", in_full.encode()),), (File("study.yaml", "json", as_json),))


def _extended(text: bytes) -> list[str]:
    """Name the file that a study extends."""
    return [found.decode() for found in re.findall(rb"^extends: (\S+)$", text, re.MULTILINE)]


def _weights_files() -> tuple[tuple[File, ...], ...]:
    """Both formats."""
    weights = {"one": 0.25, "two": 0.75}
    released = {**released_format(weights, {"one": 10, "two": 30}), "diagnostics": {"of": {"seed": 1}}}
    return tuple((File("weights.json", "json", _json(content)),) for content in (weights, released))


def _read_weights(folder: Path) -> None:
    """Read what there is in a weights file."""
    for read in (read_weights, read_sizes, read_diagnostics):
        with suppress(TdroError):
            read(folder / "weights.json")


def _journals() -> tuple[tuple[File, ...], ...]:
    """A journal of two stages."""
    steps = [
        {"event": "step", "stage": stage, "time": 1.5, "step": i} for stage in ("reference", "weights") for i in (0, 1)
    ]
    return ((File("events.jsonl", "jsonl", _lines([{"event": "note", "stage": "x", "text": "é"}, *steps])),),)


def _read_journal(folder: Path) -> None:
    """Read, rewind and go on."""
    journal = Journal(folder)
    list(journal.read("step", "weights"))
    journal.rewind("weights", 1)
    journal.write("step", "weights", step=1)


def _recorded() -> tuple[File, ...]:
    """What a weights stage has recorded."""
    keys = [{"step": step, "dataset": name} for step, name in product(range(3), ("one", "two"))]
    sums = [{**key, **{column: 1.0 + i for i, column in enumerate(COLUMNS)}} for key in keys]
    losses = [{**key, "proxy_loss": 1.0 + i % 3, "reference_loss": 1.5} for i, key in enumerate(keys * 2)]
    weights = released_format({"one": 0.5, "two": 0.5}, {"one": 10, "two": 30})
    trajectory = [{**key, "signal": 2.0 + i % 3} for i, key in enumerate(keys)]
    marker = {"fingerprint": "x", "signal_of": signal_of(WeightsConfig())}
    return (
        File("weights/statistics.parquet", "parquet", parquet_of(sums)),
        File("weights/losses.parquet", "parquet", parquet_of(losses)),
        File("weights/trajectory.parquet", "parquet", parquet_of(trajectory)),
        File("weights/done.json", "json", _json(marker)),
        File("weights/weights.json", "json", _json(weights)),
    )


def _replay(folder: Path) -> None:
    """Replay what was recorded, in four ways."""
    for measure in ("relative", "relative-sample"):
        with suppress(TdroError):
            replay_run(folder, WeightsConfig(steps=3, measure=measure), 100).exported()
    losses = folder / "weights" / "losses.parquet"
    with suppress(TdroError):
        replay_losses(losses, WeightsConfig(steps=3)).exported()
    losses.unlink(missing_ok=True)
    replay_run(folder, WeightsConfig(steps=3), 100).exported()


def _row_files() -> tuple[tuple[File, ...], ...]:
    """All layouts in all formats."""

    def passages(i: int) -> list[dict[str, str]]:
        return [{"docid": f"d{i}", "title": "", "text": f"bees dance {i}"}]

    tevatron = [
        {
            "query_id": f"q{i}",
            "query": f"who {i}",
            "positive_passages": passages(i),
            "negative_passages": passages(i + 9),
        }
        for i in range(3)
    ]
    flag = [{"query": f"who {i}", "pos": ["bees"], "neg": ["trees", "sand"], "pos_scores": [1.0]} for i in range(3)]
    plain = [{"anchor": f"who {i}", "positive": "bees", "negative_1": "trees", "negative_2": "sand"} for i in range(3)]
    pairs = [{"sentence1": "a", "sentence2": "b", "label": 1}, {"sentence1": "c", "sentence2": "d", "label": 1}]
    found = []
    for rows in (tevatron, flag, plain, pairs):
        lines = _lines(rows)
        found += [("rows.jsonl", "jsonl", lines), ("rows.parquet", "parquet", parquet_of(rows))]
        found += [("rows.json", "json", _json(rows)), ("rows.jsonl.gz", "gz:jsonl", gzip.compress(lines, mtime=0))]
    texts = [{key: str(value) for key, value in row.items()} for row in plain]
    found += [("rows.csv", "csv", csv_of(texts, ",")), ("rows.tsv", "csv", csv_of(texts, "\t"))]
    found += [("rows.csv.gz", "gz:csv", gzip.compress(csv_of(texts, ","), mtime=0))]
    return tuple((File(*each),) for each in found)


def _read_rows(folder: Path) -> None:
    """Scan a file, then store it and read what was stored."""
    file = next(folder.iterdir())
    with suppress(TdroError):
        for _ in scan_rows("some", [file]):
            pass
    rows = read_dataset("some", file, cache=folder / "cache")
    for row in rows:
        if not isinstance(row.query, str) or not row.positives:
            raise AssertionError(f"a row that is none was let through: {row}")


def _evaluation_files() -> tuple[tuple[File, ...], ...]:
    """Judgements, queries, topics and MKQA."""
    queries = [{"_id": f"q{i}", "text": f"who {i}", "title": ""} for i in range(3)]
    answers = {"en": [{"type": "entity", "text": "bees", "aliases": ["bee"]}]}
    questions = {"en": "who", "de": "wer", "zh_cn": "é"}
    apple = [{"example_id": i, "queries": questions, "answers": answers} for i in range(3)]
    language = [{"id": f"{i}", "question": "wer", "answers": ["bees"]} for i in range(3)]
    qrels = b"query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t2\n"
    return (
        (File("qrels.tsv", "csv", qrels),),
        (File("qrels.tsv", "bytes", b"q0 0 d0 1\nq1 0 d1 0\n"),),
        (File("queries.jsonl", "jsonl", _lines(queries)),),
        (File("topics.tsv", "csv", "q0\twho\nq1\two é\n".encode()),),
        (File("mkqa.jsonl", "jsonl", _lines(apple)),),
        (File("mkqa.jsonl.gz", "gz:jsonl", gzip.compress(_lines(apple), mtime=0)),),
        (File("test/de.jsonl", "jsonl", _lines(language)), File("test/fr.jsonl", "jsonl", _lines(language))),
    )


def _read_evaluation(folder: Path) -> None:
    """Read a file of an evaluation set as what it is called."""
    reading = {"qrels.tsv": read_qrels, "queries.jsonl": read_queries, "topics.tsv": read_topics}
    for name, read in reading.items():
        if (folder / name).exists():
            read(folder / name)
            return
    read_mkqa(folder)


def _results() -> tuple[File, ...]:
    """The result of an evaluation."""
    summary = {"task": "words", "part": "", "model": "robust", "main": "ndcg@10", "inputs": "f", "measures": {}}
    scores = [{"query_id": f"q{i}", "ndcg@10": 0.5, "recall@100": 1.0} for i in range(3)]
    return (
        File("words/summary.json", "json", _json(summary)),
        File("words/scores.parquet", "parquet", parquet_of(scores)),
    )


def _read_result(folder: Path) -> None:
    """Find and read it."""
    for name, path in find_results(folder).items():
        result = read_result(path)
        if not all(len(values) == len(result.query_ids) for values in result.scores.values()):
            raise AssertionError(f"{name} has other scores than queries")


def _trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A layer and its optimizer after a step."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return layer, optimizer


def _checkpoint() -> tuple[File, ...]:
    """A checkpoint."""
    with _written() as folder:
        save_checkpoint(Checkpoints(folder, "f", {"seed": 1}), 3, *_trained(), {"weights": [0.5, 0.5]})
        return _files_of(folder, {".json": "json", ".safetensors": "bytes"})


def _read_checkpoint(folder: Path) -> None:
    """Load it."""
    load_checkpoint(Checkpoints(folder, "f", {"seed": 1}), *_trained())


def _lengths(texts: list[str]) -> np.ndarray:
    """Stands for an encoder."""
    return np.array([[len(text), 1] for text in texts], np.float32)


def _embeddings() -> tuple[File, ...]:
    """Embeddings on disk."""
    with _written() as folder:
        encode_shards(TEXTS, _lengths, folder, {"model": "lengths"})
        return _files_of(folder, {".json": "json", ".npy": "bytes"})


def _read_embeddings(folder: Path) -> None:
    """Open them: what is damaged is made again."""
    found = encode_shards(TEXTS, _lengths, folder, {"model": "lengths"})
    if not np.array_equal(found[:], _lengths(TEXTS)):
        raise AssertionError(f"damaged embeddings were taken for good: {found[:]}")


def _documents() -> tuple[tuple[File, ...], ...]:
    """A corpus in three formats, and what is stored of it."""
    rows = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(TEXTS)]
    lines = _lines(rows)
    with _written() as folder:
        (folder / "corpus.jsonl").write_bytes(lines)
        store_documents(folder / "corpus.jsonl", folder / "cache")
        stored = _files_of(folder, {})
    stored = tuple(File(f.path, "json" if f.path.endswith("about.json") else "", f.content) for f in stored)
    return (
        (File("corpus.jsonl", "jsonl", lines),),
        (File("corpus.jsonl.gz", "gz:jsonl", gzip.compress(lines, mtime=0)),),
        (File("corpus.parquet", "parquet", parquet_of(rows)),),
        stored,
    )


def _read_documents(folder: Path) -> None:
    """Store a corpus and look documents up."""
    documents = store_documents(next(folder.glob("corpus.*")), folder / "cache")
    texts = documents[0 : len(documents)]
    if len(texts) != len(documents) or documents.find(documents.ids_at(np.arange(len(documents)))).min(initial=0) < 0:
        raise AssertionError("documents were lost")


def _run_folders() -> tuple[tuple[File, ...], ...]:
    """Markers and budgets of a run."""
    with _written() as folder:
        keep_budget(folder / "budget.json", "key", Budget(512, {512: 1.0}))
        budget = _files_of(folder, {".json": "json"})
    return ((File("reference/done.json", "json", _json({"fingerprint": "f", "seconds": 1.0})),), budget)


def _read_run_folder(folder: Path) -> None:
    """Ask whether a stage is finished, and for the budget."""
    run = Run(_study().model_copy(update={"output": str(folder)}))
    run.finished("reference", "f")
    kept_budget(folder / "budget.json", "key")
