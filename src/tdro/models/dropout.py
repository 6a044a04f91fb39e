"""Dropout that costs less on a CPU: 16 random bits per element, and attention in slices that fit into the cache.

torch draws the elements of a mask one by one on one core, and its attention leaves the fast kernels as soon as dropout
is on; for texts of 256 tokens that doubles the time of a BERT-like step. Here p is rounded to the next 1/65536, kept
elements are scaled by exactly 1/(1-p), and the bits come from a generator whose seed torch's own generator gives, so
`torch.manual_seed` and gradient checkpointing work as before.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "tdro_dropout"
_LEVELS = 1 << 16
_SLICE = 1 << 17
"""Attention weights that are worked on at once."""


@contextmanager
def fast_dropout(model: nn.Module) -> Iterator[None]:
    """Use the faster dropout of a model on a CPU inside the block; the model is as before after it.

    Only modules with a dropout above 0 are touched, and attention only where it runs through torch's
    `scaled_dot_product_attention` ("sdpa"). A compiled model is left alone.
    """
    swapped: list[tuple[nn.Module, str, nn.Dropout]] = []
    attentions: list[PreTrainedModel] = []
    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
    if next(model.parameters()).device.type == "cpu" and not compiled:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Dropout) and child.p > 0:
                    swapped.append((parent, name, child))
        attentions = [m for m in model.modules() if isinstance(m, PreTrainedModel) and _drops_attention(m)]
    for parent, name, child in swapped:
        setattr(parent, name, FastDropout(child.p).train(child.training))
    for network in attentions:
        network.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        for network in attentions:
            network.set_attn_implementation("sdpa")
        for parent, name, child in swapped:
            child.train(getattr(parent, name).training)
            setattr(parent, name, child)


class FastDropout(nn.Module):
    """Stands in for `nn.Dropout`.

    Args:
        p: Probability of an element to become 0, from 0 to 1; rounded to 1/65536.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements in training mode."""
        return drop(x, self.p) if self.training else x


def drop(x: Tensor, p: float) -> Tensor:
    """Set elements to 0 with probability p and scale the others by 1/(1-p).

    Example:
        >>> torch.equal(drop(torch.ones(5), 0.0), torch.ones(5)), drop(torch.ones(5), 1.0).sum().item()
        (True, 0.0)
    """
    dropped = round(p * _LEVELS)
    if dropped == 0:
        return x
    if dropped == _LEVELS:
        return x * 0.0
    result: Tensor = _Drop.apply(x, dropped)
    return result


class _Drop(torch.autograd.Function):
    """x * mask / (1-p), keeping the mask in one byte per element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        """Draw the mask and multiply."""
        keep = _Masks().next(x.shape, dropped)
        ctx.save_for_backward(keep)
        ctx.scale = _LEVELS / (_LEVELS - dropped)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Multiply the gradient."""
        (keep,) = ctx.saved_tensors
        return (gradients[0] * keep).mul_(ctx.scale), None


class _Attention(torch.autograd.Function):
    """Attention with dropout on its weights, a few texts at a time: softmax(q k^T + mask), masked, applied to v."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropped: int
    ) -> Tensor:
        """Attend; q, k and v are [n, heads, L, D]."""
        texts, heads, length, _ = query.shape
        ctx.scaling, ctx.scale = scaling, _LEVELS / (_LEVELS - dropped)
        ctx.step = max(1, _SLICE // (heads * length * key.shape[2]))
        masks, kept = _Masks(), []
        attended = torch.empty_like(query)
        for start in range(0, texts, ctx.step):
            part = slice(start, start + ctx.step)
            scores = query[part] @ (key[part] * scaling).transpose(2, 3)
            if mask is not None:
                shown = mask[part] if len(mask) > 1 else mask
                scores = scores.masked_fill_(~shown, -torch.inf) if shown.dtype == torch.bool else scores.add_(shown)
            weights = scores.softmax(-1)
            keep = masks.next(weights.shape, dropped)
            torch.matmul(weights * keep, value[part] * ctx.scale, out=attended[part])
            kept += [weights, keep]
        ctx.save_for_backward(query, key, value, *kept)
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Send the gradient through weights and values."""
        query, key, value, *kept = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for number, start in enumerate(range(0, len(query), ctx.step)):
            part = slice(start, start + ctx.step)
            weights, keep = kept[2 * number], kept[2 * number + 1]
            gradient = gradients[0][part] * ctx.scale
            of_weights = (gradient @ value[part].transpose(2, 3)).mul_(keep)
            of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
            torch.matmul((weights * keep).transpose(2, 3), gradient, out=of_value[part])
            torch.matmul(of_scores, key[part] * ctx.scaling, out=of_query[part])
            torch.matmul(of_scores.transpose(2, 3), query[part] * ctx.scaling, out=of_key[part])
        return of_query, of_key, of_value, None, None, None


class _Masks:
    """Random masks, seeded by torch's generator."""

    def __init__(self) -> None:
        self._bits = np.random.SFC64(int(torch.randint(1 << 62, ())))

    def next(self, shape: torch.Size, dropped: int) -> Tensor:
        """Draw a mask, False with probability dropped / 65536."""
        count = math.prod(shape)
        numbers = self._bits.random_raw((count + 3) // 4).view(np.uint16)[:count]
        return torch.from_numpy((numbers >= dropped).reshape(shape))


def _drops_attention(network: PreTrainedModel) -> bool:
    """Whether a network runs torch's attention with dropout."""
    names = ("attention_probs_dropout_prob", "attention_dropout", "attention_dropout_prob")
    drops = any((getattr(network.config, name, 0.0) or 0.0) > 0 for name in names)
    return drops and network.config._attn_implementation == "sdpa"


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend with the faster dropout; without dropout, and where masks are implied or heads shared, as torch does."""
    causal = options.get("is_causal")
    implied = attention_mask is None and (getattr(module, "is_causal", True) if causal is None else causal)
    dropped = round(dropout * _LEVELS)
    unusual = implied or query.shape[1] != key.shape[1] or options.get("position_bias") is not None
    if dropped in (0, _LEVELS) or unusual or value.shape[-1] != query.shape[-1]:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return output
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended: Tensor = _Attention.apply(query, key, value, attention_mask, scaling, dropped)
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
