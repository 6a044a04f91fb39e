"""Compare tdro's algorithm with vectors written by the paper's released code.

    python tests/golden/check.py FILE [FILE ...]

Each file is `algo_*.json[.gz]`; files of another kind are named and left out. Prints the largest error of each file by
the rule |difference| <= 1e-5 * max(1, |x|); exits 1 when one is above it. Options that tdro does not have: `skipped`.

The measure divides by reference losses down to 1e-4 of the batch, so the last bit of a float32 loss of 0.001 nats moves
a group loss by 1e-4 of itself. The vectors were written with AVX2 kernels; AVX-512 ones add in another order. Hence the
setting below, which must come before torch.
"""

import gzip
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # not when a test run imports this file: it would change the kernels of every test
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
import numpy as np
import torch
from torch import Tensor

from tdro.core.losses import hard_negative_loss, in_batch_loss, own_similarities
from tdro.core.measures import sample_measure
from tdro.core.objective import released_example_weights
from tdro.core.updates import (
    WeightState,
    clip_elements,
    clip_l2,
    initial_state,
    optimizer_step,
    raise_log_weights,
)

TOLERANCE = 1e-5
OPTIMIZERS = {
    "sgd": "sgd",
    "adamw": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "rmsprop": "rmsprop",
    "adagrad": "adagrad",
    "adafactor": "adafactor",
}
"""The released code's names -> ours."""
Json = dict[str, Any]


def unsupported(case: Json) -> str | None:
    """Name the first option of a case that tdro does not have, None when it has all."""
    options = case["options"]
    needed = {
        "a known optimizer": options["dro_optimizer"] in OPTIMIZERS,
        "a known schedule": options["dro_lr_scheduler_type"] in ("constant", "linear", "cosine"),
        "loss per example": options["loss_reduction"] == "none",
    }
    return next((name for name, there in needed.items() if not there), None)


def step_size(case: Json, step: int) -> float:
    """Step size of the released schedule: warm-up from 0, then down to `min_lr_ratio`; constant has neither."""
    options, total = case["options"], case["total_steps"]
    warmup = options["dro_warmup_steps"] or math.ceil(total * options["dro_warmup_ratio"])
    if options["dro_lr_scheduler_type"] == "constant":
        share = 1.0
    elif step < warmup:
        share = step / warmup
    else:
        progress = (step - warmup) / max(1, total - warmup)
        decay = 1 - progress if options["dro_lr_scheduler_type"] == "linear" else (1 + math.cos(math.pi * progress)) / 2
        share = options["min_lr_ratio"] + (1 - options["min_lr_ratio"]) * decay
    return float(options["reweight_eta"] * share)


def clip(signal_G: np.ndarray, options: Json) -> np.ndarray:
    """Clip as the options say: by L2 norm, by element, or not at all."""
    if options["dro_apply_grad_norm"]:
        signal_G = clip_l2(signal_G, options["dro_max_grad_norm"])
    if options["dro_apply_grad_clip"]:
        signal_G = clip_elements(signal_G, options["dro_max_grad_norm"])
    return signal_G


def update(state: WeightState, signal_G: np.ndarray, rate: float, options: Json) -> WeightState:
    """Move the weights as the options say."""
    rule = OPTIMIZERS[options["dro_optimizer"]]
    settings: Json = {"weight_decay": options["dro_weight_decay"]} if rule != "adafactor" else {}
    if rule == "sgd" and options["weight_ema"]:
        settings |= {"momentum": options["ema"], "dampening": 1 - options["ema"]}
    if rule in ("adamw", "rmsprop"):
        settings["eps"] = options["dro_epsilon"]
    if rule == "adamw":
        settings["betas"] = (options["dro_adam_beta1"], options["dro_adam_beta2"])
    if rule == "rmsprop":
        settings["alpha"] = options["dro_rmsprop_alpha"]
    after = optimizer_step(state, signal_G, rate, optimizer=rule, ema_decay=options["ema"], **settings)
    if options["normalize_weights_on_every_update"]:
        return after
    raised_G, _ = raise_log_weights(state, signal_G, rate, rule, **settings)
    return after._replace(log_weights_G=raised_G)


def softmax(log_G: np.ndarray) -> np.ndarray:
    """Weights of log-weights that may not be normalised."""
    return np.exp(log_G - np.logaddexp.reduce(log_G))


def rank_losses(case: Json, ranks: list[Json], rank: int, side: str) -> tuple[Tensor, list[Tensor]]:
    """Compute the per-example losses that one rank sees; returns the leaves q, p of that rank too."""
    n = case["n_passages"]
    q, p = (torch.tensor(ranks[rank][name + side], requires_grad=not side) for name in "qp")
    temperature, options = case["temperature"], case["options"]
    if options["dro_only_hn"]:
        return hard_negative_loss(own_similarities(q, p, torch.full((len(q),), n)), temperature), [q, p]
    if not options["negatives_x_device"]:
        return in_batch(q, p, ranks[rank]["only_hn"], n, temperature), [q, p]
    everything = [
        [q, p] if r == rank else [torch.tensor(other[k + side]) for k in "qp"] for r, other in enumerate(ranks)
    ]
    all_q, all_p = (torch.cat([pair[i] for pair in everything]) for i in (0, 1))
    only_hn = [x for other in ranks for x in other["only_hn"] or [False] * len(other["q"])]
    return in_batch(all_q, all_p, only_hn, n, temperature) * len(ranks), [q, p]


def in_batch(q: Tensor, p: Tensor, only_hn: list[bool] | None, n: int, temperature: float) -> Tensor:
    """In-batch losses; queries marked as hard negatives only do not see the passages of others."""
    owner_P = torch.arange(len(p)) // n
    alone_B = torch.tensor(only_hn or [False] * len(q))
    excluded_BP = alone_B[:, None] & (owner_P[None, :] != torch.arange(len(q))[:, None])
    return in_batch_loss(q, p, torch.arange(len(q)) * n, temperature, excluded_BP.nonzero())


def replay(case: Json) -> Iterator[tuple[str, Any, Any]]:
    """Run a case and yield (name, ours, expected) for every number of it."""
    options, n_groups = case["options"], case["n_groups"]
    accumulate, gathered = case["gradient_accumulation_steps"], options["negatives_x_device"]
    state: WeightState = initial_state(np.array(case["initial_weights"]))
    # The released code starts from the raw weights, which need not sum to 1.
    state = state._replace(log_weights_G=np.array(case["initial_log_weights"]), ema_G=np.array(case["initial_weights"]))
    for number, step in enumerate(case["steps"]):
        signal_G = np.zeros(n_groups)
        for m, micro in enumerate(step["micro"]):
            ranks = micro["ranks"]
            losses, leaves = zip(*(rank_losses(case, ranks, r, "") for r in range(len(ranks))), strict=True)
            references = [rank_losses(case, ranks, r, "_ref")[0] for r in range(len(ranks)) if case["use_ref_model"]]
            groups = [torch.tensor(rank["domain_ids"]) for rank in ranks]
            everyone = torch.cat(groups)
            pooled = [x[0] / len(ranks) if gathered else torch.cat(x) for x in (losses, references) if x]
            loss_B, *reference = (x.detach().numpy() for x in pooled)
            group_G = sample_measure(
                loss_B,
                reference[0] if reference else None,
                everyone.numpy(),
                n_groups,
                subtract=options["group_loss_minus_ref_loss"],
                divide=options["normalize_group_loss_scale_with_ref_loss"],
                p_norm=options["p_norm_of_ref_loss"],
            )
            yield "group_loss", group_G, micro["group_loss"]
            signal_G = signal_G + group_G
            if m == accumulate - 1:  # the released code updates before the robust loss of the last micro-batch
                signal_G = signal_G / accumulate
                clipped_G, rate = clip(signal_G, options), step_size(case, number)
                state = update(state, clipped_G, rate, options)
            for r, rank in enumerate(ranks):
                yield "per_sample_loss", losses[r].detach(), rank["per_sample_loss"]
                if references:
                    yield "per_sample_ref_loss", references[r], rank["per_sample_ref_loss"]
                weights_G = torch.from_numpy(softmax(state.log_weights_G)).float()
                factor_B = released_example_weights(weights_G, everyone if gathered else groups[r])
                robust = (losses[r] * factor_B).sum()
                robust.backward()
                yield "robust_loss", robust.detach(), rank["robust_loss"]
                yield "grad_q", leaves[r][0].grad, rank["grad_q"]
                yield "grad_p", leaves[r][1].grad, rank["grad_p"]
        yield "grad_before_clip", signal_G, step["grad_before_clip"]
        yield "grad_after_clip", clipped_G, step["grad_after_clip"]
        yield "lr", rate, step["lr"]
        yield "log_weights", state.log_weights_G, step["log_weights"]
        yield "weights", softmax(state.log_weights_G), step["weights"]
        yield "mean", state.mean_G, step["mean"]
        yield "ema", state.ema_G, step["ema"]


def error(ours: Any, expected: Any) -> float:
    """Largest |ours - expected| / max(1, |expected|); equal infinities agree, anything else non-finite does not."""
    a, b = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    if a.shape != b.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        relative = np.where(a == b, 0.0, np.abs(a - b) / np.maximum(1, np.abs(b)))
    return float(np.nan_to_num(relative, nan=np.inf).max(initial=0.0))


def check(path: Path) -> tuple[str, bool]:
    """Check one file; returns the line to print and whether it is within tolerance."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        case = json.load(file)
    if "steps" not in case:
        return f"{path.name:45} not a vector of the algorithm", True
    missing = unsupported(case)
    if missing:
        return f"{path.name:45} skipped: needs other than {missing}", True
    worst, name = max((error(ours, expected), name) for name, ours, expected in replay(case))
    return f"{path.name:45} {worst:.2e} ({name}){'' if worst <= TOLERANCE else '  ABOVE 1e-5'}", worst <= TOLERANCE


def main(paths: list[str]) -> int:
    """Check all files and print a line for each."""
    results = [check(Path(path)) for path in paths]
    print("\n".join(line for line, _ in results))
    return 0 if paths and all(good for _, good in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
