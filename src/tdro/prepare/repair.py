"""Write a copy of a dataset without what must not be trained on, and list everything that was dropped or changed."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from tdro.config import Study
from tdro.data.hub import fetch, is_address
from tdro.data.layouts import RowParser
from tdro.data.lines import decode
from tdro.data.lookup import Lookup
from tdro.data.reading import texts_of, write_rows
from tdro.data.records import Passage, Row
from tdro.data.sources import find_source
from tdro.data.text_files import open_lookup
from tdro.errors import DataError
from tdro.files import cache_folder
from tdro.prepare.check_dataset import TICK, positives_among
from tdro.prepare.demands import needs_negatives
from tdro.prepare.findings import KINDS
from tdro.prepare.repeats import hash_text


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of a dataset.

    Args:
        name: The dataset.
        path: Its copy.
        rows: Rows written.
        dropped_rows: Rows left out, with their reasons in the list.
        dropped_passages: Passages left out of rows that were written.
        changed: Rows whose text was repaired.
    """

    name: str
    path: str
    rows: int
    dropped_rows: int
    dropped_passages: int
    changed: int


def repair_dataset(
    study: Study,
    name: str,
    out: Path,
    dropped: Path,
    repeated_rows: np.ndarray,
    tick: Callable[[int], None] = lambda rows: None,
) -> Repaired:
    """Copy a dataset as tDRO/Tevatron jsonl, with the repairs that leave no choice.

    Halves of surrogate pairs are removed from texts; empty negatives, negatives that are a positive of the row or
    repeat the query, and passages that occur twice in a row are left out; so are rows that cannot be used then, rows
    that occurred before, and, where nothing mines them, rows without negatives.

    Args:
        study: The study.
        name: One of its datasets.
        out: File to write, `.jsonl`.
        dropped: File to write: one JSON object with place, reason and content for each row, passage and change.
        repeated_rows: Numbers, rising, of the usable rows that occurred before.
        tick: Called with the number of rows read since its last call; may raise to end the work.

    Returns:
        The counts.
    """
    with dropped.open("w", encoding="utf-8") as file, open_lookup(texts_of(study, name)) as lookup:
        repair = _Repair(study, name, file, tick, lookup)
        rows = write_rows(repair.rows(repeated_rows), out)
    return Repaired(name, str(out), rows, repair.dropped_rows, repair.dropped_passages, repair.changed)


class _Repair:
    """The rows of a dataset, repaired on their way."""

    def __init__(self, study: Study, name: str, file: TextIO, tick: Callable[[int], None], lookup: Lookup) -> None:
        self.dropped_rows = self.dropped_passages = self.changed = 0
        self._lookup = lookup
        self._study, self._name, self._file, self._tick = study, name, file, tick
        self._needs_negatives = needs_negatives(study, name)

    def rows(self, repeated_rows: np.ndarray) -> Iterator[Row]:
        """Yield the rows that are kept."""
        repeated = iter([*repeated_rows.tolist(), -1])
        next_repeated, number = next(repeated), -1
        for place, row, is_repaired in self._read():
            number += not is_repaired
            if not is_repaired and number == next_repeated:
                next_repeated = next(repeated)
                self._drop_row(place, "repeated-row", row)
            elif (clean := self._clean(place, row)) is not None:
                yield clean

    def _read(self) -> Iterator[tuple[str, Row, bool]]:
        """Yield place and row of every record that is usable, or can be made so; and whether it was."""
        number = 0
        for path in self._study.files_of(self._name):
            try:
                source = find_source(
                    fetch(str(path), cache_folder() / "datasets" / "hub") if is_address(path) else Path(path)
                )
            except DataError as problem:
                self._drop_file(problem)
                continue
            parser = RowParser(self._name, self._lookup)
            for stream in source.streams():
                try:
                    for place, unit in stream:
                        number += 1
                        if number % TICK == 0:
                            self._tick(TICK)
                        yield from self._parse(parser, unit, place, number)
                except DataError as problem:
                    self._drop_file(problem)

    def _parse(self, parser: RowParser, unit: Any, place: str, number: int) -> Iterator[tuple[str, Row, bool]]:
        """Yield the row of a record, if there is a way."""
        record = None
        try:
            record = decode(unit, place)
            yield place, parser.parse(record, place, number), False
            return
        except DataError as problem:
            first = problem
        try:
            row = parser.parse(_mended(record), place, number)
        except DataError:
            content = record if record is not None else repr(unit)
            self._list(place, "row dropped", first.what, content)
            self.dropped_rows += 1
            return
        self._list(str(first.where or place), "changed", first.what, record)
        self.changed += 1
        yield place, row, True

    def _clean(self, place: str, row: Row) -> Row | None:
        """Return a row without the passages that must not be there; None if it is of no use then."""
        query = hash_text(row.query)
        positives = [hash_text(passage.full_text) for passage in row.positives]
        negatives = [hash_text(passage.full_text) for passage in row.negatives]
        wrong = dict.fromkeys(positives_among(row, positives, negatives), "positive-among-negatives")
        for i, text in enumerate(negatives):
            if text == query:
                wrong.setdefault(i, "query-among-negatives")
            elif text in negatives[:i]:
                wrong.setdefault(i, "repeated-negative")
        twice = {i: "repeated-positive" for i, text in enumerate(positives) if text in positives[:i]}
        if wrong or twice:
            kept = self._without(place, "positive", row.positives, twice)
            row = replace(row, positives=kept, negatives=self._without(place, "negative", row.negatives, wrong))
        if self._needs_negatives and not row.negatives:
            self._drop_row(place, "no-negatives", row)
            return None
        return row

    def _without(
        self, place: str, role: str, passages: tuple[Passage, ...], wrong: dict[int, str]
    ) -> tuple[Passage, ...]:
        """Leave passages out."""
        for i, code in sorted(wrong.items()):
            self._list(f"{place}:{role}[{i}]", "passage dropped", KINDS[code].what, _content(passages[i]))
        self.dropped_passages += len(wrong)
        return tuple(passage for i, passage in enumerate(passages) if i not in wrong)

    def _drop_row(self, place: str, code: str, row: Row) -> None:
        """List a row that is left out."""
        content = {
            "query_id": row.query_id,
            "query": row.query,
            "positive_passages": [_content(passage) for passage in row.positives],
            "negative_passages": [_content(passage) for passage in row.negatives],
        }
        self._list(place, "row dropped", KINDS[code].what, content)
        self.dropped_rows += 1

    def _drop_file(self, problem: DataError) -> None:
        """List what cannot be read any further."""
        self._list(str(problem.where), "rest of the file dropped", problem.what, problem.saw)
        self.dropped_rows += 1

    def _list(self, place: str, action: str, reason: str, content: object) -> None:
        """Write one line of the list."""
        entry = {"dataset": self._name, "place": place, "action": action, "reason": reason, "content": content}
        text = json.dumps(entry, ensure_ascii=False, default=repr)
        self._file.write(text.encode("utf-8", "backslashreplace").decode() + "\n")


def _content(passage: Passage) -> dict[str, Any]:
    """Return a passage as it is listed."""
    return {name: value for name, value in asdict(passage).items() if value not in (None, "")}


def _mended(record: Any) -> Any:
    """Return a record without halves of surrogate pairs and without empty negatives.

    Example:
        >>> _mended({"query": "who \\ud83d dances", "neg": ["trees", " ", None]})
        {'query': 'who  dances', 'neg': ['trees']}
    """
    mended = _whole_characters(record)
    if not isinstance(mended, dict):
        return mended
    for column in [column for column in mended if column.startswith("neg")]:
        value, scores = mended[column], mended.get(f"{column}_scores")
        if isinstance(value, list):
            kept = [not _is_empty(passage) for passage in value]
            mended[column] = list(compress(value, kept))
            if isinstance(scores, list):
                mended[f"{column}_scores"] = list(compress(scores, kept))
        elif _is_empty(value):
            mended[column] = None
    return mended


def _is_empty(passage: Any) -> bool:
    """Whether a passage has no text."""
    text = passage.get("text") if isinstance(passage, dict) else passage
    return text is None or (isinstance(text, str) and not text.strip())


def _whole_characters(value: Any) -> Any:
    """Join the halves of surrogate pairs in all texts of a value, and remove those without a partner."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    if isinstance(value, list):
        return [_whole_characters(item) for item in value]
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(item) for key, item in value.items()}
    return value
