"""The study as typed, frozen sections: data, models, training, evaluation. No torch."""

import hashlib
import json
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tdro.instructions import categories, known_instruction

ModelName = Literal["base", "reference", "proxy", "robust"]
Positive = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""Names a dataset, task or study; becomes part of file names."""


class Section(BaseModel):
    """A part of a study: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class DatasetConfig(Section):
    """One training dataset, the unit that gets a weight."""

    path: str | tuple[str, ...]
    """File or folder, relative to data.root, or hf://OWNER/NAME:SPLIT; several of them become one dataset."""
    instruction: str = ""
    """Task description put in front of queries through data.instruction_template; empty: see data.instructions."""
    more_instructions: tuple[str, ...] = ()
    """Other wordings of the instruction; in training every visit of a row draws one of all."""
    symmetric: bool = False
    """Put the instruction on the passages too."""
    category: str = ""
    """Kind of task, for data.instructions: auto and the data card; `tdro check --instructions` lists them."""
    in_batch_negatives: bool = True
    """Other queries' passages are negatives; turn it off where many of them would be right, as in classification."""
    corpus: str = ""
    """File of further passages to mine negatives from, relative to data.root."""
    queries: str = ""
    """File with the texts of the queries, where the rows have ids only; relative to data.root."""
    passages: str = ""
    """File with the texts of the passages, where the rows have ids only; relative to data.root."""
    max_rows: Positive | None = None
    """As data.max_rows, for this dataset."""
    license: str = ""
    """For the data card."""
    size: Positive | None = None
    """Rows, for a dry run without the file."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All its files and folders."""
        return (self.path,) if isinstance(self.path, str) else self.path


class TaskConfig(Section):
    """One evaluation task; MIRACL, MKQA and CQADupStack have several parts, whose mean is the task's score."""

    path: str
    """Folder in the layout of BEIR, MIRACL or MKQA, or file of rows, relative to data.root; see docs/evaluation.md."""
    kind: Literal["auto", "beir", "miracl", "mkqa", "rows"] = "auto"
    """Layout; auto: as the files tell. rows: a dev set like the training files; its passages are the documents."""
    split: str = ""
    """Which qrels; empty: test, but dev for MS MARCO and MIRACL."""
    languages: tuple[str, ...] = ()
    """MIRACL and MKQA: these languages only."""
    corpus: str = ""
    """Folder or file of the documents, where it is not in the task's folder: MKQA, MIRACL."""
    instruction: str = ""
    """Task description put in front of the queries."""
    ignore_identical_ids: bool | None = None
    """Drop a result whose id is the query's id; where not given, as the benchmark does (BEIR: ArguAna, Quora)."""


def _refuse_twins(names: Iterable[str]) -> None:
    """Refuse names that an option on the command line could not tell apart."""
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(name.replace("_", "-"), name)
        if twin != name:
            raise ValueError(f"the names {twin} and {name} differ in - and _ only")


def _path_alone(value: object) -> object:
    """Read a bare string, or a list, as `{path: ...}`."""
    return {"path": value} if isinstance(value, str | list | tuple) else value


def _with_instruction(name: str, options: DatasetConfig) -> DatasetConfig:
    """Give a dataset the instruction for its name or its category, unless it has one."""
    if options.instruction:
        return options
    if options.category and options.category not in categories():
        raise ValueError(f"category of {name} is {options.category!r}; known are {', '.join(categories())}")
    return options.model_copy(update={"instruction": known_instruction(name, options.category) or ""})


class DataConfig(Section):
    """Which datasets, and how their texts become model input."""

    root: str = "."
    """Folder that the paths below start from; itself seen from the working directory."""
    datasets: dict[Name, Annotated[DatasetConfig, BeforeValidator(_path_alone)]] = Field(min_length=1)
    """Name -> file, name -> [files], or name -> {path, instruction, symmetric, ...}."""
    max_rows: Positive | None = None
    """Use a seeded sample of at most this many rows per dataset."""
    instructions: Literal["given", "auto"] = "given"
    """auto: a dataset without instruction gets the one for its name or its category; `tdro check` shows it."""
    instruction_template: str = "Instruct: {instruction}\nQuery: {query}"
    """How an instruction and a text are joined."""
    instruction_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the visits of a row in training that get the instruction; evaluation always does."""
    positives: Literal["random", "first"] = "random"
    """Which of a row's positives a step shows: one drawn at every visit, or always the first."""
    negatives: Literal["random", "first"] = "random"
    """Which of a row's negatives a step shows: drawn at every visit, or always the first ones."""
    query_max_length: Annotated[int, Field(ge=4)] = 128
    """Tokens of a query; the rest is cut."""
    passage_max_length: Annotated[int, Field(ge=4)] = 512
    """Tokens of a passage; the rest is cut."""
    tokens: Literal["auto", "cached", "fresh"] = "auto"
    """cached: tokenise every text once and keep that; fresh: in every step; auto: cached where that is less work."""

    @model_validator(mode="after")
    def _names_differ(self) -> "DataConfig":
        _refuse_twins(self.datasets)
        return self

    @model_validator(mode="after")
    def _known_instructions_are_filled_in(self) -> "DataConfig":
        if self.instructions == "auto":
            filled = {name: _with_instruction(name, options) for name, options in self.datasets.items()}
            object.__setattr__(self, "datasets", filled)  # frozen for everybody else
        return self

    @model_validator(mode="after")
    def _template_has_both(self) -> "DataConfig":
        for field in ("{instruction}", "{query}"):
            if field not in self.instruction_template:
                raise ValueError(f"instruction_template must contain {field}")
        return self


class ModelConfig(Section):
    """The encoder that all three models start from."""

    base: str
    """Folder, `package:NAME/folder` inside an installed package, or a hub name; `{root}` stands for data.root."""
    query_encoder: str = ""
    """Queries have an encoder of their own: `copy` of base, or another base; empty: they share base."""
    pooling: Literal["auto", "mean", "cls", "last", "first-last", "top-two"] = "auto"
    """auto: as the saved model has it; last token for decoders; mean for others. The last two: means of two layers."""
    projection: Positive | None = None
    """Dimensions of a linear layer on top of the pooling; trained from random values unless the base has one."""
    normalize: bool = True
    """Embeddings of length 1, so that similarity is the cosine."""
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """auto: bfloat16 where the device has it. Similarities and losses are float32 or better in any case."""
    micro_batch_tokens: Positive | None = None
    """Tokens, padding included, in one forward pass; where not given, found by trying. Changes rounding only."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Train low-rank adapters of this rank instead of all parameters; 0: all parameters. Needs the extra `lora`."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    """An adapter's output is multiplied by lora_alpha / lora_rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout of an adapter's input."""
    lora_targets: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Ends of the names of the layers that get an adapter, such as q_proj; empty: all linear layers of all blocks."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each block and compute the rest again: far less memory, a third to a half more time."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = "auto"
    """auto: the library's choice, mostly sdpa. With flash attention (GPU, bfloat16) texts are not padded at all."""
    compile: bool = False
    """Compile the blocks with torch.compile when training: slow first steps, then faster ones."""
    sharding: Literal["none", "full"] = "none"
    """full: each of several ranks has a piece of parameters, gradients and moments; for models one GPU cannot hold."""
    deterministic: bool = False
    """Only operations that give the same bits each time, also on a GPU, where they are slower."""

    @property
    def influential(self) -> dict[str, Any]:
        """The settings that change results by more than rounding; those of LoRA where there is LoRA."""
        exclude = {
            "micro_batch_tokens", "gradient_checkpointing", "attention", "compile", "sharding", "deterministic",
        }  # fmt: skip
        lora = {"lora_rank", "lora_alpha", "lora_dropout", "lora_targets"}
        return self.model_dump(mode="json", exclude=exclude if self.lora_rank else exclude | lora)


class TrainingConfig(Section):
    """What every training stage needs."""

    steps: Positive = 1000
    """Optimizer steps."""
    batch_size: Positive = 2048
    """Queries per optimizer step."""
    passages_per_query: Annotated[int, Field(ge=1)] = 2
    """Positive included: 2 means one hard negative."""
    temperature: Annotated[float, Field(gt=0)] = 0.002
    """tau; sentence-transformers' scale is 1/tau."""
    loss_factor: Annotated[float, Field(ge=0)] = 1.0
    """Factor of the contrastive loss."""
    distillation: Annotated[float, Field(ge=0)] = 0.0
    """Factor of the KL divergence from the scores that positives and negatives carry; added to the contrastive loss."""
    teacher_temperature: Annotated[float, Field(gt=0)] = 1.0
    """The scores are divided by it before their softmax."""
    matryoshka: tuple[Positive, ...] = ()
    """The loss is also computed on the first so many dimensions of the embeddings, and averaged."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """adamw-8bit keeps its moments in 8 bits; needs the package bitsandbytes."""
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of AdamW's first and second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of AdamW's second moment."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay; not applied to biases and norms."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    final_learning_rate_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the peak learning rate that is left at the last step."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """L2 norm to which the model's gradient is clipped."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints."""
    checkpoints_kept: Positive = 2
    """Checkpoints that stay, so that there is one to go on from where the last is damaged."""


class MiningConfig(Section):
    """Hard negatives found by an encoder, or by BM25, among each dataset's passages."""

    when: Literal["missing", "always", "never"] = "missing"
    """missing: mine the datasets in which a row has no negative."""
    source: Literal["dense", "bm25"] = "dense"
    """Who ranks the passages: an encoder, or BM25 (extra `mine`)."""
    encoder: str = ""
    """Encoder that ranks the passages; empty: model.base. With bm25, one given here scores what BM25 has found."""
    ranks: tuple[Annotated[int, Field(ge=0)], Positive] = (2, 100)
    """Window [first, last) of ranks among the non-positives, counted from 0."""
    negatives: Positive = 16
    """Negatives per query."""
    sampling: Literal["random", "top"] = "random"
    """random: drawn from the window; top: its best ranked."""
    relative_margin: Annotated[float, Field(ge=0, lt=1)] | None = None
    """m: a negative scores at most p - m |p|, where p is the score of the row's worst positive."""
    absolute_margin: Annotated[float, Field(ge=0)] | None = None
    """A negative scores at least this much less than the query's worst positive."""
    max_score: float | None = None
    """A negative scores at most this."""
    min_score: float | None = None
    """A negative scores at least this."""
    cross_encoder: str = ""
    """Cross-encoder whose scores the margins and limits look at; empty: those of the ranking."""

    @model_validator(mode="after")
    def _window_not_empty(self) -> "MiningConfig":
        if self.ranks[0] >= self.ranks[1]:
            raise ValueError("ranks must be [first, last) with first < last")
        return self


class LeakageConfig(Section):
    """Evaluation queries among the training data, looked for before training; `tdro dedup` does more."""

    gate: Literal["off", "warn", "remove", "stop"] = "warn"
    """What happens to training rows that leak: only said, left out, or the run stops."""
    level: Literal["exact", "near", "simhash-k2"] = "near"
    """exact: equal after normalisation; near: also with typos or words moved; simhash-k2: as the paper."""
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Near: similarity from which two queries count as the same; 1 is equal."""
    against: tuple[str, ...] = ()
    """Further evaluation sets (BEIR folders, or files with a query per row), relative to data.root."""


class ReferenceConfig(TrainingConfig):
    """Stage 0: uniform sampling, homogeneous batches. The robust model is trained with the same settings."""

    batches: Literal["homogeneous", "mixed"] = "homogeneous"
    """homogeneous: all queries of a batch are of one dataset; mixed: every query draws its dataset."""
    guide: str = ""
    """Encoder that masks false negatives: a passage it finds closer to the query than the positive does not count."""
    guide_margin: float = 0.0
    """The guide masks from its similarity to the positive minus this on."""


class WeightsConfig(TrainingConfig):
    """Stage 1: a proxy is trained on mixed batches and its losses, against the reference, move the weights."""

    passages_per_query: Annotated[int, Field(ge=2)] = 8
    """Positive included: 8 means seven hard negatives."""
    measure: Literal[
        "relative", "relative-sample", "excess", "excess-sample", "excess-relative", "raw", "initial", "target"
    ] = "relative-sample"
    """relative-sample: as the released code; relative: the paper's ratio of mean losses; others: docs/weights.md."""
    targets: dict[Name, float] = {}
    """Dataset -> loss in nats that measure `target` subtracts; 0 where none is given."""
    shrinkage: Annotated[float, Field(ge=0)] = 0.01
    """Nats added to both means of a ratio (relative, excess-relative, initial); bounds it where a loss is near 0."""
    update: Literal["eg", "eg-mix", "anchored", "sgd", "adamw", "rmsprop", "adagrad", "adafactor"] = "eg"
    """eg: exponentiated gradient; eg-mix and anchored keep to a prior; the others are optimizers on log-weights."""
    step_size: Annotated[float, Field(ge=0)] = 0.02
    """eta."""
    step_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Step size after its warm-up."""
    step_warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the step size rises."""
    final_step_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the step size that is left at the last step, unless constant."""
    clip: Literal["l2", "element", "none"] = "l2"
    """How the measures are clipped before the update."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Limit of the clip."""
    reference_norm: Literal[0, 1, 2] = 1
    """Norm over the batch that relative-sample divides reference losses by; 0: none."""
    ema: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the new weights in their moving average."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of sgd: share of the earlier signals in its direction."""
    rule_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of sgd and the other optimizers on log-weights."""
    rule_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of adamw on log-weights."""
    rule_alpha: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of rmsprop on log-weights: share of the earlier squares."""
    rule_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Of adamw, rmsprop and adagrad on log-weights."""
    mix: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the uniform prior in every step of eg-mix."""
    pull: Annotated[float, Field(gt=0)] = 1.0
    """lambda of anchored: temperature of the weights it ends at."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Smallest weight."""
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest weight."""
    max_epochs: Annotated[float, Field(gt=0)] | None = None
    """Cap each weight so that the robust run sees no row more often."""
    sampling: Literal["uniform", "stratified"] = "uniform"
    """uniform: every query draws its dataset. stratified: a batch has as many of each dataset, give or take one."""
    max_bad_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of a dataset's losses that may be dropped as not finite; more stop the stage. One is always allowed."""
    reference_similarities: Literal["auto", "all", "drawn", "live"] = "auto"
    """Computed once and kept in the cache: of all passages, or of those that the steps draw; live: in every step."""
    held_out_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of each dataset (at least 200 rows, at most half) that no model trains on; 0: none."""
    held_out_every: Positive = 10
    """Steps between measurements of the losses on held-out rows."""
    signal: Literal["training", "held-out"] = "training"
    """Which losses move the weights: those of the training batches, or those of the held-out rows."""
    seeds: Positive = 1
    """Proxies trained with different seeds, to see whether the ranking holds; the first one gives the weights."""
    seed_steps: Positive | None = None
    """Steps of the further proxies; as many as `steps` where not given."""
    keep_losses: bool = False
    """Keep the losses of every query in weights/losses.parquet, so that any measure can be replayed."""
    export: Literal["last", "mean", "ema"] = "last"
    """Which weights are handed on: after the last step, their mean, or their moving average."""

    @model_validator(mode="after")
    def _shrinkage_has_its_measure(self) -> "WeightsConfig":
        if "shrinkage" in self.model_fields_set and "measure" not in self.model_fields_set:
            raise ValueError(f"shrinkage needs a measure: {self.measure}, the default, has none; add measure: relative")
        return self

    @model_validator(mode="after")
    def _held_out_rows_are_there(self) -> "WeightsConfig":
        if self.signal == "held-out" and self.held_out_share == 0:
            raise ValueError("signal: held-out needs a held_out_share above 0")
        if self.seed_steps is not None and self.seed_steps > self.steps:
            raise ValueError(f"seed_steps must be at most steps, which is {self.steps}")
        return self


class RobustConfig(Section):
    """Stage 2: trained like the reference, with the learned mixture."""

    plan: Literal["top-share", "bottom-share", "reweight", "reweight-loss"] = "reweight"
    """Sample by weight; or only the best (or worst) datasets, uniformly; or uniformly, and weigh the loss."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the datasets that top-share or bottom-share keeps."""
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest sampling probability of the plan; what is cut off goes to the other datasets in proportion."""
    max_epochs: Annotated[float, Field(gt=0)] | None = None
    """Cap the plan so that no row is seen more often."""
    weights: str = "learned"
    """learned; uniform, size or temperature-T, whatever the plan; a preset (paper-2408.10613) or a weights file."""

    @model_validator(mode="after")
    def _share_has_its_plan(self) -> "RobustConfig":
        if "share" in self.model_fields_set and "plan" not in self.model_fields_set:
            raise ValueError(f"share needs a plan: {self.plan}, the default, keeps all datasets; add plan: top-share")
        return self


class EvaluationConfig(Section):
    """What the models are compared on."""

    tasks: dict[Name, Annotated[TaskConfig, BeforeValidator(_path_alone)]] = {}
    """Name -> folder, or name -> {path, split, instruction, ...}."""
    models: tuple[ModelName, ...] = ("base", "reference", "proxy", "robust")
    """Which models are evaluated."""
    baselines: tuple[str, ...] = ()
    """Evaluated beside them: bm25 (extra `mine`), or names of encoders."""
    watch: dict[Name, Annotated[TaskConfig, BeforeValidator(_path_alone)]] = {}
    """Small tasks on which reference and robust are evaluated while they are trained."""
    watch_every: Positive = 100
    """Steps between these evaluations."""
    keep: Literal["last", "best"] = "last"
    """best: the model of the step that was best on the watched tasks, which are then no tasks of the evaluation."""

    @model_validator(mode="after")
    def _names_differ(self) -> "EvaluationConfig":
        _refuse_twins(self.tasks)
        _refuse_twins(self.watch)
        return self

    @model_validator(mode="after")
    def _nothing_is_chosen_on_a_task_that_is_reported(self) -> "EvaluationConfig":
        if self.keep == "best":
            if not self.watch:
                raise ValueError("keep: best needs tasks in watch")
            reported = {Path(task.path) for task in self.tasks.values()}
            both = [name for name, task in self.watch.items() if Path(task.path) in reported]
            if both:
                raise ValueError(f"{both[0]} is watched to choose the best step and also reported; watch another task")
        return self


class Study(Section):
    """A whole study, from datasets to evaluated models."""

    name: Name
    """Names the run folder."""
    output: str = ""
    """Run folder; empty: runs/NAME."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Decides initial weights, data order, sampled negatives and dropout."""
    data: DataConfig
    model: ModelConfig
    mining: MiningConfig = MiningConfig()
    leakage: LeakageConfig = LeakageConfig()
    reference: ReferenceConfig = ReferenceConfig()
    weights: WeightsConfig = WeightsConfig()
    robust: RobustConfig = RobustConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def run_folder(self) -> Path:
        """Where everything of this study is written."""
        return Path(self.output or f"runs/{self.name}")

    def locate(self, path: str) -> Path:
        """Return a path of the data or evaluation section as seen from the working directory."""
        return Path(self.data.root, path)

    def files_of(self, dataset: str) -> tuple[str | Path, ...]:
        """Return the files and folders of a dataset as seen from the working directory; hub names as they are."""
        paths = self.data.datasets[dataset].paths
        return tuple(path if path.startswith("hf://") else self.locate(path) for path in paths)

    def fill_root(self, base: str) -> str:
        """Return the name of an encoder with `{root}` replaced by data.root."""
        return base.replace("{root}", self.data.root)


def fingerprint(*parts: object) -> str:
    """Hash configuration values and other fingerprints to 16 hex digits.

    Example:
        >>> fingerprint("a", {"x": 1}) == fingerprint("a", {"x": 1}) != fingerprint("a", {"x": 2})
        True
    """
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def options(section: type[Section] = Study, prefix: str = "") -> list[str]:
    """List every option of a study by its dotted name; `*` stands for the name of a dataset or task.

    Example:
        >>> [name for name in options() if name.startswith("leakage")]
        ['leakage.gate', 'leakage.level', 'leakage.similarity', 'leakage.against']
    """
    names: list[str] = []
    for name, field in section.model_fields.items():
        inner, star = section_of(field.annotation)
        if inner is None:
            names.append(prefix + name)
        else:
            names += options(inner, f"{prefix}{name}.{star}")
    return names


def section_of(annotation: Any) -> tuple[type[Section] | None, str]:
    """Return the section behind a field's type, None for a plain value; and `*.` when it is a mapping of sections."""
    if typing.get_origin(annotation) is dict:
        value = typing.get_args(annotation)[1]
        inner = typing.get_args(value)[0] if typing.get_origin(value) is Annotated else value
        return (inner, "*.") if isinstance(inner, type) and issubclass(inner, Section) else (None, "")
    is_section = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)
    return (annotation, "") if is_section and issubclass(annotation, Section) else (None, "")
