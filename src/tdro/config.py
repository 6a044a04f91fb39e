"""The study: one YAML file that describes data, models, training and evaluation. Frozen and typed; no torch."""

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tdro.errors import ConfigError

RAN_KEY = "ran"
"""Top-level key of `resolved.yaml` that records versions and fingerprints; ignored when the file is read again."""

ModelName = Literal["base", "reference", "proxy", "robust"]
Positive = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""Names a dataset, task or study; becomes part of file names."""


class Section(BaseModel):
    """A part of a study: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class DatasetConfig(Section):
    """One training dataset, the unit that gets a weight."""

    path: str
    """File (jsonl, jsonl.gz, parquet) or folder (saved Hugging Face dataset), relative to data.root."""
    instruction: str = ""
    """Task description put in front of queries through data.instruction_template; empty: none."""
    symmetric: bool = False
    """Put the instruction on the passages too."""
    size: Positive | None = None
    """Rows, for a dry run without the file."""


class TaskConfig(Section):
    """One evaluation task: a folder in BEIR layout."""

    path: str
    """Folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, relative to data.root."""
    split: str = "test"
    """Which qrels."""
    instruction: str = ""
    """Task description put in front of the queries."""
    ignore_identical_ids: bool = False
    """Drop a result whose id is the query's id (BEIR: ArguAna, Quora)."""


def _refuse_twins(names: Iterable[str]) -> None:
    """Refuse names that an option on the command line could not tell apart."""
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(name.replace("_", "-"), name)
        if twin != name:
            raise ValueError(f"the names {twin} and {name} differ in - and _ only")


def _path_alone(value: object) -> object:
    """Read a bare string as `{path: string}`."""
    return {"path": value} if isinstance(value, str) else value


class DataConfig(Section):
    """Which datasets, and how their texts become model input."""

    root: str = "."
    """Folder that the paths below start from."""
    datasets: dict[Name, Annotated[DatasetConfig, BeforeValidator(_path_alone)]] = Field(min_length=1)
    """Name -> file, or name -> {path, instruction, symmetric, size}."""
    max_rows: Positive | None = None
    """Use a seeded sample of at most this many rows per dataset."""
    instruction_template: str = "Instruct: {instruction}\nQuery: {query}"
    """How an instruction and a text are joined."""
    query_max_length: Annotated[int, Field(ge=4)] = 128
    """Tokens of a query; the rest is cut."""
    passage_max_length: Annotated[int, Field(ge=4)] = 512
    """Tokens of a passage; the rest is cut."""

    @model_validator(mode="after")
    def _names_differ(self) -> "DataConfig":
        _refuse_twins(self.datasets)
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
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """auto: as the saved model has it; last token for decoders; mean for others."""
    normalize: bool = True
    """Embeddings of length 1, so that similarity is the cosine."""
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """auto: bfloat16 where the device has it. Similarities and losses are float32 or better in any case."""
    micro_batch_tokens: Positive | None = None
    """Tokens, padding included, in one forward pass: 2048 on a CPU, 16384 on a GPU. Results differ by rounding only."""


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


class MiningConfig(Section):
    """Hard negatives found by an encoder among each dataset's own passages."""

    when: Literal["missing", "always", "never"] = "missing"
    """missing: mine the datasets in which a row has no negative."""
    encoder: str = ""
    """Encoder that ranks the passages; empty: model.base."""
    ranks: tuple[Annotated[int, Field(ge=0)], Positive] = (2, 100)
    """Window [first, last) of ranks among the non-positives, counted from 0."""
    negatives: Positive = 16
    """Negatives sampled from the window per query."""

    @model_validator(mode="after")
    def _window_not_empty(self) -> "MiningConfig":
        if self.ranks[0] >= self.ranks[1]:
            raise ValueError("ranks must be [first, last) with first < last")
        return self


class ReferenceConfig(TrainingConfig):
    """Stage 0: uniform sampling, homogeneous batches. The robust model is trained with the same settings."""


class WeightsConfig(TrainingConfig):
    """Stage 1: a proxy is trained on mixed batches and its losses, against the reference, move the weights."""

    passages_per_query: Annotated[int, Field(ge=2)] = 8
    """Positive included: 8 means seven hard negatives."""
    measure: Literal[
        "relative", "relative-sample", "excess", "excess-sample", "excess-relative", "raw", "initial", "target"
    ] = "relative"
    """relative: the paper's ratio of mean losses; relative-sample: the released code's; others: docs/weights.md."""
    targets: dict[Name, float] = {}
    """Dataset -> loss in nats that measure `target` subtracts; 0 where none is given."""
    shrinkage: Annotated[float, Field(ge=0)] = 0.01
    """Nats added to both means of a ratio; keeps it bounded where the reference has no loss left."""
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
    keep_losses: bool = False
    """Keep the losses of every query in weights/losses.parquet, so that any measure can be replayed."""
    export: Literal["last", "mean", "ema"] = "last"
    """Which weights are handed on: after the last step, their mean, or their moving average."""


class RobustConfig(Section):
    """Stage 2: trained like the reference, with the learned mixture."""

    plan: Literal["top-share", "bottom-share", "reweight", "reweight-loss"] = "top-share"
    """Sample the best (or worst) datasets uniformly; or sample by weight; or sample uniformly and weigh the loss."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the datasets that top-share or bottom-share keeps."""
    weights: str = "learned"
    """learned; uniform, size or temperature-T, whatever the plan; a preset (paper-2408.10613) or a weights file."""


class EvaluationConfig(Section):
    """What the models are compared on."""

    tasks: dict[Name, Annotated[TaskConfig, BeforeValidator(_path_alone)]] = {}
    """Name -> BEIR folder, or name -> {path, split, instruction, ignore_identical_ids}."""
    models: tuple[ModelName, ...] = ("base", "reference", "proxy", "robust")
    """Which models are evaluated."""

    @model_validator(mode="after")
    def _names_differ(self) -> "EvaluationConfig":
        _refuse_twins(self.tasks)
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

    def fill_root(self, base: str) -> str:
        """Return the name of an encoder with `{root}` replaced by data.root."""
        return base.replace("{root}", self.data.root)


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: Missing or not YAML, an unknown key (with a suggestion), a wrong value; with file:line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError("study file cannot be read", where=path, saw=error.strerror, do=_near_file(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError("study file is not UTF-8", where=path, saw=str(error), do="save it as UTF-8") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise ConfigError(
            "not YAML", where=where, saw=getattr(error, "problem", str(error)), do="mend the line"
        ) from None
    _refuse_repeated_keys(node, path)
    if not isinstance(raw, dict):
        raise ConfigError("a study is a mapping of keys to values", where=path, saw=raw, do="see recipes/demo.yaml")
    raw.pop(RAN_KEY, None)
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, path, node) from None


def save_study(study: Study, ran: Mapping[str, Any] | None = None) -> str:
    """Write a study with all its defaults as YAML text that `load_study` reads back to the same study.

    Args:
        study: The study.
        ran: Versions, fingerprints and so on, recorded under the key `ran`.
    """
    content = study.model_dump(mode="json") | ({RAN_KEY: dict(ran)} if ran else {})
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


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
        >>> [name for name in options() if name.startswith("robust")]
        ['robust.plan', 'robust.share', 'robust.weights']
    """
    names: list[str] = []
    for name, field in section.model_fields.items():
        inner, star = _section_of(field.annotation)
        if inner is None:
            names.append(prefix + name)
        else:
            names += options(inner, f"{prefix}{name}.{star}")
    return names


def _section_of(annotation: Any) -> tuple[type[Section] | None, str]:
    """Return the section behind a field's type and `*.` when it is a mapping of sections."""
    if typing.get_origin(annotation) is dict:
        value = typing.get_args(annotation)[1]
        inner = typing.get_args(value)[0] if typing.get_origin(value) is Annotated else value
        return (inner, "*.") if isinstance(inner, type) and issubclass(inner, Section) else (None, "")
    is_section = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)
    return (annotation, "") if is_section and issubclass(annotation, Section) else (None, "")


def _explain(error: ValidationError, path: Path, node: yaml.Node | None) -> ConfigError:
    """Turn pydantic's first error into one block with file:line and, for an unknown key, a suggestion."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    where = f"{path}:{_line_of(node, location)}:{'.'.join(location)}"
    if first["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        close = difflib.get_close_matches(location[-1].replace("-", "_"), known, n=1, cutoff=0.5)
        do = f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(known)}"
        return ConfigError("unknown key", where=where, saw=location[-1], do=do)
    if first["type"] == "missing":
        return ConfigError("key is missing", where=where, do=f"add {location[-1]!r}")
    return ConfigError(
        first["msg"].removeprefix("Value error, "), where=where, saw=first["input"], do="change the value"
    )


def _refuse_repeated_keys(node: yaml.Node | None, path: Path) -> None:
    """Refuse a mapping that names a key twice: YAML would silently keep the last."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, path)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if lines.setdefault(str(key.value), line) != line:
            do = "keep one of them"
            raise ConfigError(
                f"key occurs twice, also in line {lines[key.value]}", where=f"{path}:{line}", saw=key.value, do=do
            )
        _refuse_repeated_keys(value, path)


def _keys_at(location: list[str]) -> list[str]:
    """Names of the keys that a section at a dotted location accepts."""
    section: type[Section] = Study
    in_mapping = False
    for part in location:
        if in_mapping:
            in_mapping = False
            continue
        inner, star = _section_of(section.model_fields[part].annotation)
        section, in_mapping = inner or section, bool(star)
    return list(section.model_fields)


def _line_of(node: yaml.Node | None, location: list[str]) -> int:
    """Line of the deepest part of a dotted location that the file has, from 1."""
    line = 1
    for part in location:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((key, value) for key, value in node.value if key.value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _near_file(path: Path) -> str:
    """Suggest study files beside a path that does not exist."""
    folder = path.parent if path.parent.is_dir() else Path()
    near = sorted(str(p) for p in folder.glob("*.yaml"))[:5]
    return f"did you mean one of: {', '.join(near)}?" if near else "give the path of a YAML file"
