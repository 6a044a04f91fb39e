"""Evaluation sets in the layout of BEIR, with what that benchmark says about some of its sets."""

import os
from pathlib import Path

from tdro.config import TaskConfig
from tdro.errors import ConfigError, DataError
from tdro.evaluation.benchmarks import Benchmark, Oddity, Part, Task, judged_queries
from tdro.evaluation.judgements import read_qrels, read_queries
from tdro.retrieval.documents import store_documents
from tdro.retrieval.shards import Progress

FORUMS = (
    "android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats", "tex", "unix",
    "webmasters", "wordpress",
)  # fmt: skip
"""The parts of CQADupStack."""
ON_DEV = ("msmarco",)
"""Sets whose test split is not the one that is reported."""
WITH_OWN_QUERIES = ("arguana", "quora")
"""Sets whose queries are in the corpus."""

_PARTS = "a task is a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (query-id, corpus-id, score)"


def has_texts(folder: Path) -> bool:
    """Whether a folder has the corpus or the queries of a BEIR set."""
    return any((folder / f"{name}.jsonl{end}").is_file() for name in ("corpus", "queries") for end in ("", ".gz"))


def is_cqadupstack(folder: Path) -> bool:
    """Whether a folder is CQADupStack: called so, or with nothing but its forums in BEIR layout."""
    forums = [child.name for child in folder.iterdir() if has_texts(child)]
    return bool(forums) and (_name(folder) == "cqadupstack" or set(forums) <= set(FORUMS))


def find_beir_set(name: str, folder: Path, options: TaskConfig) -> Task:
    """Find a set of BEIR; MS MARCO is judged on dev, and ArguAna and Quora do not find the query itself.

    The sets are known by the names that their folders have in BEIR. Options that are given count in any case.

    Raises:
        DataError: A file is missing.
        ConfigError: An option does not go with this layout.
    """
    return Task(name, (beir_part(name, "", folder, _refuse_unread(options), {}),))


def find_cqadupstack(name: str, folder: Path, options: TaskConfig) -> Task:
    """Find CQADupStack; forums that are not there are left out of the mean, which is said.

    Raises:
        DataError: A file of a forum is missing.
        ConfigError: An option does not go with this layout.
    """
    _refuse_unread(options)
    parts = tuple(beir_part(name, forum, folder / forum, options, {}) for forum in FORUMS if has_texts(folder / forum))
    missing = Oddity.of(forum for forum in FORUMS if not has_texts(folder / forum))
    return Task(name, parts, oddities={"missing_parts": missing} if missing.count else {})


def beir_part(
    task: str, part: str, folder: Path, options: TaskConfig, settings: dict[str, object], split: str = ""
) -> Part:
    """Return a folder in BEIR layout as a task or as a part of one.

    Args:
        task: Name of the task.
        part: Name of the part, or empty.
        folder: The folder.
        options: Of the task; what is not given follows from the name of the folder.
        settings: What else is to be known of the part.
        split: Where the options give none; by default test, or dev for MS MARCO.

    Raises:
        DataError: A file is missing.
    """
    split = options.split or split or ("dev" if _name(folder) in ON_DEV else "test")
    given = options.ignore_identical_ids
    ignore = _name(folder) in WITH_OWN_QUERIES if given is None else given
    corpus, queries, qrels = _locate(f"{task}/{part}" if part else task, folder, split)

    def read(cache: Path, progress: Progress | None) -> Benchmark:
        judged, texts = read_qrels(qrels), read_queries(queries)
        documents = store_documents(corpus, cache)
        label = f"{task}/{part}" if part else task
        return judged_queries(label, documents, texts, judged, where=qrels, ignore_identical_ids=ignore)

    settings = {"kind": "beir", "split": split, "ignore_identical_ids": ignore, **settings}
    return Part(task, part, (corpus, queries, qrels), settings, read, lambda: read_qrels(qrels))


def read_beir(name: str, folder: Path, cache: Path, split: str = "") -> Benchmark:
    """Read `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv` of a folder, without the rest of a task.

    The jsonl files may be gzipped, their ids be called `_id` or `id` and be strings or integers, and
    titles may be absent. The qrels are three columns (query, document, score) as in BEIR or four
    (query, ignored, document, score) as in TREC, with or without a header. Only queries with a
    judgement in the split are kept, in the order of `queries.jsonl`; what was left out is counted.

    Args:
        name: The benchmark's name in reports.
        folder: The folder.
        cache: Where the documents are kept.
        split: The qrels file to use, without its ending; empty: test, or dev for a folder named msmarco.

    Raises:
        DataError: A file is missing or damaged, an id is repeated, empty or contains white space (a
            run file could not hold it), or no query can be evaluated. Names file, line and field.
    """
    return beir_part(name, "", folder, TaskConfig(path=str(folder), split=split), {}).read(cache, None)


def _name(folder: Path) -> str:
    """Name of a folder as the user wrote it, which may be a link to another name."""
    return os.path.basename(os.path.abspath(folder))


def _refuse_unread(options: TaskConfig) -> TaskConfig:
    """Refuse options that this layout has no use for."""
    for field, value in (("languages", options.languages), ("corpus", options.corpus)):
        if value:
            do = "leave it out; only MIRACL and MKQA have it"
            raise ConfigError(f"{field} does not go with a folder in BEIR layout", where=options.path, saw=value, do=do)
    return options


def _locate(name: str, folder: Path, split: str) -> tuple[Path, Path, Path]:
    """Find the corpus, the queries and the qrels of an evaluation set."""
    if not folder.is_dir():
        raise DataError("evaluation set not found", where=name, saw=str(folder), do="check the path")
    return (
        _find(folder, ("corpus.jsonl", "corpus.jsonl.gz"), "evaluation set without corpus"),
        _find(folder, ("queries.jsonl", "queries.jsonl.gz"), "evaluation set without queries"),
        _find(folder / "qrels", (f"{split}.tsv",), "evaluation set without qrels"),
    )


def _find(folder: Path, names: tuple[str, ...], missing: str) -> Path:
    """Return the first of these files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    raise DataError(
        missing, where=folder / names[0], saw=f"in this folder: {', '.join(present) or 'nothing'}", do=_PARTS
    )
