"""From texts and speeds to the time, memory and disk of each stage: arithmetic, without a model."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tdro.config import Study, TrainingConfig
from tdro.data.mixture import seeded
from tdro.training.budget import Budget
from tdro.training.estimate_passes import contrastive_step, own_step
from tdro.training.estimate_speed import Speeds
from tdro.training.estimate_texts import DatasetTexts, StudyTexts, TaskTexts

GB = 1e9
LEAST_DOUBT = 0.15
"""Relative error that an estimate has even where every measurement agreed."""
_DRAWS = 2  # batches of a dataset that are drawn from its sample
_STEP_OVERHEAD = 0.005  # seconds: journal, schedule, weights
_TASK_OVERHEAD = 0.1  # seconds: read a task and write its files
_ROW_SECONDS = 2.5e-4  # of a mined row, beside encoding and search: read, choose, write; measured on a CPU of 2024
_RESULT_SECONDS = 3e-6  # of a ranked document: judge, write; the same
_PREFERRED = 0.5  # share of the datasets that learned weights, sampled by, are taken to be about as concentrated as
_DEPTH = 1000  # documents per query that an evaluation keeps
_RESULT_BYTES = 40  # of a ranked document in the files of results


@dataclass(frozen=True)
class Cost:
    """What a stage costs, as one process on this machine would pay.

    Attributes:
        seconds: By what takes them.
        memory_gb: Peak, of the GPU where there is one.
        disk_gb: What it leaves in the run folder and the cache.
        low: Factor of the seconds for what is not known yet, such as which datasets will be kept; at most 1.
        high: The same, at least 1.
        about: What is done, in a few words.
    """

    seconds: dict[str, float]
    memory_gb: float
    disk_gb: float
    low: float = 1.0
    high: float = 1.0
    about: str = ""

    @property
    def total(self) -> float:
        """All its seconds."""
        return sum(self.seconds.values())

    @property
    def dominates(self) -> str:
        """What takes most of the time."""
        if not self.total:
            return ""
        name = max(self.seconds, key=self.seconds.__getitem__)
        return f"{self.about}; {self.seconds[name] / self.total:.0%} {name}"


def costs_of(study: Study, texts: StudyTexts, speeds: Speeds, budget: Budget) -> dict[str, Cost]:
    """Compute the cost of every stage of a study, in their order; those that it leaves out are absent.

    Token caches are counted with the first stage that uses them.
    """
    work = _Work(study, texts, speeds, budget)
    stages: dict[str, Cost] = {}
    if any(dataset.mined for dataset in texts.datasets.values()):
        stages["negatives"] = work.mining()
    evaluated = study.evaluation.models if study.evaluation.tasks else ()
    learned = study.robust.weights == "learned" or "proxy" in evaluated
    if learned or "reference" in evaluated:
        stages["reference"] = work.contrastive(cache_tokens=not stages)
    if learned:
        if study.weights.reference_similarities != "live":
            stages["similarities"] = work.similarities()
        stages["weights"] = work.weights()
    stages["robust"] = work.contrastive(cache_tokens=not stages, kept=study.robust.weights == "learned")
    if study.evaluation.tasks:
        stages["evaluation"] = work.evaluation()
    return stages


class _Work:
    """Adds up what the stages of a study do."""

    def __init__(self, study: Study, texts: StudyTexts, speeds: Speeds, budget: Budget) -> None:
        self._study, self._texts, self._speeds, self._budget = study, texts, speeds, budget
        self._model_gb = speeds.parameter_bytes / GB

    def mining(self) -> Cost:
        """Encode every text of the datasets that lack negatives, and search."""
        speeds, datasets = self._speeds, [d for d in self._texts.datasets.values() if d.mined]
        dense = self._study.mining.source == "dense"
        encoding = pairs = passages = rows = 0.0
        for dataset in datasets:
            count = dataset.rows * dataset.passages
            if dense:
                encoding += self._encode(dataset.query_n, dataset.rows) + self._encode(dataset.positive_n, count)
            pairs, passages, rows = pairs + dataset.rows * count, passages + count, rows + dataset.rows
        mined = self._study.mining.negatives * sum(d.rows * d.characters for d in datasets)
        kept = mined + (rows + passages) * speeds.dimension * 4 * dense
        return Cost(
            {
                "encoding": encoding + (self._texts.load_seconds if dense else 0.0),
                "searching": pairs * speeds.search,
                "choosing and writing": rows * _ROW_SECONDS,
                "making tokens": self._token_seconds(),
            },
            speeds.encode_gb,
            kept / GB + self._token_gb(),
            about=f"{rows:,.0f} queries, {passages:,.0f} passages",
        )

    def contrastive(self, *, cache_tokens: bool, kept: bool = False) -> Cost:
        """Train on homogeneous batches.

        Args:
            cache_tokens: Whether this stage makes the tokens.
            kept: Whether a plan will keep some of the datasets, or prefer some, which are not known yet.
        """
        config, speeds = self._study.reference, self._speeds
        of_dataset = [self._contrastive_step(name) for name in self._texts.datasets]
        step = {part: float(np.mean([s[part] for s in of_dataset])) for part in of_dataset[0]}
        seconds = {part: value * config.steps for part, value in step.items()}
        total_G = np.sort([sum(s.values()) for s in of_dataset])
        low = high = 1.0
        if kept and self._study.robust.plan != "reweight-loss":
            share = _PREFERRED if self._study.robust.plan == "reweight" else self._study.robust.share
            count = max(1, min(len(total_G), round(share * len(total_G))))
            low, high = total_G[:count].mean() / total_G.mean(), total_G[-count:].mean() / total_G.mean()
        seconds |= self._around(config)
        seconds["evaluations during training"] = self._watching(config)
        if cache_tokens:
            seconds["making tokens"] = self._token_seconds()
        return Cost(
            seconds,
            speeds.train_gb,
            self._model_gb + (self._token_gb() if cache_tokens else 0.0),
            float(low),
            float(high),
            f"{config.steps} steps of {_seconds(sum(step.values()))}",
        )

    def similarities(self) -> Cost:
        """Let the reference look at what stage 1 will draw, or at everything."""
        drawn, of_all = self._drawn_texts(), self._all_texts()
        how = self._study.weights.reference_similarities
        count = of_all if how == "all" or (how == "auto" and of_all <= 2 * drawn) else drawn
        seconds = self._look_at_step() * count / self._texts_per_step() + self._texts.load_seconds
        memory = self._speeds.encode_gb + self._model_gb
        return Cost({"encoding": seconds}, memory, 4 * count / GB, about=f"{count:,.0f} texts")

    def weights(self) -> Cost:
        """Train the proxies."""
        config, speeds = self._study.weights, self._speeds
        token_n, longest_n = own_step(self._mixed_lengths(), self._budget.graph_tokens, speeds.pads)
        step = {"forward and backward passes": speeds.backward.of(token_n, longest_n) * speeds.proxy}
        if config.reference_similarities == "live":
            step["passes of the reference"] = self._look_at_step()
        if config.held_out_share:
            step["held-out rows"] = self._look_at_step() / config.held_out_every
        steps = config.steps + (config.seeds - 1) * (config.seed_steps or config.steps)
        seconds = {part: value * steps for part, value in step.items()} | self._around(config, steps)
        memory = speeds.train_gb + (self._model_gb if config.reference_similarities == "live" else 0.0)
        about = f"{steps} steps of {_seconds(sum(step.values()))}"
        return Cost(seconds, memory, self._model_gb, about=about)

    def evaluation(self) -> Cost:
        """Encode every task with every model, and search."""
        speeds, evaluation = self._speeds, self._study.evaluation
        models = len(evaluation.models) + sum(name != "bm25" for name in evaluation.baselines)
        parts = list(self._texts.tasks.values())
        encoding, searching = self._evaluate(parts)
        documents = sum({part.corpus: part.documents for part in parts}.values())
        queries = sum(part.queries for part in parts)
        kept = models * (documents * speeds.dimension * 4 + queries * _DEPTH * _RESULT_BYTES)
        return Cost(
            {
                "encoding": models * (encoding + self._texts.load_seconds),
                "searching": models * searching,
                "judging and writing": models * sum(_judging(part) for part in parts),
            },
            speeds.encode_gb,
            kept / GB,
            about=f"{models} models x {len(parts)} tasks, {documents:,} documents",
        )

    def _contrastive_step(self, name: str) -> dict[str, float]:
        """Return the mean seconds of a step on a dataset, by kind."""
        config, speeds = self._study.reference, self._speeds
        random, names = seeded(self._study.seed, "estimate", name), [name]
        if config.batches == "mixed":
            names = list(self._texts.datasets)
        drawn = []
        for _ in range(_DRAWS):
            lengths = self._draw(names, config.batch_size, config.passages_per_query, random)
            drawn.append(contrastive_step(lengths.ravel(), speeds, self._budget))
        step = {part: float(np.mean([draw[part] for draw in drawn])) for part in drawn[0]}
        pairs = config.batch_size**2 * config.passages_per_query * (1 + len(config.matryoshka))
        if config.guide:
            step["passes of the guide"] = speeds.encode.of(lengths, lengths)
        texts = config.batch_size * (1 + config.passages_per_query)
        fresh = 0.0 if self._keeps_tokens() else texts * self._texts.tokenize_seconds
        step["loss"] = pairs * speeds.loss
        step["optimizer"] = speeds.optimizer + _STEP_OVERHEAD
        step["waiting for tokens"] = max(0.0, fresh - sum(step.values()))  # they are made a step ahead
        return step

    def _around(self, config: TrainingConfig, steps: int | None = None) -> dict[str, float]:
        """Return the seconds of what surrounds the steps of a stage; of stage 1 also its optimizer."""
        speeds, steps = self._speeds, steps or config.steps
        written = (steps - 1) // config.checkpoint_every * 3 * speeds.trained_bytes + speeds.parameter_bytes
        around = {"loading and saving": self._texts.load_seconds + written / speeds.disk}
        if config is self._study.weights:
            around["optimizer"] = steps * (speeds.optimizer + _STEP_OVERHEAD)
        return around

    def _watching(self, config: TrainingConfig) -> float:
        """Return the seconds of evaluations during training."""
        if not self._texts.watch:
            return 0.0
        evaluation = self._study.evaluation
        looks = -(-config.steps // evaluation.watch_every)
        parts = list(self._texts.watch.values())
        return looks * (sum(self._evaluate(parts)) + len(parts) * _TASK_OVERHEAD)

    def _evaluate(self, parts: list[TaskTexts]) -> tuple[float, float]:
        """Return the seconds in which a model encodes and searches some tasks; shared documents count once."""
        corpora = {part.corpus: part for part in parts}
        encoding = sum(self._encode(part.document_n, part.documents) for part in corpora.values())
        encoding += sum(self._encode(part.query_n, part.queries) for part in parts)
        return encoding, sum(part.queries * part.documents for part in parts) * self._speeds.search

    def _encode(self, length_n: list[int], count: float) -> float:
        """Return the seconds in which texts like the sampled ones become embeddings, tokens included."""
        if not length_n or not count:
            return 0.0
        seconds = self._speeds.encode.of(np.array(length_n), np.array(length_n)) / len(length_n)
        return count * (seconds + self._texts.tokenize_seconds)

    def _look_at_step(self) -> float:
        """Return the seconds in which a model in evaluation mode sees a step of stage 1."""
        token_n, longest_n = own_step(self._mixed_lengths(), self._budget.max_tokens, self._speeds.pads)
        return self._speeds.encode.of(token_n, longest_n) * self._speeds.reference

    def _mixed_lengths(self) -> np.ndarray:
        """Draw a step of stage 1: tokens of each query and its passages."""
        config = self._study.weights
        random = seeded(self._study.seed, "estimate", "mixed")
        return self._draw(list(self._texts.datasets), config.batch_size, config.passages_per_query, random)

    def _draw(self, names: list[str], batch_size: int, passages: int, random: np.random.Generator) -> np.ndarray:
        """Draw the lengths of a batch from the samples, datasets in turn; [B, 1 + passages]."""
        length_BN = np.empty((batch_size, 1 + passages), np.int64)
        for number, name in enumerate(names):
            dataset, mine = self._texts.datasets[name], slice(number, None, len(names))
            part = length_BN[mine]
            part[:, 0] = random.choice(dataset.query_n, len(part))
            part[:, 1] = random.choice(dataset.positive_n, len(part))
            part[:, 2:] = random.choice(dataset.negative_n, (len(part), passages - 1))
        return length_BN

    def _texts_per_step(self) -> int:
        """Count the texts of a step of stage 1."""
        return self._study.weights.batch_size * (1 + self._study.weights.passages_per_query)

    def _drawn_texts(self) -> int:
        """Count the texts that stage 1 draws."""
        config = self._study.weights
        steps = config.steps + (config.seeds - 1) * (config.seed_steps or config.steps)
        return steps * self._texts_per_step()

    def _all_texts(self) -> float:
        """Count the texts of all rows, mined ones included."""
        mined = self._study.mining.negatives
        return sum(d.rows * (1 + d.passages + mined * d.mined) for d in self._texts.datasets.values())

    def _keeps_tokens(self) -> bool:
        """Whether tokens are made once, as far as this can be told without comparing texts."""
        if self._study.data.tokens != "auto":
            return self._study.data.tokens == "cached"
        return self._kept_texts() <= 2 * (2 * self._drawn_by(self._study.reference) + 2 * self._drawn_texts())

    def _drawn_by(self, config: TrainingConfig) -> int:
        """Count the texts that a stage draws."""
        return config.steps * config.batch_size * (1 + config.passages_per_query)

    def _kept_texts(self) -> float:
        """Count the texts whose tokens are kept: mined negatives are passages of the dataset."""
        return sum(dataset.rows * (1 + dataset.passages) for dataset in self._texts.datasets.values())

    def _token_seconds(self) -> float:
        """Return the seconds of making all tokens once; 0 where they are made in the steps."""
        return self._kept_texts() * self._texts.tokenize_seconds if self._keeps_tokens() else 0.0

    def _token_gb(self) -> float:
        """Return the size of the token cache."""
        if not self._keeps_tokens():
            return 0.0
        return sum(_token_bytes(dataset) for dataset in self._texts.datasets.values()) / GB


def _judging(part: TaskTexts) -> float:
    """Return the seconds of what is done with the rankings of a task."""
    return _TASK_OVERHEAD + part.queries * min(_DEPTH, part.documents) * _RESULT_SECONDS


def _token_bytes(dataset: DatasetTexts) -> float:
    """Bytes of the tokens of a dataset, four each."""
    return 4 * dataset.rows * (float(np.mean(dataset.query_n)) + dataset.passages * float(np.mean(dataset.positive_n)))


def _seconds(value: float) -> str:
    """Write seconds with two digits that count."""
    return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"


def range_of(seconds: float, cost: Cost, spread: float) -> tuple[float, float]:
    """Return between which times a stage will end: what is not known yet, and the doubt of any measurement.

    Args:
        seconds: The estimate.
        cost: Of the stage.
        spread: Relative difference between repeated measurements.
    """
    doubt = LEAST_DOUBT + spread
    return seconds * cost.low / (1 + doubt), seconds * cost.high * (1 + doubt)


def checkpoints_gb(speeds: Speeds, configs: Iterable[TrainingConfig]) -> float:
    """Return the size of the checkpoints that a stage keeps while it runs: parameters and two moments."""
    kept = max((config.checkpoints_kept + 1 for config in configs if config.steps > config.checkpoint_every), default=0)
    return kept * 3 * speeds.trained_bytes / GB
