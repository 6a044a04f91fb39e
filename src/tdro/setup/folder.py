"""What a folder of somebody's files holds: training datasets, evaluation sets, and what is neither, with the reason."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

from tdro.config import TaskConfig
from tdro.data.beir import is_beir
from tdro.data.layouts import RowParser
from tdro.data.records import Row
from tdro.data.sources import find_source
from tdro.errors import ConfigError, DataError
from tdro.evaluation.beir import is_cqadupstack
from tdro.evaluation.benchmarks import Task
from tdro.evaluation.miracl import is_miracl
from tdro.evaluation.tasks import find_task

_WORDS = re.compile(
    r"(?<![a-z])(?:(train(?:ing)?)|(dev|valid|validation|val|test|eval|evaluation|benchmarks?))(?![a-z])"
)
_ENDINGS = re.compile(r"\.(jsonl?|csv|tsv|parquet)(\.gz)?$", re.IGNORECASE)
_PART = re.compile(r"[-_.]?\d+(-of-\d+)?$")
_GENERIC = ("", "data", "train", "training", "part", "shard", "chunk", "rows", "examples", "dataset")
_DEEPEST = 6  # folders within folders
_ADVICE = 100  # characters of advice that are repeated
_COLUMNS = 8  # of a file that are named
_OF_LIBRARIES = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "config.json", "package.json")


@dataclass(frozen=True, slots=True)
class FoundDataset:
    """A training dataset.

    Args:
        name: Made from the name of its file or folder.
        paths: Relative to the folder that was searched; several for part files among other files.
    """

    name: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FoundTask:
    """An evaluation set.

    Args:
        options: As a study names it.
        task: What was found there.
    """

    options: TaskConfig
    task: Task


@dataclass(slots=True)
class Found:
    """What a folder holds.

    Args:
        datasets: In the order of their paths.
        tasks: In the order of their paths.
        left_out: Path -> why it is neither.
        against: Files with queries of an evaluation that are no tasks: leaks are looked for in them.
    """

    datasets: list[FoundDataset] = field(default_factory=list)
    tasks: list[FoundTask] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    against: list[str] = field(default_factory=list)


def search_folder(root: Path) -> Found:
    """Look for datasets and evaluation sets in a folder and the folders in it; of the rows hardly any is read.

    Evaluation sets are folders in the layout of BEIR, MIRACL, MKQA or CQADupStack, whatever they are called, and files
    of rows whose name, or a folder of theirs, says `test`, `dev`, `eval` or the like. All other data files are training
    data; part files (`part-00001-of-00008.parquet`) are one dataset. Hidden files, models and run folders are passed
    over.

    Args:
        root: The folder.

    Raises:
        DataError: There is no such folder.
    """
    refuse_what_is_no_folder(root)
    found = Found()
    _search(root, root, found, _DEEPEST)
    _name_apart(found)
    return found


def refuse_what_is_no_folder(root: Path) -> None:
    """Refuse a path that cannot be searched.

    Raises:
        DataError: It is a file, or not there.
    """
    if root.is_file():
        raise DataError("this is a file, not a folder", where=root, do=f"give the folder that it is in: {root.parent}")
    if not root.is_dir():
        raise DataError("there is no such folder", where=root, do="give the folder that your datasets are in")


def name_of(path: str) -> str:
    """Make the name of a dataset or task from its path: of the file, or of its folder where the file's says nothing.

    Example:
        >>> name_of("train/nq pairs.jsonl.gz"), name_of("quora/train.csv"), name_of("wiki/part-0001.parquet")
        ('nq_pairs', 'quora', 'wiki')
    """
    for part in reversed(Path(path).parts):
        stem, _ = _part_of(_ENDINGS.sub("", part))
        bare = _WORDS.sub("", stem.lower()).strip("-_. ")
        if bare not in _GENERIC:
            stem = re.sub(r"^(train|training)[-_. ]+|[-_. ]+(train|training)$", "", stem)
            return re.sub(r"[^\w-]+", "_", stem).strip("_-") or "data"
    return "data"


def _search(folder: Path, root: Path, found: Found, depth: int) -> None:
    """Search a folder."""
    if folder != root and _is_passed_over(folder):
        return
    if (folder / "state.json").is_file():
        _add_rows(found, root, (folder,))
        return
    if _is_task(folder):
        _add_task(found, root, folder)
        return
    files = sorted(child for child in folder.iterdir() if child.is_file() and not child.name.startswith((".", "_")))
    data = [file for file in files if _ENDINGS.search(file.name) and file.name not in _OF_LIBRARIES]
    for group in _groups(data):
        if len(group) == 1 and re.search(r"mkqa.*\.jsonl(\.gz)?$", group[0].name):
            _add_task(found, root, group[0])
        else:
            _add_rows(found, root, group)
    if depth:
        for child in sorted(child for child in folder.iterdir() if child.is_dir()):
            _search(child, root, found, depth - 1)


def _is_passed_over(folder: Path) -> bool:
    """Whether a folder is hidden, a model or a run."""
    if folder.name.startswith((".", "_")):
        return True
    return any((folder / name).is_file() for name in ("modules.json", "resolved.yaml", "events.jsonl", "config.json"))


def _is_task(folder: Path) -> bool:
    """Whether a folder has the layout of an evaluation set, complete or not."""
    mkqa = any((folder / f"mkqa.jsonl{end}").is_file() for end in ("", ".gz"))
    return mkqa or is_beir(folder) or is_cqadupstack(folder) or is_miracl(folder)


def _add_task(found: Found, root: Path, path: Path) -> None:
    """Add an evaluation set, and the training split that a BEIR folder may have."""
    given = path.relative_to(root).as_posix()
    name = name_of(given if given != "." else root.resolve().name)
    splits = [file.stem for file in sorted((path / "qrels").glob("*.tsv"))] if path.is_dir() else []
    if "train" in splits:
        found.datasets.append(FoundDataset(name, (given,)))  # which reads the split train
        splits.remove("train")
        if not splits:
            return
    chosen = next((split for split in ("test", "dev") if split in splits), splits[0] if splits else "")
    problem = ""
    for split in dict.fromkeys(("", chosen)):
        options = TaskConfig(path=given, split=split)
        try:
            found.tasks.append(FoundTask(options, find_task(name, options, root)))
            return
        except (DataError, ConfigError) as error:
            problem = problem or reason(error)
    found.left_out[given] = problem


def _add_rows(found: Found, root: Path, files: Sequence[Path]) -> None:
    """Add a file of rows, or the part files of one dataset, as training data or as an evaluation set."""
    folder = files[0].parent
    paths = tuple(file.relative_to(root).as_posix() for file in files)
    if len(files) > 1:
        try:
            if set(find_source(folder).files) == set(files):
                paths = (folder.relative_to(root).as_posix(),)
        except DataError:
            pass  # other files are beside the parts
    if not _is_evaluation(paths[0]):
        named = paths[0] if paths[0] != "." else root.resolve().name
        found.datasets.append(FoundDataset(name_of(named), paths))
        return
    options = TaskConfig(path=paths[0], kind="rows")
    try:
        if len(paths) > 1:
            raise DataError("an evaluation set of rows is one file or folder", do="put the parts into a folder")
        first_row(files[0])
        found.tasks.append(FoundTask(options, find_task(name_of(paths[0]), options, root)))
    except (DataError, ConfigError) as error:
        found.left_out[paths[0]] = f"{reason(error)}; its queries count as test queries when leaks are looked for"
        found.against += paths


def first_row(path: Path) -> Row:
    """Read the first row of a file, to see whether it has rows at all.

    Raises:
        DataError: It has none, or one that cannot be used.
    """
    for number, place, record in find_source(path).records(repeat(True)):
        return RowParser("").parse(record, place, number)
    raise DataError("empty dataset", where=path, do="give it at least one row")


def _is_evaluation(path: str) -> bool:
    """Whether the name of a file, or else of a folder that it is in, says that it is for evaluation.

    Example:
        >>> _is_evaluation("nq/dev.jsonl"), _is_evaluation("eval/train.jsonl"), _is_evaluation("latest/nq.jsonl")
        (True, False, False)
    """
    for part in reversed(Path(path).parts):
        said = {bool(match[2]) for match in _WORDS.finditer(part.lower())}
        if said:
            return said == {True}
    return False


def _groups(files: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Put part files of one dataset together: the same name but for the number at its end."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for file in files:
        stem, part = _part_of(_ENDINGS.sub("", file.name))
        ending = file.name.removeprefix(_ENDINGS.sub("", file.name))
        groups.setdefault((f"{stem}{ending}", "part" if part else "whole"), []).append(file)
    for group in groups.values():
        yield tuple(group)


def _part_of(stem: str) -> tuple[str, str]:
    """Split the name of a part file, whose number has three digits or says of how many, or whose name says nothing.

    Example:
        >>> _part_of("wiki-00001-of-00008"), _part_of("part-1"), _part_of("nq-v1")
        (('wiki', '-00001-of-00008'), ('part', '-1'), ('nq-v1', ''))
    """
    found = _PART.search(stem)
    if found and (re.search(r"\d{3}|-of-", found[0]) or stem[: found.start()].lower() in _GENERIC):
        return stem[: found.start()], found[0]
    return stem, ""


def _name_apart(found: Found) -> None:
    """Give datasets of the same name, and tasks of the same name, the name of their folder in front, or a number."""
    datasets = _apart([(one.name, one.paths[0]) for one in found.datasets])
    found.datasets = [FoundDataset(name, one.paths) for name, one in zip(datasets, found.datasets, strict=True)]
    tasks = _apart([(one.task.name, one.options.path) for one in found.tasks])
    renamed = zip(tasks, found.tasks, strict=True)
    found.tasks = [FoundTask(one.options, Task(name, one.task.parts, one.task.main)) for name, one in renamed]


def _apart(named: Sequence[tuple[str, str]]) -> list[str]:
    """Return names that differ by more than - and _.

    Example:
        >>> _apart([("nq", "a/nq.jsonl"), ("nq", "b/nq.jsonl"), ("wiki", "wiki.csv")])
        ['a_nq', 'b_nq', 'wiki']
    """
    names: list[str] = []
    for name, path in named:
        twins = sum(other.replace("-", "_").lower() == name.replace("-", "_").lower() for other, _ in named)
        folder = os.path.basename(os.path.dirname(path))
        name = f"{name_of(folder)}_{name}" if twins > 1 and folder else name
        number = 2
        while name in names:
            name, number = f"{re.sub(r'_[0-9]+$', '', name)}_{number}", number + 1
        names.append(name)
    return names


def reason(error: DataError | ConfigError) -> str:
    """Write an error in one line; advice that takes more than a line is in the manual."""
    columns = list(map(str, error.saw)) if isinstance(error.saw, list) else []
    more = ", ..." if len(columns) > _COLUMNS else ""
    what = f"{error.what}, saw {', '.join(columns[:_COLUMNS])}{more}" if columns else error.what
    return f"{what}; {error.do}" if error.do and len(error.do) <= _ADVICE else what
