"""The gate before training: do the datasets hold queries that the study will be judged by?"""

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from tdro.config import LeakageConfig, fingerprint
from tdro.data.reading import Rows
from tdro.errors import DataError
from tdro.files import cache_folder, read_json, write_json
from tdro.prepare.evaluation_queries import EvaluationSet
from tdro.prepare.leakage import DatasetLeaks, Leak, LeakIndex, find_leaks
from tdro.prepare.leakage_report import examples, reasons, table, without, write_cleaned
from tdro.training.run import Run
from tdro.training.task_queries import query_sources

STAGE = "leakage"
_FORM = 1  # part of every key: raise it when the findings for the same rows would differ
_NAMED = 5  # datasets that an error names


def leakage_gate(run: Run, rows: dict[str, Rows]) -> dict[str, Rows]:
    """Compare every dataset with the queries of the study's tasks and of leakage.against, and act as leakage.gate says.

    off: nothing is read. warn: a note in the journal for each dataset that leaks. remove: leaking rows are left out and
    written to data/removed/NAME.jsonl, each with its reason. stop: the run ends. What was found is in
    data/leakage.json. A dataset is compared again only when its rows, the evaluation sets or the settings change.

    Args:
        run: The run.
        rows: Dataset -> rows.

    Returns:
        Dataset -> rows to train on.

    Raises:
        DataError: leakage.gate is `stop` and rows leak; all rows of a dataset leak; an evaluation set cannot be read
            (with `warn`, one that is not there is left out and noted).
    """
    config = run.study.leakage
    if config.gate == "off":
        return rows
    sets = evaluation_sets(run)
    if not sets:
        return rows
    found = _find(run, rows, sets)
    counts = {one.name: len(one.worst()) for one in found if one.worst()}
    _write_report(run, rows, found, sets)
    for name, leaking in counts.items():
        run.journal.write("note", STAGE, dataset=name, leaking=leaking, text=_sentence(run, name, leaking, found, sets))
    if config.gate == "stop" and counts:
        raise _refusal(run, counts)
    return _without_leaks(run, rows, found, sets) if config.gate == "remove" else rows


def evaluation_sets(run: Run) -> list[EvaluationSet]:
    """Read the queries of the study's tasks and of leakage.against.

    Raises:
        DataError: One of them cannot be read.
    """
    sets = []
    for name, path, read in query_sources(run.study):
        if run.study.leakage.gate == "warn" and not path.exists():
            run.journal.write("note", STAGE, text=f"{path} is not there; training data are not compared with {name}")
            continue
        sets += read()
    return sets


def _find(run: Run, rows: dict[str, Rows], sets: list[EvaluationSet]) -> list[DatasetLeaks]:
    """Look for leaks in every dataset, or recall what was found in the same rows before."""
    config, search = run.study.leakage, _Search(sets, run.study.leakage)
    found = []
    for done, (name, mine) in enumerate(rows.items()):
        run.journal.progress(STAGE, done, len(rows), dataset=name)
        path = cache_folder() / STAGE / f"{fingerprint(_FORM, mine.info.fingerprint, search.key, config.level)}.json"
        one = _recall(path, name, len(mine))
        if one is None:
            one = find_leaks(mine, search.index)
            write_json(path, {"leaks": [list(asdict(leak).values()) for leak in one.leaks]})
        found.append(one)
    run.journal.progress(STAGE, len(rows), len(rows))
    return found


class _Search:
    """What is searched for; the index is made when a dataset needs it."""

    def __init__(self, sets: list[EvaluationSet], config: LeakageConfig) -> None:
        self._sets, self._config = sets, config
        similarity = config.similarity if config.level == "near" else None
        self.key = fingerprint([[list(one.ids), list(one.queries)] for one in sets], similarity)

    @cached_property
    def index(self) -> LeakIndex:
        """The test queries, ready for look-ups."""
        return LeakIndex(self._sets, self._config.level, self._config.similarity)


def _recall(path: Path, name: str, rows: int) -> DatasetLeaks | None:
    """Read what was found before; None where there is nothing to be read."""
    try:
        stored = read_json(path)["leaks"]
        return DatasetLeaks(name, rows, tuple(Leak(*values) for values in stored))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_report(run: Run, rows: dict[str, Rows], found: list[DatasetLeaks], sets: list[EvaluationSet]) -> None:
    """Write data/leakage.json."""
    content: dict[str, Any] = {
        "settings": run.study.leakage.model_dump(mode="json"),
        "tests": {one.name: len(one.queries) for one in sets},
        "leaking_rows": {one.name: len(one.worst()) for one in found},
        "table": table(found, sets),
        "examples": [example for one in found for example in examples(one, rows[one.name], sets)],
    }
    write_json(run.folder / "data" / "leakage.json", content)


def _sentence(run: Run, name: str, leaking: int, found: list[DatasetLeaks], sets: list[EvaluationSet]) -> str:
    """Say how much of a dataset leaks, and into what."""
    one = next(one for one in found if one.name == name)
    tests = sorted({sets[leak.place].name for leak in one.leaks if leak.counts})
    what = "left out" if run.study.leakage.gate == "remove" else "kept; leakage.gate: remove leaves them out"
    rows = "1 row asks" if leaking == 1 else f"{leaking} rows ask"
    return f"{name}: {rows} what {', '.join(tests)} will ask ({leaking / one.rows:.2%}); {what}"


def _refusal(run: Run, counts: dict[str, int]) -> DataError:
    """Say which datasets leak, and what can be done."""
    worst = sorted(counts, key=lambda name: -counts[name])
    named = ", ".join(f"{name} {counts[name]}" for name in worst[:_NAMED])
    more = f" and {len(worst) - _NAMED} more datasets" if len(worst) > _NAMED else ""
    return DataError(
        "training rows ask what the evaluation will ask",
        where=run.folder / "data" / "leakage.json",
        saw=f"{named}{more}",
        do="set leakage.gate to remove to leave them out, or to warn to train on them; `tdro dedup` writes clean files",
    )


def _without_leaks(
    run: Run, rows: dict[str, Rows], found: list[DatasetLeaks], sets: list[EvaluationSet]
) -> dict[str, Rows]:
    """Leave leaking rows out, and write them down."""
    kept = dict(rows)
    for one in found:
        path = run.folder / "data" / "removed" / f"{one.name}.jsonl"
        gone = reasons(one, rows[one.name], sets)
        if not gone:
            path.unlink(missing_ok=True)
            continue
        if len(gone) == one.rows:
            do = "leave the dataset out, or set leakage.gate to warn"
            raise DataError("all rows of a dataset ask what the evaluation will ask", where=one.name, do=do)
        write_cleaned(rows[one.name], gone, None, path)
        kept[one.name] = without(rows[one.name], gone)
    return kept
