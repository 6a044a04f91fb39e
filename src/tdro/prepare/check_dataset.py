"""Read one dataset once and find out everything that `tdro check` says about it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tdro.config import DatasetConfig, Study
from tdro.data.examples import with_instruction
from tdro.data.hub import is_address
from tdro.data.reading import Scan, content_hash, texts_of
from tdro.data.records import Passage, Row
from tdro.data.sources import find_source
from tdro.errors import DataError, TdroError
from tdro.files import cache_folder
from tdro.instructions import known_instruction
from tdro.prepare.columns import Column
from tdro.prepare.dataset_report import ROLES, DatasetReport, Role
from tdro.prepare.demands import needs_negatives, training_sections, wanted_negatives
from tdro.prepare.findings import KEPT, Findings
from tdro.prepare.odd_texts import oddities
from tdro.prepare.profile import SAMPLE, Lengths, Sample, languages, measure
from tdro.prepare.repeats import Passages, Places, hash_exactly, hash_text, repeats

TICK = 1000
"""Rows between two calls of `tick`."""

_SHOWN_ROWS = 3  # rows of the dataset that the data card shows
_MANY_EPOCHS = 20
_MANY_CUT = 0.25
_ONE_ROLE = 1 << 16  # passages of one role that a place can number
_CUT = 300  # characters of a text in the data card


class Tables(NamedTuple):
    """Hashes of a dataset, to compare it with others: of its rows in file order, and of its passages."""

    queries_N: np.ndarray
    pairs_N: np.ndarray
    passages_P: np.ndarray
    places: Places
    repeated_rows: np.ndarray


def files_of(study: Study, name: str) -> list[Path]:
    """List the files of a dataset that are on this machine; none where they cannot be found."""
    paths = [path for path in study.files_of(name) if not is_address(path)]
    try:
        return [file for path in paths for file in find_source(Path(path)).files]
    except (TdroError, OSError):
        return []


def instruction_of(study: Study, name: str) -> tuple[str, str]:
    """Return the instruction that a dataset's queries get, and the one that the table has where they get none."""
    options = study.data.datasets[name]
    known = known_instruction(name, options.category) or ""
    if options.instruction or study.data.instructions == "auto":
        return options.instruction or known, ""
    return "", known


def check_dataset(
    study: Study,
    name: str,
    work: Path,
    *,
    tokenizer: Path | None = None,
    tick: Callable[[int], None] = lambda rows: None,
) -> tuple[DatasetReport, Tables]:
    """Read a dataset and report on it.

    Texts count as the same when they differ in case, white space or Unicode composition only.

    Args:
        study: The study.
        name: One of its datasets.
        work: Folder where hashes wait, 40 bytes per row and 24 per passage; the tables read them there.
        tokenizer: Folder of the encoder whose tokenizer measures lengths; None counts words.
        tick: Called with the number of rows read since its last call; may raise to end the check.

    Returns:
        The report, and the tables that compare datasets.
    """
    paths = study.files_of(name)
    scan, found = Scan(name, paths, texts=texts_of(study, name)), _Found(study, name, work)
    number = 0
    for number, (place, row) in enumerate(scan, start=1):
        if isinstance(row, DataError):
            found.refuse(place, row, "unreadable" if row in scan.cut_short else "bad-row")
        else:
            found.take(place, row)
        if number % TICK == 0:
            tick(TICK)
    tick(number % TICK)
    return found.report(tuple(map(str, paths)), scan, tokenizer), found.tables()


@dataclass
class _Found:
    """Everything that is gathered while the rows go by."""

    study: Study
    name: str
    work: Path
    bad_rows: int = 0
    fewest_negatives: int = 1 << 62
    most_negatives: int = 0
    without_negatives: int = 0
    samples: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        def column(kind: str) -> Path:
            return self.work / f"{self.name}.{kind}"

        self.queries, self.pairs = Column(column("queries")), Column(column("pairs"))
        self.wholes, self.ids = Column(column("wholes")), Column(column("ids"))
        self.places, self.passages = Places(column("places")), Passages(column("passages"))
        self.findings = Findings(self.name)
        self.options: DatasetConfig = self.study.data.datasets[self.name]
        self.texts = {role: Sample(SAMPLE, self.study.seed, self.name, role) for role in ROLES}
        self.characters = dict.fromkeys(ROLES, 0)
        self.wanted = wanted_negatives(self.study)
        self.needs_negatives = needs_negatives(self.study, self.name)
        self.repeated_rows = np.empty(0, np.int64)

    def refuse(self, place: str, problem: DataError, code: str) -> None:
        """Note a record that is no row, or a file that cannot be read."""
        self.bad_rows += code == "bad-row"
        where = str(problem.where or "")
        where = where if where.startswith(place) else place
        saw = "" if problem.saw is None else str(problem.saw)
        self.findings.add(code, where, saw, what=problem.what, do=problem.do or "")

    def take(self, place: str, row: Row) -> None:
        """Note a row."""
        number = len(self.places)
        self.places.add(place)
        query = hash_text(row.query)
        positives = [hash_text(passage.full_text) for passage in row.positives]
        negatives = [hash_text(passage.full_text) for passage in row.negatives]
        self.queries.add(query)
        self.pairs.add(hash_exactly((query + b"".join(sorted(set(positives)))).hex()))
        self.wholes.add(_hash_row(row))
        self.ids.add(hash_exactly(row.query_id))
        self._note_text(place + ":query", row.query, "query")
        self._note_passages(number, place, "positive", row.positives, positives)
        self._note_passages(number, place, "negative", row.negatives, negatives)
        self._compare(place, row, query, positives, negatives)
        self._count_negatives(place, len(negatives))
        if number < _SHOWN_ROWS:
            first = row.negatives[0].full_text[:_CUT] if row.negatives else ""
            self.samples.append((row.query[:_CUT], row.positives[0].full_text[:_CUT], first))

    def _note_text(self, place: str, text: str, role: Role) -> None:
        """Sample a text and say what is odd about it."""
        self.texts[role].add(text)
        self.characters[role] += len(text)
        for code, saw in oddities(text, "query" if role == "query" else "passage"):
            self.findings.add(code, place, saw)

    def _note_passages(
        self, number: int, place: str, role: Role, passages: tuple[Passage, ...], hashes: list[bytes]
    ) -> None:
        """Note the passages of one role."""
        base = (2 * number + (role == "negative")) * _ONE_ROLE
        for i, (passage, text) in enumerate(zip(passages, hashes, strict=True)):
            self._note_text(f"{place}:{role}[{i}]", passage.full_text, role)
            self.passages.add(hash_exactly(passage.id), text, base + min(i, _ONE_ROLE - 1))
        if len(set(hashes)) < len(hashes):
            for i, text in enumerate(hashes):
                if text in hashes[:i]:
                    self.findings.add(f"repeated-{role}", f"{place}:{role}[{i}]", passages[i].full_text)

    def _compare(self, place: str, row: Row, query: bytes, positives: list[bytes], negatives: list[bytes]) -> None:
        """Compare the query and the positives with what they should differ from."""
        for i, text in enumerate(positives):
            if text == query:
                self.findings.add("query-is-positive", f"{place}:positive[{i}]", row.query)
        for i in positives_among(row, positives, negatives):
            self.findings.add("positive-among-negatives", f"{place}:negative[{i}]", row.negatives[i].full_text)
        if query in negatives:
            for i, text in enumerate(negatives):
                if text == query and text not in positives:
                    self.findings.add("query-among-negatives", f"{place}:negative[{i}]", row.query)

    def _count_negatives(self, place: str, number: int) -> None:
        """Count the negatives of a row, and say when they are too few and mining adds none."""
        self.fewest_negatives = min(self.fewest_negatives, number)
        self.most_negatives = max(self.most_negatives, number)
        self.without_negatives += number == 0
        if number == 0 and self.needs_negatives:
            self.findings.add("no-negatives", f"{place}:negative")
        elif 0 < number < self.wanted:
            self.findings.add("few-negatives", f"{place}:negative", f"{number} of {self.wanted}")

    def tables(self) -> Tables:
        """Return what compares this dataset with others."""
        return Tables(self.queries.read(), self.pairs.read(), self.passages.texts(), self.places, self.repeated_rows)

    def report(self, paths: tuple[str, ...], scan: Scan, tokenizer: Path | None) -> DatasetReport:
        """Look at the whole, and report."""
        for column in sorted(scan.unread):
            self.findings.add("unread-column", ", ".join(paths), column)
        rows = len(self.places)
        if not rows and not self.findings.counts["unreadable"]:
            self.findings.add("no-rows", ", ".join(paths))
        distinct = self._find_repeats() if rows else 0
        self._find_id_conflicts()
        instruction, suggestion = instruction_of(self.study, self.name)
        if rows and not instruction:
            do = f"write instruction: {suggestion!r}, or set data.instructions: auto" if suggestion else ""
            self.findings.add("no-instruction", f"data.datasets.{self.name}.instruction", do=do)
        lengths = self._lengths(instruction, tokenizer)
        epochs = self._epochs(rows)
        return DatasetReport(
            name=self.name,
            paths=paths,
            layouts=dict(scan.layouts),
            content=self._content(),
            license=self.options.license,
            category=self.options.category,
            instruction=instruction,
            suggestion=suggestion,
            rows=rows,
            bad_rows=self.bad_rows,
            distinct_queries=distinct,
            positives=self.texts["positive"].seen,
            negatives=self.texts["negative"].seen,
            fewest_negatives=self.fewest_negatives if rows else 0,
            most_negatives=self.most_negatives,
            without_negatives=self.without_negatives,
            characters={role: self.characters[role] for role in ROLES},
            lengths=lengths,
            languages={role: languages(self.texts[role].texts) for role in ROLES[:2] if rows},
            epochs=epochs,
            samples=tuple(self.samples),
            counts=dict(self.findings.counts),
            findings=tuple(self.findings.kept),
        )

    def _find_repeats(self) -> int:
        """Say which rows, pairs, queries and query ids occurred before; return the number of distinct queries."""
        queries_N = self.queries.read()
        self.repeated_rows, first_rows = repeats(self.wholes.read())
        self._add_repeats("repeated-row", self.repeated_rows, first_rows)
        pairs, first_pairs = repeats(self.pairs.read())
        new = ~np.isin(pairs, self.repeated_rows)
        self._add_repeats("repeated-pair", pairs[new], first_pairs[new])
        queries, first_queries = repeats(queries_N)
        new = ~np.isin(queries, pairs)
        self._add_repeats("repeated-query", queries[new], first_queries[new])
        ids, first_ids = repeats(self.ids.read())
        new = queries_N[ids] != queries_N[first_ids]
        self._add_repeats("query-id-twice", ids[new], first_ids[new], "query_id")
        return len(queries_N) - len(queries)

    def _add_repeats(self, code: str, later: np.ndarray, first: np.ndarray, where: str = "query") -> None:
        """Note rows that repeat something of an earlier row."""
        for row, before in zip(later[:KEPT].tolist(), first[:KEPT].tolist(), strict=True):
            self.findings.add(code, f"{self.places[row]}:{where}", f"also in {self.places[before]}")
        self.findings.count(code, len(later) - KEPT)

    def _find_id_conflicts(self) -> None:
        """Say which passage ids stand for different texts."""
        conflicts = self.passages.id_conflicts()
        for later, earlier in conflicts[:KEPT]:
            self.findings.add("passage-id-twice", self._passage_place(later), f"also in {self._passage_place(earlier)}")
        self.findings.count("passage-id-twice", len(conflicts) - KEPT)

    def _passage_place(self, number: int) -> str:
        """Write the place of a passage."""
        row, index = divmod(number, _ONE_ROLE)
        return f"{self.places[row // 2]}:{'negative' if row % 2 else 'positive'}[{index}]"

    def _lengths(self, instruction: str, tokenizer: Path | None) -> dict[str, Lengths]:
        """Measure the sampled texts as training writes them."""
        data = self.study.data
        lengths: dict[str, Lengths] = {}
        for role in ROLES:
            is_query = role == "query"
            given = instruction if is_query or self.options.symmetric else ""
            texts = [with_instruction(text, given, data.instruction_template) for text in self.texts[role].texts]
            limit = data.query_max_length if is_query else data.passage_max_length
            found = measure(texts, tokenizer, limit)
            if found is None:
                continue
            lengths[role] = found
            if found.cut is not None and found.cut > _MANY_CUT:
                option = "data.query_max_length" if is_query else "data.passage_max_length"
                saw = f"{found.cut:.0%} of the {role} texts are longer than {limit} tokens"
                self.findings.add("truncation", option, saw, do=f"raise {option}, or shorten the texts")
        return lengths

    def _epochs(self, rows: int) -> dict[str, float]:
        """Compute how often each stage sees a row when it samples uniformly, and say when that is odd."""
        study, groups = self.study, len(self.study.data.datasets)
        used = min(rows, self.options.max_rows or study.data.max_rows or rows)
        if not used:
            return {}
        epochs = {}
        for stage, config in training_sections(study).items():
            batch = config.batch_size if stage == "reference" else -(-config.batch_size // groups)
            epochs[stage] = round(config.steps * config.batch_size / groups / used, 3)
            if used < batch:
                saw = f"{used} rows; a {stage} batch takes {batch}"
                self.findings.add("small-dataset", f"{stage}.batch_size", saw)
            if epochs[stage] > _MANY_EPOCHS:
                self.findings.add("many-epochs", f"{stage}.steps", f"{epochs[stage]:.0f} epochs of {used} rows")
        return epochs

    def _content(self) -> str:
        """Hash the bytes of the files."""
        try:
            behind = texts_of(self.study, self.name).given.values()
            files = [*files_of(self.study, self.name), *(file for source in behind for file in source.files)]
            hashes = [content_hash(file, cache_folder() / "datasets") for file in files]
        except (OSError, DataError):
            return ""
        return hash_exactly(" ".join(hashes)).hex() if hashes else ""


def positives_among(row: Row, positives: list[bytes], negatives: list[bytes]) -> Iterator[int]:
    """Yield the numbers of the negatives that are positives of the row, by text or by id.

    Args:
        row: The row.
        positives: Hashes of its positives.
        negatives: Hashes of its negatives.
    """
    ids = {passage.id for passage in row.positives}
    for i, (passage, text) in enumerate(zip(row.negatives, negatives, strict=True)):
        if text in positives or passage.id in ids:
            yield i


def _hash_row(row: Row) -> bytes:
    """Hash all texts of a row as they are, in their order; ids do not count."""
    positives, negatives = ([p.title, p.text] for p in row.positives), ([p.title, p.text] for p in row.negatives)
    return hash_exactly(repr([row.query, *positives, None, *negatives]))
