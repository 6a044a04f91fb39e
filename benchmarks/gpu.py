"""One GPU: speed, memory and exactness of all stages with a model of the size of Qwen2-0.5B.

    .venv/bin/python benchmarks/gpu.py                # writes benchmarks/results/gpu.json
    .venv/bin/python benchmarks/gpu.py --quick        # tiny sizes; runs on a CPU too and shows that it works

Nothing is downloaded: the weights are random, the texts are made of random letters, with lengths drawn per dataset from
log-normal distributions (means of 12 to 300 tokens), because speed depends on lengths and not on meaning.

Figures, for full fine-tuning and for LoRA:
    STAGE_tokens_per_s     real tokens of a step / time of forward, backward and optimizer; stages: reference (stage 0
                           and 2: batch 2048, 1 hard negative, in-batch negatives), weights (stage 1: 2048 x 8)
    STAGE_utilisation      floating-point operations of the model, at the three passes that training needs, / time /
                           measured ceiling of a bfloat16 matrix product; passes done twice do not count
    STAGE_peak_gb          peak of the GPU's memory
    packed_vs_padded       time of a reference step whose micro-batches are 32 texts in the order of the batch / ours
Exactness: bfloat16_loss_difference (largest difference of a query's loss to float32, nats, temperature 0.02),
bfloat16_gradient_cosine (cosine of the gradients in bfloat16 and float32), cached_gradient_error (norm of the
difference of cached and plain gradients / norm, float32).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_models import _qwen2_tokenizer
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from tdro.config import Study
from tdro.core.losses import hard_negative_loss, in_batch_loss
from tdro.core.plan import reweight
from tdro.data.mixture import HomogeneousMixture
from tdro.data.reading import Rows
from tdro.devices import Device
from tdro.models.encoder import embed
from tdro.training import cached_step
from tdro.training.contrastive_step import ContrastiveStep
from tdro.training.loop import StageStep
from tdro.training.negatives import negatives
from tdro.training.optimizers import make_optimizer
from tdro.training.own_similarities import similarities_of_all
from tdro.training.robust_step import RobustStep
from tdro.training.run import Run
from tdro.training.stages import rule_of, sizes_of
from tdro.training.texts import TextSource
from tdro.training.weight_learner import WeightLearner
from tdro.training.weights_stage import _prepare

FULL = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151_936, "max_position_embeddings": 1024,
}  # fmt: skip
TINY = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 1024, "initializer_range": 0.2,
}  # fmt: skip
LETTERS = list("bcdfghjklmnpqrstvwxz")
MEANS = (12, 20, 35, 60, 90, 130, 200, 300)
"""Mean tokens of the passages of the datasets."""


def main() -> None:
    """Measure everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each kind, after one that is not timed")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.quick:
        parser.exit(3, "this benchmark needs a GPU; --quick shows on a CPU that it works\n")
    batch = 16 if arguments.quick else arguments.batch
    figures: dict[str, float] = {}
    details: dict[str, Any] = {"ceiling_tflops": matmul_tflops(256 if arguments.quick else 8192)}
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), TINY if arguments.quick else FULL, 4 * batch)
        for name, lora in (("full", 0), ("lora", 16)):
            run = Run(make_study(Path(folder), batch, arguments.steps + 2, lora))
            rows = negatives(run)
            details[f"{name} budget"] = str(run.budget)
            for stage in ("reference", "weights"):
                found = time_stage(run, rows, stage, arguments.steps, details["ceiling_tflops"])
                figures |= {f"{name}_{stage}_{figure}": value for figure, value in found.items()}
                print(name, stage, found, flush=True)
        figures["packed_vs_padded"] = packed_vs_padded(Run(make_study(Path(folder), batch, 4, 0)))
        figures |= exactness(Path(folder), min(batch, 64))
    settings = {"batch": batch, "steps": arguments.steps, "model": TINY if arguments.quick else FULL, "means": MEANS}
    report.write_result("gpu-quick" if arguments.quick else "gpu", figures, settings, details, arguments.results)
    print(json.dumps(figures, indent=1))


def write_inputs(folder: Path, size: dict[str, Any], rows: int) -> None:
    """Write a random model and datasets of random words."""
    _qwen2_tokenizer().save_pretrained(folder / "model")
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**size)).to(torch.bfloat16).save_pretrained(folder / "model")
    random = np.random.default_rng(0)

    def text(mean: float) -> str:
        length = int(np.clip(random.lognormal(np.log(mean) - 0.18, 0.6), 3, 500))
        return "".join(random.choice(LETTERS, size=length))  # about one token per letter

    for mean in MEANS:
        with (folder / f"d{mean}.jsonl").open("w") as file:
            for _ in range(rows):
                negative = [text(mean) for _ in range(7)]
                file.write(json.dumps({"query": text(12), "pos": [text(mean)], "neg": negative}) + "\n")


def make_study(folder: Path, batch: int, steps: int, lora: int, precision: str = "auto") -> Study:
    """A study over the random datasets."""
    training = {"steps": steps, "batch_size": batch, "temperature": 0.02, "warmup_steps": 0}
    return Study.model_validate({
        "name": f"gpu-{lora}",
        "output": str(folder / f"run-{lora}-{precision}"),
        "data": {
            "datasets": {f"d{mean}": str(folder / f"d{mean}.jsonl") for mean in MEANS},
            "query_max_length": 64,
            "passage_max_length": 512,
        },
        "model": {"base": str(folder / "model"), "lora_rank": lora, "lora_dropout": 0.0, "precision": precision},
        "reference": training,
        "weights": {**training, "passages_per_query": 8, "reference_similarities": "drawn"},
    })  # fmt: skip


def stage_step(run: Run, rows: dict[str, Rows], stage: str) -> tuple[torch.nn.Module, StageStep]:
    """Build the step of a stage with its model; stage 1 is measured against the base as reference."""
    model = run.load_base().train()
    if stage == "reference":
        config = run.study.reference
        uniform = reweight(dict.fromkeys(rows, 1.0)).probabilities
        mixture = HomogeneousMixture(sizes_of(rows), uniform, config.batch_size, 1)
        source = TextSource(rows, run.study.data, model, 1)
        budget = (run.budget.max_tokens, run.budget.graph_tokens)
        return model, ContrastiveStep(
            model, source, mixture, list(rows), [1.0] * len(rows), config, run.device, *budget
        )
    if not (run.folder / "reference" / "model").exists():
        run.load(run.study.model.base).save_pretrained(str(run.folder / "reference" / "model"))
    config = run.study.weights
    prepared = _prepare(run, model, rows, None, {1: config})[1][0]
    learner = WeightLearner(list(rows), config, rule_of(run.study, rows))
    return model, RobustStep(model, *prepared, config, learner, run.device, run.max_tokens)


def time_stage(run: Run, rows: dict[str, Rows], stage: str, steps: int, ceiling: float) -> dict[str, float]:
    """Time whole steps, optimizer included."""
    model, step = stage_step(run, rows, stage)
    optimizer = make_optimizer(model, run.study.reference)
    seconds, tokens, pairs = 0.0, 0, 0.0
    with counted(model) as count:
        for number in range(steps + 1):
            run.device.wait()
            run.device.reset_peak() if number == 1 else None
            count.clear()
            began = time.perf_counter()
            step.backward(number, number)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            run.device.wait()
            if number > 0:
                seconds += time.perf_counter() - began
                tokens += sum(sum(lengths) for lengths, grad in count if grad)
                pairs += sum(sum(n * n for n in lengths) for lengths, grad in count if grad)
    config = model[0].config
    inner = config.hidden_size * config.num_hidden_layers
    weights = sum(p.numel() for p in model.parameters()) - config.vocab_size * config.hidden_size
    operations = 3 * (2 * weights * tokens + 2 * inner * pairs)  # causal attention: half of 4 x L^2 x hidden per layer
    return {
        "tokens_per_s": tokens / seconds,
        "utilisation": operations / seconds / (ceiling * 1e12),
        "peak_gb": run.device.peak_bytes() / 1e9,
    }


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[list[tuple[list[int], bool]]]:
    """Record the lengths of the texts of every forward pass, and whether it had gradients."""
    passes: list[tuple[list[int], bool]] = []

    def note(module: torch.nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        features = inputs[0] if inputs else keywords["input"]
        mask = features.get("attention_mask")
        lengths = mask.sum(1).tolist() if mask is not None else features["cu_seq_lens_q"].diff().tolist()
        passes.append((lengths, torch.is_grad_enabled()))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


def packed_vs_padded(run: Run) -> float:
    """Compare sorted, packed micro-batches with 32 texts at a time in the order of the batch; median of ratios."""
    _, step = stage_step(run, negatives(run), "reference")
    ratios, packed = [], cached_step.pack

    def timed(number: int) -> float:
        run.device.wait()
        began = time.perf_counter()
        step.backward(number, number)
        run.device.wait()
        return time.perf_counter() - began

    timed(0)
    for number in (1, 2, 3):
        ours = timed(number)
        try:
            cached_step.pack = lambda lengths, _: np.array_split(np.arange(len(lengths)), -(-len(lengths) // 32))
            ratios.append(timed(number) / ours)
        finally:
            cached_step.pack = packed
    return float(np.median(ratios))


def exactness(folder: Path, batch: int) -> dict[str, float]:
    """Compare bfloat16 with float32, and the cached with the plain gradient."""
    run = Run(make_study(folder, batch, 1, 0, "float32"))
    model = run.load_base().eval()
    rows = negatives(run)
    source = TextSource(rows, run.study.data, model, 1)
    mixture = HomogeneousMixture(sizes_of(rows), {f"d{MEANS[3]}": 1.0}, batch, 1)
    texts = source.texts(mixture.draw(0), 8)
    exact, half = run.device, replace(run.device, autocast=True)

    def losses(device: Device) -> Tensor:
        return hard_negative_loss(similarities_of_all(model, texts, device, run.max_tokens), 0.02)

    def gradient(device: Device, cached: bool) -> Tensor:
        model.zero_grad(set_to_none=True)
        tokens = texts.queries_B

        def loss_of(embedding_nD: Tensor) -> list[Tensor]:
            half_BD, other_BD = embedding_nD.chunk(2)
            return [in_batch_loss(half_BD, other_BD, torch.arange(len(half_BD)).to(half_BD.device), 0.02).mean()]

        if cached:
            cached_step.cached_backward(model, tokens, loss_of, device, 4 * max(map(len, tokens)), 0)
        else:
            with device.precision():
                embedding_nD = embed(model, tokens)
            loss_of(embedding_nD)[0].backward()
        return torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])

    plain = gradient(exact, cached=False)
    return {
        "bfloat16_loss_difference": float((losses(half) - losses(exact)).abs().max()),
        "bfloat16_gradient_cosine": float(torch.cosine_similarity(gradient(half, cached=True), plain, dim=0)),
        "cached_gradient_error": float((gradient(exact, cached=True) - plain).norm() / plain.norm()),
    }


def matmul_tflops(size: int) -> float:
    """Measure the ceiling: a square bfloat16 matrix product, best of ten."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e12


if __name__ == "__main__":
    main()
