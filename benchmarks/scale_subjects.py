"""What `scale.py` puts on paper: networks, ways to train them, clusters, and the texts of a step."""

from dataclasses import dataclass, replace
from typing import Literal

from tdro.config import ReferenceConfig, WeightsConfig

BATCH = ReferenceConfig().batch_size
RANK = 8
"""Of LoRA, as in the paper."""
GIGA = 1e9


@dataclass(frozen=True)
class Shape:
    """A network: a decoder with gated MLP and RMSNorm (Qwen, Llama, Mistral), or BERT.

    Attributes:
        hidden: Width of the residual stream, and of an embedding.
        inner: Width inside the MLP.
        key_width: Width of keys, and of values: below `hidden` where heads share them.
        biases: "none", "qkv" (Qwen), or "all" (BERT, which also has two matrices instead of three in its MLP).
        positions: Rows of BERT's tables of positions and of token types.
    """

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    key_width: int
    vocabulary: int
    biases: str = "none"
    positions: int = 0

    @property
    def is_bert(self) -> bool:
        """Whether it is a BERT."""
        return self.biases == "all"

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Widths (in, out) of the linear layers of a block."""
        h, i, k = self.hidden, self.inner, self.key_width
        return [(h, h), (h, k), (h, k), (h, h), *([(h, i)] if self.is_bert else [(h, i), (h, i)]), (i, h)]

    @property
    def block_matrices(self) -> int:
        """Parameters of a block that are multiplied with every token."""
        return sum(width * out for width, out in self.linears)

    @property
    def block(self) -> int:
        """Parameters of a block, biases and norms included."""
        biased = {"none": 0, "qkv": 3, "all": len(self.linears)}[self.biases]
        norms = 4 * self.hidden if self.is_bert else 2 * self.hidden
        return self.block_matrices + sum(out for _, out in self.linears[:biased]) + norms

    @property
    def table(self) -> int:
        """Parameters outside the blocks: the table of tokens, BERT's of positions and types, and the outer norm."""
        return (self.vocabulary + self.positions) * self.hidden + (2 if self.is_bert else 1) * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters of the encoder; a language model's output layer is not part of it."""
        return self.table + self.layers * self.block

    def adapter(self, rank: int) -> int:
        """Parameters of LoRA on all linear layers of all blocks."""
        return self.layers * sum(rank * (width + out) for width, out in self.linears)


SHAPES = (
    Shape("0.5B", 1024, 2816, 24, 16, 1024, 151_936, "qkv"),
    Shape("1.8B", 2048, 5504, 24, 16, 2048, 151_936, "qkv"),
    Shape("4B", 2560, 6912, 40, 20, 2560, 151_936, "qkv"),
    Shape("7B", 4096, 11_008, 32, 32, 4096, 151_936, "qkv"),
    Shape("8B", 4096, 14_336, 32, 32, 1024, 128_256),
)
"""Qwen1.5-0.5B, 1.8B, 4B and 7B, Llama-3-8B: the paper's models."""


@dataclass(frozen=True)
class Method:
    """How a model is trained.

    Attributes:
        sharding: Who has parameters, gradients and moments: every rank all of them ("DDP"), all ranks together
            ("FSDP2"), or the ranks of a node together ("HSDP", FSDP2 on a mesh of nodes).
        rank: Of LoRA; 0 trains everything.
        checkpointing: Blocks are computed again in the backward pass.
    """

    sharding: Literal["DDP", "FSDP2", "HSDP"]
    rank: int = 0
    checkpointing: bool = False

    def __str__(self) -> str:
        parts = (self.sharding, "LoRA" if self.rank else "full", "ckpt" * self.checkpointing)
        return " ".join(filter(None, parts))


SHARDINGS: tuple[Literal["DDP", "FSDP2", "HSDP"], ...] = ("DDP", "FSDP2", "HSDP")
METHODS = tuple(Method(s, r, c) for s in SHARDINGS for r in (0, RANK) for c in (False, True))


@dataclass(frozen=True)
class Cluster:
    """GPUs and what connects them; speeds per second, one direction.

    Attributes:
        share: Share of the peak that a training step reaches.
        nvlink: Bytes between the GPUs of a node.
        network: Bytes that a node sends.
        shares: Micro-batches are made so small that each GPU gets this many; 0: as large as memory allows.
    """

    gpus: int
    per_node: int = 8
    memory: float = 80e9
    peak: float = 989e12
    share: float = 0.4
    nvlink: float = 300e9
    network: float = 25e9
    shares: int = 0

    @property
    def ring(self) -> float:
        """Bytes per second of a ring through all GPUs: its slowest link."""
        return self.nvlink if self.gpus <= self.per_node else min(self.nvlink, self.network)

    @property
    def node(self) -> "Cluster":
        """One node of the cluster."""
        return replace(self, gpus=min(self.gpus, self.per_node))

    def gathered(self, size: float) -> float:
        """Bytes that a rank sends so that all have the `size` bytes of which each has a share; also reduce-scatter."""
        return size * (self.gpus - 1) / self.gpus

    def summed(self, size: float) -> float:
        """Bytes that a rank sends in an all-reduce."""
        return 2 * self.gathered(size)


@dataclass(frozen=True)
class Work:
    """The texts of a step.

    Attributes:
        contrastive: Stage 0 or 2: all embeddings meet in one loss. Otherwise stage 1: a query and its own passages.
    """

    contrastive: bool
    passages: int
    batch: int = BATCH
    query_tokens: int = 128
    passage_tokens: int = 512

    @property
    def texts(self) -> int:
        """Texts of a step."""
        return self.batch * (1 + self.passages)

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * (self.query_tokens + self.passages * self.passage_tokens)

    @property
    def length(self) -> int:
        """Tokens of the text that a token is in, on average."""
        squares = self.query_tokens**2 + self.passages * self.passage_tokens**2
        return round(squares * self.batch / self.tokens)

    @property
    def together(self) -> int:
        """Tokens that must be in one graph at least: a passage, or in stage 1 a query with all its passages."""
        return self.passage_tokens if self.contrastive else self.tokens // self.batch


FINE_TUNING = Work(True, ReferenceConfig().passages_per_query)
WEIGHTS = Work(False, WeightsConfig().passages_per_query)
