"""Evaluation tasks in folders: which layout a folder has, and its parts.

| layout | files | parts |
|---|---|---|
| BEIR | `corpus.jsonl`, `queries.jsonl` (or `.gz`), `qrels/SPLIT.tsv` | one |
| CQADupStack | a folder in BEIR layout for each forum: `android/`, `english/`, ... | 12 forums |
| MIRACL | `miracl-v1.0-LANG/` with topics and qrels, `miracl-corpus-v1.0-LANG/` here or in `corpus` | languages |
| MIRACL with hard negatives | a folder in BEIR layout for each language: `ar/`, `bn/`, ... | languages |
| MKQA | `mkqa.jsonl` or `.gz`, or a file for each language; documents in `corpus` | languages |
| rows | a file in any layout of training rows; a folder of such files with `kind: rows` | one |

The score of a task is the mean over its parts, so that CQADupStack counts once in a mean over BEIR.
"""

import os
import re
from collections.abc import Sequence
from functools import cache as remembered
from functools import partial
from pathlib import Path

from tdro.config import TaskConfig
from tdro.data.beir import is_beir
from tdro.errors import ConfigError, DataError
from tdro.evaluation.beir import find_beir_set, find_cqadupstack, is_cqadupstack
from tdro.evaluation.benchmarks import AnswerJudge, Benchmark, Oddity, Part, Task
from tdro.evaluation.miracl import find_miracl, is_miracl
from tdro.evaluation.mkqa import Mkqa, read_mkqa, tokenize_documents
from tdro.evaluation.rows import find_rows
from tdro.retrieval.documents import Documents, store_documents
from tdro.retrieval.passage_files import find_passages
from tdro.retrieval.shards import Progress

_LAYOUTS = "see docs/evaluation.md for the layouts of BEIR, MIRACL and MKQA; rows in a folder want kind: rows"


def find_task(name: str, options: TaskConfig, root: Path = Path()) -> Task:
    """Find a task; no texts are read but the questions of MKQA. A file that is not called mkqa is one of rows.

    Args:
        name: Its name in reports.
        options: Its settings.
        root: Folder that its paths start from.

    Raises:
        DataError: Nothing is there, or nothing that is a task, or a file is missing.
        ConfigError: An option does not go with the layout.
    """
    path, corpus = root / options.path, root / options.corpus if options.corpus else None
    if not path.exists():
        raise DataError("evaluation set not found", where=name, saw=str(path), do="check the path")
    kind = _kind(path) or ("rows" if path.is_file() else "") if options.kind == "auto" else options.kind
    if kind == "mkqa":
        return _find_mkqa(name, path, options, corpus)
    if kind == "miracl":
        return find_miracl(name, path, options, corpus)
    if kind == "rows":
        return find_rows(name, path, options, corpus)
    if kind == "beir":
        found = find_cqadupstack if path.is_dir() and is_cqadupstack(path) else find_beir_set
        return found(name, path, options)
    if path.is_dir() and (several := [child.name for child in sorted(path.iterdir()) if _kind(child)]):
        do = "name each of them as a task of its own"
        raise DataError("the folder holds several tasks", where=path, saw=", ".join(several), do=do)
    saw = ", ".join(sorted(child.name for child in path.iterdir())) if path.is_dir() else path.name
    raise DataError("this is no evaluation set", where=path, saw=saw or "nothing", do=_LAYOUTS)


def find_tasks(path: Path, options: TaskConfig) -> list[Task]:
    """Find the task in a folder, or all tasks in a folder of them, under the names of their folders.

    Args:
        path: The folder, or the file of MKQA.
        options: For every task, besides the path.

    Raises:
        DataError, ConfigError: As `find_task`.
    """
    several = [] if options.kind != "auto" or not path.is_dir() or _kind(path) else sorted(path.iterdir())
    paths = [child for child in several if _kind(child)] or [path]
    return [find_task(task_name(each), options.model_copy(update={"path": str(each)})) for each in paths]


def refuse_mixed_variants(tasks: Sequence[Task]) -> None:
    """Refuse tasks that have no mean together: MIRACL in full, and with the documents of a pool only.

    Raises:
        ConfigError: Both are there.
    """
    variants = {str(p.settings["variant"]): task.name for task in tasks for p in task.parts if "variant" in p.settings}
    if len(variants) > 1:
        saw = ", ".join(f"{name} ({variant})" for variant, name in sorted(variants.items()))
        do = "evaluate them apart, each with results of its own"
        raise ConfigError("both variants of MIRACL have no mean together", saw=saw, do=do)


def task_name(path: Path) -> str:
    """Name a task after its folder or file.

    Example:
        >>> task_name(Path("beir/scifact")), task_name(Path("mkqa/mkqa.jsonl.gz"))
        ('scifact', 'mkqa')
    """
    name = re.sub(r"\.jsonl(\.gz)?$", "", os.path.basename(os.path.abspath(path)))
    return re.sub(r"[^\w.-]", "-", name)


def _kind(path: Path) -> str:
    """Tell the layout of a folder or file; empty where it is none."""
    if path.is_file():
        return "mkqa" if re.search(r"mkqa.*\.jsonl(\.gz)?$", path.name) else ""
    if not path.is_dir():
        return ""
    if any((path / f"mkqa.jsonl{end}").is_file() for end in ("", ".gz")):
        return "mkqa"
    if is_beir(path) or is_cqadupstack(path):
        return "beir"
    return "miracl" if is_miracl(path) else ""


def _find_mkqa(name: str, path: Path, options: TaskConfig, corpus: Path | None) -> Task:
    """Find the languages of MKQA, which share their documents: these are stored, encoded and tokenised once."""
    if options.split:
        raise ConfigError("MKQA has no splits", where=f"{name}: split", saw=options.split, do="leave it out")
    own = [file for end in ("", ".gz") if path.is_dir() and (file := path / f"corpus.jsonl{end}").is_file()]
    documents = corpus or (own[0] if own else None)
    if documents is None:
        do = "name their file or folder in corpus; those of BEIR's nq go with MKQA"
        raise ConfigError("MKQA needs documents to search", where=f"{name}: corpus", saw=str(path), do=do)
    files = tuple(find_passages(documents).files)
    mkqa = read_mkqa(path, options.languages)
    stored = remembered(partial(store_documents, documents))
    ignore = bool(options.ignore_identical_ids)

    def part(language: str) -> Part:
        def read(cache: Path, progress: Progress | None) -> Benchmark:
            return _mkqa_benchmark(f"{name}/{language}", mkqa, language, stored(cache), ignore, cache, progress)

        settings: dict[str, object] = {"kind": "mkqa", "split": "test", "ignore_identical_ids": ignore}
        settings |= {"language": language, "questions": mkqa.content(language)}
        return Part(name, language, files, settings, read, lambda: None)

    dropped = {f"dropped: {reason}": Oddity(count) for reason, count in mkqa.dropped.items() if count}
    return Task(name, tuple(part(language) for language in mkqa.languages), "acc@10", dropped)


def _mkqa_benchmark(
    name: str, mkqa: Mkqa, language: str, documents: Documents, ignore: bool, cache: Path, progress: Progress | None
) -> Benchmark:
    """Read one language of MKQA; the documents are tokenised when the first ranking is judged."""
    query_ids, texts = mkqa.queries(language)
    return Benchmark(
        name,
        documents,
        query_ids,
        texts,
        {},
        ignore_identical_ids=ignore,
        answers=AnswerJudge(
            lambda hits: mkqa.judge(language, hits, documents, tokenize_documents(documents, cache, progress)),
            lambda hits: mkqa.first_hits(language, hits, documents, tokenize_documents(documents, cache, progress)),
            "acc@10",
        ),
    )
