"""Fetch the retrieval tasks of mteb, with its own loaders, as folders in BEIR layout.

mteb evaluates each language subset and each split of a task by itself, perhaps with documents of its own, and so each
becomes a folder. Their names hold the task's, so that results of several tasks never meet:

    TO/NAME/{corpus.jsonl,queries.jsonl,qrels/SPLIT.tsv}       a task with one subset and one split
    TO/NAME/NAME-SUBSET[-SPLIT]/...                            any other
    TO/NAME/LANG/...                                           MIRACL with hard negatives, one task to evaluation
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdro.data.beir import whole_score
from tdro.errors import ConfigError, DataError, EnvironmentProblem, TdroError
from tdro.evaluation.downloads import Progress
from tdro.evaluation.judgements import read_id
from tdro.evaluation.tasks import task_name
from tdro.files import atomic_folder
from tdro.locks import lock_for, one_at_a_time

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

PREFIX = "mteb/"
"""What the names of these tasks begin with."""

_MIRACL, _POOLED = "MIRACLRetrieval", "MIRACLRetrievalHardNegatives"
_TYPES = ("Retrieval", "InstructionRetrieval")
_READ = 8192  # rows that are read together


@dataclass(frozen=True, slots=True)
class TaskFolder:
    """One subset and split of a task of mteb, and the folder that it is evaluated from.

    Args:
        task: Name in mteb.
        subset: As mteb calls it: a language, or "default".
        split: The split that mteb evaluates, and the name of the qrels.
        path: The folder; it is there whole or not at all.
        ignore_identical_ids: Whether mteb drops the document that has the query's own id.
        pooled: Whether it is a language of MIRACL with hard negatives, whose folders are one task together.
    """

    task: str
    subset: str
    split: str
    path: Path
    ignore_identical_ids: bool = False
    pooled: bool = False


def find_folders(name: str, to: Path) -> list[TaskFolder]:
    """Say which folders a task of mteb becomes; nothing is downloaded.

    Args:
        name: "mteb/NAME", or "mteb/NAME#SUBSET" for one of its languages.
        to: Where the folder of the task goes.

    Raises:
        ConfigError: mteb has no such task or subset, or the task is not retrieval of texts.
        EnvironmentProblem: mteb is not installed.
    """
    title, _, subset = name.removeprefix(PREFIX).partition("#")
    task = _open(title)
    title, subsets = task.metadata.name, list(task.metadata.hf_subsets)  # an old name leads to the new one
    if title == _MIRACL:
        what = "mteb's copy of MIRACL in full would be taken for the variant with hard negatives"
        raise ConfigError(what, where=name, do=f"fetch miracl/{subset or 'LANG'}")
    if subset and subset not in subsets:
        do = f"its subsets: {', '.join(subsets)}"
        raise ConfigError("the task has no such subset", where=PREFIX + title, saw=subset, do=do)
    pooled, splits = title.startswith(_POOLED), list(task.metadata.eval_splits)

    def path(subset: str, split: str) -> Path:
        marks = [subset] * task.metadata.is_multilingual + [split] * (len(splits) > 1)
        last = subset if pooled else "-".join([title, *marks]) if marks else ""
        return to / title / task_name(Path(last)) if last else to / title

    return [
        TaskFolder(title, each, split, path(each, split), task.ignore_identical_ids, pooled)
        for each in ([subset] if subset else subsets)
        for split in splits
    ]


def fetch_folders(folders: Sequence[TaskFolder], to: Path, progress: Progress = lambda what, done, of: None) -> None:
    """Load a task of mteb and write those of its folders that are not there.

    Rows go from mteb's memory-mapped tables to the files in batches; in memory are the judgements.

    Args:
        folders: Some that `find_folders` returns, of one task.
        to: Where the folder of the task goes.
        progress: Called with a folder, bytes written, and 0 because nobody knows how many it will be.

    Raises:
        DataError: The task ranks given documents only, or has what a BEIR folder cannot hold; names the row.
        EnvironmentProblem: Its data cannot be loaded: no network, no permission, or mteb's loader fails.
    """
    with one_at_a_time(lock_for(to / folders[0].task)):
        missing = [folder for folder in folders if not folder.path.exists()]
        if not missing:
            return
        task = _open(missing[0].task)
        if task.metadata.is_multilingual:
            task.hf_subsets = list(dict.fromkeys(folder.subset for folder in missing))
        task.filter_eval_splits(list(dict.fromkeys(folder.split for folder in missing)))
        with _loader_faults(PREFIX + task.metadata.name):
            task.load_data()
            task.convert_v1_dataset_format_to_v2(num_proc=None)
            loaded = [task.dataset[folder.subset][folder.split] for folder in missing]
        for folder, data in zip(missing, loaded, strict=True):
            _write(folder, data, progress)


def _open(name: str) -> "AbsTaskRetrieval":
    """Return a task of mteb that is retrieval of texts, without its data."""
    try:
        import mteb
        from mteb.abstasks.retrieval import AbsTaskRetrieval
        from mteb.get_tasks import TASK_LIST
    except ImportError as problem:
        do = 'pip install "tdro[mteb]"'
        raise EnvironmentProblem("mteb is not installed", where="extra mteb", do=do) from problem
    try:
        task = mteb.get_task(name)
    except KeyError:
        known = {each.metadata.name.lower(): each.metadata.name for each in TASK_LIST if _is_retrieval(each.metadata)}
        close = [known[match] for match in get_close_matches(name.lower(), known, cutoff=0.5)]
        do = f"closest: {', '.join(close)}" if close else "`mteb.get_tasks(task_types=['Retrieval'])` lists them"
        raise ConfigError("mteb has no such task", where=PREFIX + name, saw=name, do=do) from None
    if not isinstance(task, AbsTaskRetrieval) or not _is_retrieval(task.metadata):
        saw = f"{type(task).__name__}: {task.metadata.type} of {', '.join(task.metadata.modalities)}"
        members = [each.metadata.name for each in getattr(task, "tasks", ())]
        do = f"fetch its parts: {', '.join(members)}" if members else "choose a task of type Retrieval"
        raise ConfigError("the task is not retrieval of texts", where=PREFIX + name, saw=saw, do=do)
    return task


def _is_retrieval(metadata: Any) -> bool:
    """Whether a task searches a corpus of texts; reranking is handed its documents."""
    return metadata.type in _TYPES and list(metadata.modalities) == ["text"]


@contextmanager
def _loader_faults(name: str) -> Iterator[None]:
    """Turn whatever mteb's loaders and their libraries raise into one error."""
    try:
        yield
    except TdroError:
        raise
    except Exception as problem:
        saw = f"{type(problem).__name__}: {problem}"
        do = "check the network and HF_ENDPOINT; data that is not public needs HF_TOKEN; what was loaded is kept"
        raise EnvironmentProblem("mteb cannot load the task", where=name, saw=saw, do=do) from problem


def _write(folder: TaskFolder, data: Mapping[str, Any], progress: Progress) -> None:
    """Write one folder."""
    where = f"{PREFIX}{folder.task}, {folder.subset}, {folder.split}"
    if data.get("top_ranked"):
        do = "choose a task that searches its whole corpus"
        raise DataError("the task gives each query the documents to rank", where=where, do=do)
    done = 0
    with atomic_folder(folder.path) as place:
        (place / "qrels").mkdir()
        for name, lines in (
            ("corpus.jsonl", _documents(data["corpus"], where)),
            ("queries.jsonl", _queries(data["queries"], where)),
            (f"qrels/{folder.split}.tsv", _judgements(data["relevant_docs"], where)),
        ):
            with (place / name).open("wb") as file:
                for line in lines:
                    done += file.write(f"{line}\n".encode())
                    progress(folder.path.name, done, 0)


def _rows(table: Any, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a table with their numbers, with those of the columns that it has."""
    chosen = table.select_columns([column for column in columns if column in table.column_names])
    return enumerate(row for batch in chosen.iter(batch_size=_READ) for row in _turned(batch))


def _turned(batch: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Turn columns to rows."""
    return (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))


def _documents(corpus: Any, where: str) -> Iterator[str]:
    """Yield the lines of corpus.jsonl."""
    for number, row in _rows(corpus, ("id", "title", "text")):
        place = f"{where}: corpus row {number}"
        yield _line({"_id": _id(row, place), "title": row.get("title") or "", "text": _text(row, place)})


def _queries(queries: Any, where: str) -> Iterator[str]:
    """Yield the lines of queries.jsonl; a query's own instruction follows it, as mteb has it."""
    for number, row in _rows(queries, ("id", "text", "instruction")):
        place = f"{where}: query row {number}"
        text, own = _text(row, place), row.get("instruction")
        yield _line({"_id": _id(row, place), "text": f"{text} {own}" if own else text})


def _judgements(qrels: Mapping[str, Mapping[str, Any]], where: str) -> Iterable[str]:
    """Yield the lines of the qrels."""
    yield "query-id\tcorpus-id\tscore"
    for query, grades in qrels.items():
        place = f"{where}: judgements of {query}"
        for document, grade in grades.items():
            score = whole_score(str(grade), f"{place}, {document}: score")
            yield f"{read_id(query, place)}\t{read_id(document, place)}\t{score}"


def _line(record: Mapping[str, str]) -> str:
    """Write a record."""
    return json.dumps(record, ensure_ascii=False)


def _id(row: Mapping[str, Any], where: str) -> str:
    """Return the id of a row."""
    return read_id(row.get("id"), f"{where}: id")


def _text(row: Mapping[str, Any], where: str) -> str:
    """Return the text of a row."""
    text = row.get("text")
    if not isinstance(text, str):
        do = "choose a task whose queries and documents are single texts"
        raise DataError("text is missing or not a string", where=f"{where}: text", saw=text, do=do)
    return text
