"""How long the texts of a study are: a sample of every dataset and evaluation set, tokenised as training does it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tdro.config import Study, TaskConfig
from tdro.data.collate import tokenize
from tdro.data.examples import with_instruction
from tdro.data.hub import is_address
from tdro.data.layouts import RowParser
from tdro.data.mixture import seeded
from tdro.data.reading import read_study_dataset
from tdro.data.records import Row
from tdro.data.sources import Source, find_source
from tdro.errors import DataError
from tdro.evaluation.benchmarks import Part
from tdro.evaluation.tasks import find_task
from tdro.files import cache_folder
from tdro.retrieval.passage_files import passage_of

SAMPLE = 64
"""Rows of a dataset, and documents and queries of a task, that are looked at."""
READ = 200_000_000
"""Bytes of files up to which they are read as the run will read them; of larger ones the first rows are looked at."""
_UNPACKED = 3.0  # bytes of text per byte of a gzip file, where nothing better is known
_SIDE_FILES = ("queries", "topics", "qrels")  # names of the files of a task that hold no documents


@dataclass(frozen=True)
class DatasetTexts:
    """What is known of a dataset.

    Attributes:
        rows: Its rows, after max_rows.
        query_n: Tokens of the sampled queries, instruction included.
        positive_n: Tokens of sampled positives.
        negative_n: Tokens of sampled negatives; of positives, where negatives are still to be mined.
        passages: Passages per row as they are in the files.
        mined: Whether negatives will be mined.
        characters: Mean length of a passage.
    """

    rows: int
    query_n: list[int]
    positive_n: list[int]
    negative_n: list[int]
    passages: float
    mined: bool
    characters: float


@dataclass(frozen=True)
class TaskTexts:
    """What is known of an evaluation task, or of a part of one.

    Attributes:
        queries: Its queries.
        query_n: Tokens of sampled queries.
        documents: Its documents.
        document_n: Tokens of sampled documents.
        corpus: Identifies the documents: parts that share them encode them once.
    """

    queries: int
    query_n: list[int]
    documents: int
    document_n: list[int]
    corpus: str


@dataclass(frozen=True)
class StudyTexts:
    """Texts of a study.

    Attributes:
        datasets: Name -> texts.
        tasks: Label -> texts, of the evaluation.
        watch: Label -> texts, of the evaluation during training.
        tokens: Some of the token lists, to calibrate with.
        tokenize_seconds: Seconds per text.
        load_seconds: Seconds in which the model is loaded.
    """

    datasets: dict[str, DatasetTexts]
    tasks: dict[str, TaskTexts]
    watch: dict[str, TaskTexts]
    tokens: list[list[int]]
    tokenize_seconds: float
    load_seconds: float


def sample_study(study: Study, tokenizer: PreTrainedTokenizerBase, load_seconds: float) -> StudyTexts:
    """Look at a sample of everything that a study will embed.

    Args:
        study: The study.
        tokenizer: Of the model.
        load_seconds: How long loading it took.

    Raises:
        DataError: A dataset or a task cannot be read.
    """
    sampler = _Sampler(study, tokenizer)
    datasets = {name: sampler.dataset(name) for name in study.data.datasets}
    tasks, watch = (
        {label: found for name, options in named.items() for label, found in sampler.task(name, options)}
        for named in (study.evaluation.tasks, study.evaluation.watch)
    )
    per_text = sampler.seconds / max(sampler.texts, 1)
    return StudyTexts(datasets, tasks, watch, sampler.tokens, per_text, load_seconds)


class _Sampler:
    """Reads samples, and keeps count of how long tokenising took."""

    def __init__(self, study: Study, tokenizer: PreTrainedTokenizerBase) -> None:
        self._study, self._tokenizer = study, tokenizer
        self.tokens: list[list[int]] = []
        self.seconds, self.texts = 0.0, 0

    def dataset(self, name: str) -> DatasetTexts:
        """Look at a dataset."""
        study, options = self._study, self._study.data.datasets[name]
        count, rows = _sample_rows(study, name)
        passages = [[p.full_text for p in row.positives[:1]] for row in rows]
        negatives = [p.full_text for row in rows for p in row.negatives[:2]]
        lacking = study.mining.when == "missing" and any(not row.negatives for row in rows)
        mined = study.mining.when == "always" or lacking
        on_passages = options.instruction if options.symmetric else ""
        positive_n = self._lengths([text for texts in passages for text in texts], "passage", on_passages)
        return DatasetTexts(
            rows=count,
            query_n=self._lengths([row.query for row in rows], "query", options.instruction),
            positive_n=positive_n,
            negative_n=positive_n if mined or not negatives else self._lengths(negatives, "passage", on_passages),
            passages=float(np.mean([len(row.positives) + len(row.negatives) for row in rows])),
            mined=mined,
            characters=float(np.mean([len(text) for texts in passages for text in texts])),
        )

    def task(self, name: str, options: TaskConfig) -> list[tuple[str, TaskTexts]]:
        """Look at the parts of a task."""
        task = find_task(name, options, Path(self._study.data.root))
        return [(part.label, self._part(part, options)) for part in task.parts]

    def _part(self, part: Part, options: TaskConfig) -> TaskTexts:
        """Look at a part of a task."""
        corpus = " ".join(str(file) for file in part.files if not _is_side_file(file))
        if sum(file.stat().st_size for file in part.files) <= READ:
            benchmark = part.read(cache_folder(), None)
            documents, queries = len(benchmark.documents), list(benchmark.query_texts)
            texts = benchmark.documents.texts_at(np.array(_spread(documents), np.int64))
            query_count = len(queries)
        else:
            documents, texts = _head_of_passages([file for file in part.files if not _is_side_file(file)])
            query_count, queries = _head_of_queries([file for file in part.files if "quer" in file.name])
        sampled = [queries[number] for number in _spread(len(queries))]
        return TaskTexts(
            queries=query_count,
            query_n=self._lengths([text for text in sampled if text.strip()], "query", options.instruction),
            documents=documents,
            document_n=self._lengths(texts, "passage", ""),
            corpus=corpus,
        )

    def _lengths(self, texts: Sequence[str], kind: str, instruction: str) -> list[int]:
        """Tokenise texts; return how many tokens each has."""
        if not texts:
            return []
        data = self._study.data
        written = [with_instruction(text, instruction, data.instruction_template) for text in texts]
        length = data.query_max_length if kind == "query" else data.passage_max_length
        began = time.perf_counter()
        found = tokenize(self._tokenizer, written, length)
        self.seconds, self.texts = self.seconds + time.perf_counter() - began, self.texts + len(found)
        self.tokens += found
        return [len(tokens) for tokens in found]


def _sample_rows(study: Study, name: str) -> tuple[int, list[Row]]:
    """Return how many rows a dataset has, and some of them."""
    paths, options = study.files_of(name), study.data.datasets[name]
    if any(isinstance(path, str) and is_address(path) for path in paths) or _bytes(paths) <= READ:
        rows = read_study_dataset(study, name)
        picked = seeded(study.seed, "estimate", name).permutation(len(rows))[:SAMPLE]
        return len(rows), [rows[int(number)] for number in np.sort(picked)]
    count, found = 0, []
    for source in (find_source(Path(path)) for path in paths):
        parser = RowParser(name)
        records, of_source = _head(source)
        found += [parser.parse(record, place, number) for number, (place, record) in enumerate(records, start=1)]
        count += of_source
    limit = options.max_rows or study.data.max_rows
    count = options.size or count
    return min(count, limit) if limit else count, found


def _bytes(paths: Sequence[str | Path]) -> int:
    """Add up the sizes of the files of a dataset."""
    return sum(file.stat().st_size for path in paths for file in find_source(Path(path)).files)


def _head(source: Source) -> tuple[list[tuple[str, Any]], int]:
    """Return the first records of a source, each with its place, and about how many records there are."""
    records = [(place, record) for _, place, record in islice(source.records(repeat(True)), SAMPLE)]
    if not records:
        raise DataError("file without rows", where=source.files[0])
    if source.kind in ("parquet", "arrow", "beir"):
        return records, source.count()
    unpacked = _UNPACKED if source.kind.endswith(".gz") else 1.0
    size = sum(file.stat().st_size for file in source.files) * unpacked
    per_record = np.mean([len(str(record).encode("utf-8", "replace")) for _, record in records])
    return records, max(int(size / per_record), len(records))


def _head_of_passages(files: list[Path]) -> tuple[int, list[str]]:
    """Return about how many documents some files have, and the first of them."""
    count, texts = 0, []
    for file in files:
        records, of_file = _head(find_source(file))
        texts += [passage_of(record, place).full_text for place, record in records]
        count += of_file
    return count, texts[:SAMPLE]


def _head_of_queries(files: list[Path]) -> tuple[int, list[str]]:
    """Return about how many queries there are, and the first of them; of layouts that are not known, none."""
    if not files or ".jsonl" not in files[0].name:
        return 0, []
    records, count = _head(find_source(files[0]))
    return count, [str(record.get("text", "")) for _, record in records]


def _is_side_file(file: Path) -> bool:
    """Tell queries and judgements from documents."""
    return file.name.startswith(_SIDE_FILES) or file.parent.name == "qrels" or file.suffix == ".tsv"


def _spread(count: int) -> list[int]:
    """Pick numbers evenly from 0 to count - 1."""
    return sorted({int(number) for number in np.linspace(0, count - 1, min(count, SAMPLE))}) if count else []
