"""The reference's similarities, computed once and kept: every later measure, step size and temperature reuses them.

The reference is frozen, so what it says about a query and its passages never changes. Two forms are kept, each in
memory-mapped files under the cache folder, named by the content of everything they depend on:

`drawn`: of the passages that the steps of a study draw, step by step. Costs what the steps themselves would cost.
`all`: of every query to its positives and all its negatives, row by row. Serves any seed and any number of passages,
but not where a query has another instruction at every visit.

A file begins as NaN and is filled unit by unit (a step, or 256 rows). Units are the same however often the filling was
stopped, so what is stored does not depend on it, bit for bit.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tdro.config import fingerprint
from tdro.data.mixture import Draw, MixedMixture
from tdro.data.reading import Rows
from tdro.devices import ALONE, Ranks
from tdro.errors import EnvironmentProblem
from tdro.files import cache_folder, write_json
from tdro.locks import one_at_a_time
from tdro.retrieval.encoders import encoder_fingerprint
from tdro.training.own_similarities import similarities_of_all
from tdro.training.query_loss import varied_datasets
from tdro.training.run import Run
from tdro.training.texts import StepTexts, TextSource
from tdro.training.token_caches import wordings_of

UNIT_ROWS = 256
_BLOCK = 1 << 20


class ReferenceScores(Protocol):
    """Says how similar the reference finds the queries of a step and their passages."""

    def similarities(self, step: int, draw: Draw, texts: StepTexts) -> Tensor:
        """Return [B, N] similarities, the positive in column 0, -inf where no passage is; on the CPU."""


@dataclass(frozen=True)
class Batches:
    """The batches that stage 1 draws: rows, how they are drawn, and how many steps there will be."""

    rows: dict[str, Rows]
    mixture: MixedMixture
    source: TextSource
    seed: int
    steps: int

    def drawn(self, step: int, passages_per_query: int) -> tuple[Draw, StepTexts]:
        """Return the rows of a step and their texts."""
        draw = self.mixture.draw(step)
        return draw, self.source.texts(draw, passages_per_query)


class LiveScores:
    """Asks the reference in every step.

    Args:
        model: The reference.
        run: Its run.
        ranks: Who shares the work of a step.
    """

    def __init__(self, model: SentenceTransformer, run: Run, ranks: Ranks = ALONE) -> None:
        self._model, self._run, self._ranks = model.requires_grad_(False).eval(), run, ranks

    def similarities(self, step: int, draw: Draw, texts: StepTexts) -> Tensor:
        """Return [B, N] similarities."""
        return self.of_texts(texts)

    def of_texts(self, texts: StepTexts) -> Tensor:
        """Return [B, N] similarities."""
        return similarities_of_all(self._model, texts, self._run.device, self._run.max_tokens, self._ranks)


class DrawnScores:
    """Looks up what was stored of a step."""

    def __init__(self, file: "SimilarityFile", batch_size: int) -> None:
        self._file, self._batch_size = file, batch_size

    def similarities(self, step: int, draw: Draw, texts: StepTexts) -> Tensor:
        """Return [B, N] similarities."""
        values_BN = self._file.unit(step).reshape(self._batch_size, -1)
        return torch.from_numpy(values_BN[:, : int(texts.count_B.max())].copy())


class AllScores:
    """Looks up what was stored of every row.

    Args:
        rows: Dataset -> rows, in the order of the mixture.
        files: Dataset -> file of the rows that they were selected from.
    """

    def __init__(self, rows: dict[str, Rows], files: dict[str, "SimilarityFile"]) -> None:
        self._numbers = [dataset.numbers_n for dataset in rows.values()]
        self._values = [files[name].values for name in rows]
        self._starts = [_row_starts(dataset.source) for dataset in rows.values()]

    def similarities(self, step: int, draw: Draw, texts: StepTexts) -> Tensor:
        """Return [B, N] similarities."""
        count_B, place_P = texts.count_B.numpy(), texts.place_P.numpy()
        owner_P = np.repeat(np.arange(len(count_B)), count_B)
        column_P = np.arange(len(owner_P)) - (np.cumsum(count_B) - count_B)[owner_P]
        found_BN = np.full((len(count_B), int(count_B.max())), -np.inf, self._values[0].dtype)
        for dataset in np.unique(draw.dataset_B).tolist():
            here_P = draw.dataset_B[owner_P] == dataset
            row_P = self._numbers[dataset][draw.row_B[owner_P[here_P]]]
            at_P = self._starts[dataset][row_P] + place_P[here_P]
            found_BN[owner_P[here_P], column_P[here_P]] = self._values[dataset][at_P]
        return torch.from_numpy(found_BN)


class SimilarityFile:
    """Similarities of many units in one memory-mapped file; NaN stands for what was not computed yet.

    Args:
        folder: Made if absent; another number of units lengthens the file.
        starts_U: [units + 1] where each unit begins.
        dtype: float32, or float64 for a float64 model.
        about: What the file depends on, for people who look into the cache.

    Raises:
        EnvironmentProblem: The file cannot be written.
    """

    def __init__(self, folder: Path, starts_U: np.ndarray, dtype: np.dtype, about: dict[str, object]) -> None:
        self._starts_U = starts_U
        self.path = path = folder / f"similarities.{dtype.name}"
        wanted = int(starts_U[-1]) * dtype.itemsize
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_json(folder / "about.json", about)
            with one_at_a_time(folder / ".lock"), path.open("ab") as file:
                file.truncate(file.tell() - file.tell() % dtype.itemsize)
                while (left := (wanted - file.seek(0, 2)) // dtype.itemsize) > 0:
                    file.write(np.full(min(left, _BLOCK), np.nan, dtype).tobytes())
                    file.flush()
        except OSError as error:
            do = "free some space, use another TDRO_CACHE, or set weights.reference_similarities to live"
            raise EnvironmentProblem("similarities cannot be kept", where=path, saw=str(error), do=do) from None
        self.values = np.memmap(path, dtype, "r+", shape=(int(starts_U[-1]),))

    def unit(self, number: int) -> np.ndarray:
        """Return the numbers of a unit."""
        values: np.ndarray = self.values[self._starts_U[number] : self._starts_U[number + 1]]
        return values

    def missing(self) -> Iterator[int]:
        """Yield the units that were not computed yet."""
        yield from (u for u in range(len(self._starts_U) - 1) if np.isnan(self.unit(u)).any())

    def share(self, ranks: Ranks) -> None:
        """Let ranks on other machines see what rank 0 has written."""
        self.values.flush()
        ranks.barrier()
        self.values = np.memmap(self.path, self.values.dtype, "r+", shape=self.values.shape)

    def put(self, number: int, values: np.ndarray) -> None:
        """Keep the numbers of a unit; a NaN that the model itself gave is kept as +inf: no loss is finite with it."""
        self.unit(number)[:] = np.where(np.isnan(values), np.inf, values)


class ScoreStore:
    """Finds the reference's similarities in the cache, and has the reference compute what is missing.

    The reference is loaded only where something is missing, and gone when `prepare` returns.

    Args:
        run: The run whose reference it is.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._folder = run.folder / "reference" / "model"
        self._dtype = np.dtype(np.float64 if run.device.dtype == torch.float64 else np.float32)
        self._kept: dict[Path, int] = {}  # file -> units that were there before
        self._computed = 0

    def prepare(self, batches: list[Batches]) -> list[ReferenceScores]:
        """Return the similarities of batches, computing and keeping those that are not there.

        The journal gets how long that took, how many units were computed, and how many were there before.
        """
        how = self._run.study.weights.reference_similarities
        if how == "live":
            model = self._run.load(str(self._folder))
            return [LiveScores(model, self._run, self._run.ranks) for _ in batches]
        if how == "auto":
            is_cheap = _texts_of_all(batches) <= 2 * self._texts_of_drawn(batches)
            how = "all" if is_cheap and not varied_datasets(self._run.study) else "drawn"
        reference = _Lazy(self._run, self._folder)
        with self._timed(batches):
            return [(self._all if how == "all" else self._drawn)(b, reference) for b in batches]

    def _drawn(self, batches: Batches, reference: "_Lazy") -> ReferenceScores:
        """Similarities of the passages that the steps draw."""
        config = self._run.study.weights
        width = config.batch_size * config.passages_per_query
        rows = [(name, dataset.info.fingerprint) for name, dataset in batches.rows.items()]
        drawn = [rows, batches.seed, batches.mixture.sampling, config.batch_size, config.passages_per_query]
        options, first = self._run.study.data.datasets, [wordings[0] for wordings in self._wordings(batches.rows)]
        instructions = [[wording, options[name].symmetric] for name, wording in zip(batches.rows, first, strict=True)]
        key = [drawn, [self._text_settings, instructions], *self._choices(batches.rows)]
        file = self._open(key, np.arange(batches.steps + 1) * width, {"datasets": [n for n, _ in rows]})

        def look_at(step: int) -> np.ndarray:
            texts_of_step = batches.source.texts(batches.mixture.draw(step), config.passages_per_query)
            found_BN = reference.model.of_texts(texts_of_step).numpy()
            padded_BN = np.full((config.batch_size, config.passages_per_query), -np.inf, self._dtype)
            padded_BN[:, : found_BN.shape[1]] = found_BN
            return padded_BN.ravel()

        self._fill(file, look_at, batches.steps)
        return DrawnScores(file, config.batch_size)

    def _all(self, batches: Batches, reference: "_Lazy") -> ReferenceScores:
        """Similarities of every query to all its passages."""
        study = self._run.study
        files = {}
        sources = {name: dataset.source for name, dataset in batches.rows.items()}
        source = batches.source.over(sources)
        for number, ((name, rows), [wording]) in enumerate(zip(sources.items(), self._wordings(sources), strict=True)):
            starts_n = _row_starts(rows)
            first_U = np.append(np.arange(0, len(rows), UNIT_ROWS), len(rows))
            key = [rows.info.fingerprint, self._text_settings, wording, study.data.datasets[name].symmetric]
            files[name] = self._open(key, starts_n[first_U], {"dataset": name})

            def look_at(unit: int, number: int = number, first_U: np.ndarray = first_U) -> np.ndarray:
                texts = source.whole_rows(number, range(first_U[unit], first_U[unit + 1]))
                found_BN = reference.model.of_texts(texts).numpy()
                return found_BN[np.arange(found_BN.shape[1])[None, :] < texts.count_B.numpy()[:, None]]

            self._fill(files[name], look_at, len(first_U) - 1, name)
        return AllScores(batches.rows, files)

    def _open(self, key: list[object], starts_U: np.ndarray, about: dict[str, object]) -> SimilarityFile:
        """Open the file of a key."""
        folder = cache_folder() / "similarities" / fingerprint(self._identity, key)
        with self._run.ranks.first():
            return SimilarityFile(folder, starts_U, self._dtype, {**about, "reference": str(self._folder)})

    @contextmanager
    def _timed(self, batches: list[Batches]) -> Iterator[None]:
        """Tell the journal what the block took, also where Ctrl-C ends it."""
        began, self._kept, self._computed = time.monotonic(), {}, 0

        def tell(finished: bool) -> None:
            numbers = {"computed": self._computed, "kept": sum(self._kept.values()), "finished": finished}
            seconds, seeds = round(time.monotonic() - began, 2), sorted({b.seed for b in batches})
            self._run.journal.write("similarities", "similarities", seconds=seconds, seeds=seeds, **numbers)

        try:
            yield
        except KeyboardInterrupt:
            tell(False)
            raise
        tell(True)

    def _fill(self, file: SimilarityFile, look_at: Callable[[int], np.ndarray], total: int, dataset: str = "") -> None:
        """Compute the units that are missing, each by one rank; rank 0 writes them all."""
        ranks = self._run.ranks
        missing = ranks.agree(list(file.missing()))
        self._kept.setdefault(file.path, total - len(missing))
        for start in range(0, len(missing), ranks.count):
            together = missing[start : start + ranks.count]
            values = look_at(together[ranks.number]) if ranks.number < len(together) else np.empty(0, self._dtype)
            found = ranks.gather(torch.from_numpy(values.astype(self._dtype, copy=False)))
            if ranks.number == 0:
                for unit, of_unit in zip(together, found, strict=False):
                    file.put(unit, of_unit.numpy())
            self._computed += len(together)
            done = total - len(missing) + start + len(together)
            self._run.journal.progress("similarities", done, total, dataset=dataset)
        if missing:
            file.share(ranks)

    @cached_property
    def _identity(self) -> list[object]:
        """What any similarity depends on: the reference and the precision it runs in."""
        model, device = self._run.study.model, self._run.device
        return [encoder_fingerprint(str(self._folder)), model.pooling, model.normalize, device.autocast]

    @property
    def _text_settings(self) -> list[object]:
        """How texts become tokens."""
        data = self._run.study.data
        return [data.instruction_template, data.query_max_length, data.passage_max_length]

    def _wordings(self, names: Iterable[str]) -> list[list[str]]:
        """What may stand in front of the queries of datasets."""
        data = self._run.study.data
        return [wordings_of(data.datasets[name], "queries", data.instruction_share) for name in names]

    def _choices(self, names: Iterable[str]) -> list[object]:
        """How visits choose what they show; nothing where all is as it was before there was a choice."""
        data = self._run.study.data
        found: list[object] = []
        if (data.positives, data.negatives) != ("random", "random"):
            found.append(["passages", data.positives, data.negatives])
        if any(len(wordings) > 1 for wordings in self._wordings(names)):
            found.append(["instructions", data.instruction_share, self._wordings(names)])
        return found

    def _texts_of_drawn(self, batches: list[Batches]) -> int:
        """Texts that the steps draw."""
        config = self._run.study.weights
        return sum(b.steps for b in batches) * config.batch_size * (1 + config.passages_per_query)


class _Lazy:
    """The reference, loaded when it is first asked for."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run, self._folder = run, folder

    @cached_property
    def model(self) -> LiveScores:
        """The reference."""
        return LiveScores(self._run.load(str(self._folder)), self._run)


def _row_starts(rows: Rows) -> np.ndarray:
    """Where the passages of each row begin when all are laid end to end; [rows + 1]."""
    return np.concatenate([[0], np.cumsum(rows.positive_count_n + rows.negative_count_n)])


def _texts_of_all(batches: list[Batches]) -> int:
    """Texts of all rows that the batches are drawn from."""
    sources = {dataset.source.info.fingerprint: dataset.source for b in batches for dataset in b.rows.values()}
    return sum(len(rows) + int(_row_starts(rows)[-1]) for rows in sources.values())
