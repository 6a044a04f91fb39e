"""What this machine says about the formulas of `scale_terms.py`: bytes and operations of tiny models, and time.

`scale.py --measure` prints it. Bytes and operations must agree; tests/test_scale.py holds them to it. Times depend on
the machine.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from scale_subjects import FINE_TUNING, WEIGHTS, Method, Shape
from scale_terms import checkpoint_bytes, forward_flops, kept_per_token, kept_per_token_bert, memory, statistics_bytes
from sentence_transformers import SentenceTransformer
from tiny_models import make_tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode

from tdro.config import WeightsConfig
from tdro.core.groups import group_statistics
from tdro.core.rule import StepLosses
from tdro.data.examples import choose
from tdro.data.token_cache import cached_tokens
from tdro.devices import Device
from tdro.models.encoder import embed, load_encoder
from tdro.models.lora import Lora, add_lora
from tdro.models.network import checkpoint_gradients
from tdro.training.checkpoint import Checkpoints, save_checkpoint
from tdro.training.optimizers import make_optimizer
from tdro.training.weight_learner import WeightLearner, make_rule

Family = Literal["bert", "qwen2", "llama", "mistral"]
TEXTS, LENGTH = 4, 256
AUTOCAST = Device("cpu", torch.float32, autocast=True)
PLAIN = Device("cpu", torch.float32, autocast=False)


def tiny(family: Family, folder: Path, method: Method, *, attention: str = "auto") -> tuple[SentenceTransformer, Shape]:
    """Make a tiny model in training mode, without dropout of its own, and tell its shape."""
    model = load_encoder(str(make_tiny_model(family, folder)), attention=attention)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())  # as if published so
    shape = shape_of(model)
    if method.rank:
        add_lora(model, Lora(method.rank), 0, half=True)
    if method.checkpointing:
        checkpoint_gradients(model)
    return model.train(), shape


def shape_of(model: SentenceTransformer) -> Shape:
    """Read the shape of a network from its configuration."""
    config = model[0].model.config
    bert = config.model_type == "bert"
    key_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    return Shape(
        config.model_type,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.hidden_size // config.num_attention_heads * key_heads,
        config.vocab_size,
        "all" if bert else "qkv" if config.model_type == "qwen2" else "none",
        config.max_position_embeddings + config.type_vocab_size if bert else 0,
    )


def texts(model: SentenceTransformer) -> list[list[int]]:
    """Token lists of one length, with the model's special tokens at both ends."""
    found = model.tokenizer("a")["input_ids"]
    return [[found[0], *[found[len(found) // 2]] * (LENGTH - 2), found[-1]]] * TEXTS


def kept_bytes(model: SentenceTransformer, device: Device) -> int:
    """Bytes that the graph of one pass keeps, each once, but for the parameters themselves."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # the storages stay alive, so that no address comes twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept.setdefault(storage.data_ptr(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), device.precision():
        embed(model, texts(model))
    return sum(storage.nbytes() for storage in kept.values())


def paper_kept_bytes(shape: Shape, method: Method) -> float:
    """What the formulas say of `kept_bytes`: of the tokens, and autocast's copies of trained matrices."""
    tokens = TEXTS * LENGTH
    if shape.is_bert:
        return tokens * kept_per_token_bert(shape)
    per_token = kept_per_token(shape, method, mask_bytes=4)
    if method.checkpointing:  # a block is computed again later, one at a time
        once = kept_per_token(shape, Method("DDP", method.rank), 4) - 16 * shape.hidden
        return tokens * (per_token - once / shape.layers)
    return tokens * per_token + (0 if method.rank else 2 * shape.layers * shape.block_matrices)


def stepped(model: SentenceTransformer) -> torch.optim.Optimizer:
    """Do one step of the optimizer that training uses; gradients stay."""
    optimizer = make_optimizer(model, WeightsConfig())
    with AUTOCAST.precision():
        embedding_nD = embed(model, texts(model)[:1])
    embedding_nD.sum().backward()
    optimizer.step()
    return optimizer


def state_bytes(model: SentenceTransformer) -> tuple[int, int, int]:
    """Bytes of parameters, of gradients and of the optimizer's moments after one step."""
    optimizer = stepped(model)
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    parameters, gradient, moment = (
        sum(t.nbytes for t in tensors) for tensors in (model.parameters(), gradients, moments)
    )
    return parameters, gradient, moment


def checkpoint_size(model: SentenceTransformer, folder: Path) -> int:
    """Bytes of a checkpoint on disk after one step."""
    save_checkpoint(Checkpoints(folder, ""), 1, model, stepped(model), {})
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def flops(model: SentenceTransformer) -> tuple[int, int]:
    """Operations of a forward pass and of its backward pass; of a model with attention "eager"."""
    with FlopCounterMode(display=False) as forward:
        embedding_nD = embed(model, texts(model))
    with FlopCounterMode(display=False) as backward:
        embedding_nD.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def update_seconds(datasets: int) -> tuple[float, int]:
    """Seconds from the losses of a batch to new weights, and bytes of what the journal keeps of a step."""
    names = [f"dataset-{number:04d}" for number in range(datasets)]
    config = WeightsConfig()
    learner = WeightLearner(names, config, make_rule(config, dict.fromkeys(names, 10_000), 1))
    random = np.random.default_rng(0)
    group_B = torch.from_numpy(random.integers(datasets, size=config.batch_size))
    proxy_B, reference_B = (torch.from_numpy(random.exponential(size=config.batch_size)) for _ in range(2))

    def update() -> dict[str, object]:
        statistics = group_statistics(proxy_B, reference_B, group_B, datasets)
        losses = StepLosses(statistics, proxy_B.numpy(), reference_B.numpy(), group_B.numpy())
        signal_G = learner.update(0, losses)
        return {
            "losses": dict(zip(names, statistics.proxy_mean_G.tolist(), strict=True)),
            "weights": learner.weights.weights_G.tolist(),
            "misranked": [0.0] * datasets,
            "signal": signal_G.tolist(),
            "statistics": statistics.sums_GC.tolist(),
        }

    return fastest(update), len(json.dumps(update()))


def read_seconds() -> float:
    """Seconds per token of what each rank does for every text of a step: choose it, take its tokens from the cache."""
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(30_000)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    random = np.random.default_rng(0)
    sentences = [" ".join(f"w{word}" for word in row) for row in random.integers(30_000, size=(512, 512))]
    with tempfile.TemporaryDirectory() as cache:
        tokens = cached_tokens(sentences, content="", tokenizer=words, max_length=512, cache=Path(cache))
        numbers = np.arange(len(sentences))

        def read() -> None:
            for row in range(len(sentences) // FINE_TUNING.passages):
                choose(1, 16, FINE_TUNING.passages, 0, "dataset", row, 0)
            tokens.take(numbers)

        return fastest(read) / (len(sentences) * 512)


def fastest(call: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of a few calls."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found)


def report() -> str:
    """Compare all formulas with this machine, as a Markdown table."""
    rows: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for family, method in (
            ("bert", Method("DDP")),
            ("qwen2", Method("DDP")),
            ("qwen2", Method("DDP", 8)),
            ("qwen2", Method("DDP", 0, True)),
            ("llama", Method("DDP")),
        ):
            model, shape = tiny(family, folder / f"{len(rows)}", method)
            device = PLAIN if shape.is_bert else AUTOCAST
            label = f"{family}, {'float32' if shape.is_bert else method}"
            rows.append((f"bytes kept by a graph: {label}", paper_kept_bytes(shape, method), kept_bytes(model, device)))
        for method in (Method("DDP"), Method("DDP", 8)):
            model, shape = tiny("qwen2", folder / f"state {method}", method)
            found, paper = state_bytes(model), memory(shape, method, 1)
            for part, measured in zip(("parameters", "gradients", "moments"), found, strict=True):
                rows.append((f"bytes of {part}: {method}", getattr(paper, part), measured))
            size = checkpoint_size(model, folder / f"checkpoint {method}")
            rows.append((f"bytes of a checkpoint: {method}", checkpoint_bytes(shape, method), size))
        model, shape = tiny("llama", folder / "flops", Method("DDP"), attention="eager")
        forward = TEXTS * LENGTH * forward_flops(shape, LENGTH)
        for part, paper_flops, measured in zip(
            ("forward", "backward"), (forward, 2 * forward), flops(model), strict=True
        ):
            rows.append((f"operations {part}: llama", paper_flops, measured))
    seconds, size = update_seconds(1000)
    lines = ["| | on paper | measured | measured / paper |", "| --- | --- | --- | --- |"]
    lines += [f"| {what} | {paper:,.0f} | {found:,.0f} | {found / paper:.3f} |" for what, paper, found in rows]
    per_token = read_seconds()
    lines += [
        "",
        f"Weights of 1,000 datasets: {seconds * 1e3:.2f} ms from losses to weights; {statistics_bytes(1000):,} bytes",
        f"of sums; {size:,} bytes of journal per step.",
        f"Reading: {per_token * 1e9:.0f} ns per token on one core; {per_token * WEIGHTS.tokens:.2f} s for a step of",
        f"stage 1, {per_token * FINE_TUNING.tokens:.2f} s for one of stages 0 and 2, every text at its limit.",
    ]
    return "\n".join(lines)
