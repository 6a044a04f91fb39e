"""Check every dataset of a study: read each file once, in parallel, and say what is wrong with it."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing.context import SpawnContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml

from tdro.config import Study
from tdro.errors import ConfigError, EnvironmentProblem
from tdro.files import atomic_path, write_text
from tdro.prepare.check_dataset import check_dataset, files_of
from tdro.prepare.dataset_report import DatasetReport
from tdro.prepare.findings import KINDS, Finding, Findings, Level
from tdro.prepare.overlaps import Overlap, compare, keep_tables
from tdro.prepare.repair import Repaired, repair_dataset
from tdro.prepare.repeats import Places

Progress = Callable[[int, int, int], None]
"""Called with bytes of the datasets that are finished, bytes of all of them, and rows read so far."""

_WAIT = 0.2  # seconds between two reports of progress


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What is known of a study's datasets.

    Args:
        study: Name of the study.
        version: Of tdro.
        date: When the check ended, UTC, ISO 8601.
        unit: What lengths are counted in: "tokens" or "words".
        datasets: In the order of the study.
        overlaps: Of the pairs of datasets that share something.
        counts: (dataset, code) -> how often it was found; exact.
        findings: The first of each dataset and code, the most important first.
        repaired: What `fix_copy` wrote.
    """

    study: str
    version: str
    date: str
    unit: str
    datasets: tuple[DatasetReport, ...]
    overlaps: tuple[Overlap, ...]
    counts: Mapping[tuple[str, str], int]
    findings: tuple[Finding, ...]
    repaired: tuple[Repaired, ...] = ()

    def total(self, level: Level) -> int:
        """Count the findings of a level."""
        return sum(number for (_, code), number in self.counts.items() if KINDS[code].level == level)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as it is written to check.json."""
        datasets = []
        for report in self.datasets:
            fields = asdict(report)
            del fields["findings"], fields["counts"]
            datasets.append(fields)
        return {
            "study": self.study,
            "tdro": self.version,
            "date": self.date,
            "unit": self.unit,
            "totals": {level: self.total(level) for level in ("error", "warning", "note")},
            "counts": [
                {"level": KINDS[code].level, "code": code, "dataset": dataset, "count": number}
                for (dataset, code), number in self.counts.items()
            ],
            "findings": [{"level": finding.level, **asdict(finding)} for finding in self.findings],
            "datasets": datasets,
            "overlaps": [asdict(overlap) for overlap in self.overlaps],
            "repaired": [asdict(repaired) for repaired in self.repaired],
        }


class _Task(NamedTuple):
    """One dataset for a worker."""

    study: Study
    name: str
    tokenizer: Path | None
    work: Path
    fix_copy: Path | None


class _Done(NamedTuple):
    """What a worker sends back; the tables are in the work folder."""

    report: DatasetReport
    places: Places
    repaired: Repaired | None


class _Stopped(Exception):
    """The check was interrupted."""


def check(
    study: Study,
    *,
    tokenizer: Path | None = None,
    fix_copy: Path | None = None,
    processes: int | None = None,
    progress: Progress | None = None,
) -> CheckResult:
    """Read every dataset of a study once and report on it; datasets are read in parallel, the largest first.

    Memory does not grow with the rows, but for 8 bytes of each that repeats another. Hashes wait in a temporary folder
    (TMPDIR): up to 80 bytes per row and 40 per passage.

    Args:
        study: The study.
        tokenizer: Folder of the encoder whose tokenizer measures lengths; None counts words.
        fix_copy: Folder for repaired copies: NAME.jsonl, dropped.jsonl and datasets.yaml, a piece of a study with the
            new paths. Every dataset is read twice then.
        processes: How many; as many as there are cores by default. 1 works in this process.
        progress: Called a few times a second.

    Returns:
        The result.

    Raises:
        ConfigError: A file of a dataset is in `fix_copy`.
        EnvironmentProblem: A worker process died, or a file cannot be written.
    """
    names = list(study.data.datasets)
    sizes = {name: sum(file.stat().st_size for file in files_of(study, name)) for name in names}
    if fix_copy is not None:
        _refuse_own_files(study, fix_copy)
    with TemporaryDirectory(prefix="tdro-check-") as folder:
        work = Path(folder)
        tasks = {name: _Task(study, name, tokenizer, work, fix_copy) for name in sorted(names, key=lambda n: -sizes[n])}
        processes = min(processes or _cores(), len(names))
        show = progress or (lambda done, total, rows: None)
        run = _run_here if processes == 1 else _run_in_parallel
        done = run(tasks, sizes, processes, show)
        overlaps, findings = compare(names, work, {name: done[name].places for name in names})
        repaired = tuple(found for name in names if (found := done[name].repaired) is not None)
        if fix_copy is not None:
            _finish_copy(study, fix_copy, work, repaired)
    reports = tuple(done[name].report for name in names)
    return _result(study, reports, overlaps, findings, repaired, "words" if tokenizer is None else "tokens")


def _result(
    study: Study,
    reports: tuple[DatasetReport, ...],
    overlaps: tuple[Overlap, ...],
    between: list[Findings],
    repaired: tuple[Repaired, ...],
    unit: str,
) -> CheckResult:
    """Put the parts together."""
    counts = {(report.name, code): number for report in reports for code, number in report.counts.items()}
    findings = [finding for report in reports for finding in report.findings]
    for found in between:
        counts |= {(found.dataset, code): number for code, number in found.counts.items()}
        findings += found.kept
    rank = {code: i for i, code in enumerate(KINDS)}
    return CheckResult(
        study=study.name,
        version=metadata.version("tdro"),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        unit=unit,
        datasets=reports,
        overlaps=overlaps,
        counts=dict(sorted(counts.items(), key=lambda item: rank[item[0][1]])),
        findings=tuple(sorted(findings, key=lambda finding: rank[finding.code])),
        repaired=repaired,
    )


def _cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(task: _Task, tick: Callable[[int], None]) -> _Done:
    """Check a dataset, and repair a copy of it if asked."""
    report, tables = check_dataset(task.study, task.name, task.work, tokenizer=task.tokenizer, tick=tick)
    keep_tables(task.work, task.name, tables)
    repaired = None
    if task.fix_copy is not None:
        out, dropped = task.fix_copy / f"{task.name}.jsonl", task.work / f"{task.name}.dropped"
        repaired = repair_dataset(task.study, task.name, out, dropped, tables.repeated_rows, tick)
    return _Done(report, tables.places, repaired)


def _run_here(tasks: Mapping[str, _Task], sizes: Mapping[str, int], processes: int, show: Progress) -> dict[str, _Done]:
    """Check one dataset after the other in this process."""
    done: dict[str, _Done] = {}
    rows = 0

    def tick(more: int) -> None:
        nonlocal rows
        rows += more
        show(sum(sizes[name] for name in done), sum(sizes.values()), rows)

    for name, task in tasks.items():
        done[name] = _work(task, tick)
    tick(0)
    return done


_shared: Any = None  # in a worker: the event that ends it and the count of rows of all workers


def _start_worker(stop: Any, rows: Any) -> None:
    """Prepare a worker."""
    global _shared
    _shared = (stop, rows)


def _work_in_worker(task: _Task) -> _Done:
    """Check a dataset in a worker."""
    stop, rows = _shared

    def tick(more: int) -> None:
        if stop.is_set():
            raise _Stopped
        with rows.get_lock():
            rows.value += more

    return _work(task, tick)


def _run_in_parallel(
    tasks: Mapping[str, _Task], sizes: Mapping[str, int], processes: int, show: Progress
) -> dict[str, _Done]:
    """Check datasets in processes of their own."""
    context = multiprocessing.get_context("spawn")
    done: dict[str, _Done] = {}
    with _pool(context, processes) as (pool, rows):
        with _without_ctrl_c():  # processes inherit it: they leave Ctrl-C to this one from their first moment on
            waiting = {pool.submit(_work_in_worker, task): name for name, task in tasks.items()}
        while waiting:
            finished, _ = wait(waiting, timeout=_WAIT, return_when=FIRST_COMPLETED)
            for future in finished:
                done[waiting.pop(future)] = future.result()
            show(sum(sizes[name] for name in done), sum(sizes.values()), rows.value)
    return done


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C within the block, where that can be done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _pool(context: SpawnContext, processes: int) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Start workers, and end them within a moment whatever happens; also count the rows that they have read."""
    stop, rows = context.Event(), context.Value("q", 0)
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(stop, rows))
    try:
        yield pool, rows
    except BrokenProcessPool:
        do = "see whether memory is full; with fewer processes less is needed at a time"
        raise EnvironmentProblem("a process of the check died", do=do) from None
    finally:
        stop.set()
        with _without_ctrl_c():  # a second one would leave behind workers that are about to start, and complain
            pool.shutdown(cancel_futures=True)


def _refuse_own_files(study: Study, folder: Path) -> None:
    """Refuse a folder that holds what would be read and written at the same time."""
    for name in study.data.datasets:
        for file in files_of(study, name):
            if file.resolve().parent == folder.resolve():
                do = "give another folder"
                raise ConfigError(
                    "the copy would be written among the originals", where="--fix-copy", saw=str(file), do=do
                )


def _finish_copy(study: Study, folder: Path, work: Path, repaired: tuple[Repaired, ...]) -> None:
    """Write the list of what was dropped, and the piece of a study; take copies without rows away."""
    with atomic_path(folder / "dropped.jsonl") as path, path.open("wb") as out:
        for copy in repaired:
            with (work / f"{copy.name}.dropped").open("rb") as part:
                shutil.copyfileobj(part, out)
    datasets = {}
    for copy in repaired:
        if not copy.rows:
            Path(copy.path).unlink()
            continue
        options = study.data.datasets[copy.name].model_dump(mode="json", exclude_defaults=True)
        datasets[copy.name] = options | {"path": str(Path(copy.path).resolve())}
    text = yaml.safe_dump({"data": {"datasets": datasets}}, sort_keys=False, allow_unicode=True, width=120)
    left_out = [copy.name for copy in repaired if not copy.rows]
    note = f"# left out, as no row of them can be used: {', '.join(left_out)}\n" if left_out else ""
    write_text(folder / "datasets.yaml", "# takes the place of data.datasets in the study\n" + note + text)
