"""Memory, traffic and time of a training step on many GPUs as formulas; `scale.py` prints them.

The terms are those of `tdro.training`: parameters, gradients and AdamW's moments in float32 under bfloat16 autocast;
micro-batches dealt to the ranks, embeddings gathered, each rank carrying its share back; stages 0 and 2 embed twice
what the memory for graphs does not hold; `find_budget` chooses the micro-batch. docs/scale.md states every assumption.
GB are 1e9 bytes.
"""

import math
from dataclasses import dataclass, replace

from scale_subjects import Cluster, Method, Shape, Work

from tdro.core.groups import COLUMNS
from tdro.training.budget import LARGEST, SHARE, SMALLEST

READ_SECONDS = 6e-8
"""Per token of a step: each rank reads every text, in one thread. `scale.py --measure` measures it."""


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU that do not depend on the texts, and bytes for each token in a graph."""

    parameters: float
    gradients: float
    moments: float
    working: float
    per_token: float

    @property
    def state(self) -> float:
        """Bytes without any text."""
        return self.parameters + self.gradients + self.moments + self.working


def kept_per_token(shape: Shape, method: Method, mask_bytes: int = 1) -> float:
    """Bytes that the graph keeps of each token under bfloat16 autocast, torch's fused attention, no dropout but LoRA's.

    A norm keeps its float32 input and, where its weight is trained, its float32 output before the weight. Each linear
    layer whose weight is trained keeps a bfloat16 copy of its input, for autocast makes one per layer; with an adapter,
    the dropout's mask, a copy after it and the rank's few numbers. Attention keeps query, key, value, output and a sum
    per head; the gated MLP three vectors. Checkpointing keeps the float32 input of each block, and all of one block.

    Args:
        shape: A decoder.
        method: LoRA and checkpointing count.
        mask_bytes: Bytes per element of a dropout mask: 1 on a GPU, 4 on a CPU.
    """
    h, i = shape.hidden, shape.inner
    norms = 8 * h + 8
    attention = 2 * h + 4 * shape.key_width + 2 * h + 4 * shape.heads
    if method.rank:
        inputs = sum((2 + mask_bytes) * width + 2 * method.rank for width, _ in shape.linears)
    else:
        norms += 8 * h
        inputs = 2 * (3 * h + 2 * h + i)  # the output's input is what attention keeps
    block = norms + attention + inputs + 6 * i
    outer = 16 * h  # last norm and pooling
    if method.checkpointing:
        return outer + 4 * h * shape.layers + block
    before = h * (8 + 3 * mask_bytes) if method.rank else 0  # up to the first adapter nothing has a gradient
    return outer + block * shape.layers - before


def kept_per_token_bert(shape: Shape) -> float:
    """Bytes that the graph of a BERT keeps of each token in float32 without dropout.

    Per block the inputs of query, key and value (one tensor), of the MLP and of both norms, query, key, value and
    attention's output: 8 vectors; two of the inner width; a sum per head and 4 numbers of the norms. Before the first
    block the input of a norm, two numbers of it, and three integers of 8 bytes.
    """
    block = 8 * shape.hidden + 2 * shape.inner + shape.heads + 4
    return 4 * (shape.layers * block + shape.hidden + 2) + 24


def memory(shape: Shape, method: Method, gpus: int) -> Memory:
    """Bytes of a model in training on each GPU.

    Everything that is trained takes 16 B/param: parameter, gradient and two moments in float32. What LoRA freezes takes
    2: matrices of a model published in bfloat16; its table stays float32. Unsharded, autocast adds a bfloat16 copy of
    trained matrices that lives as long as a graph, and two graphs live at once without checkpointing. Sharded, two
    gathered blocks and the table are there in bfloat16, and one gradient before it is reduced.

    Args:
        gpus: That share one copy of the state, if sharded.
    """
    trained = shape.adapter(method.rank) if method.rank else shape.parameters
    matrices = shape.layers * shape.block_matrices
    frozen = 2.0 * matrices + 4.0 * (shape.parameters - matrices) if method.rank else 0.0
    per_token = kept_per_token(shape, method)
    if method.sharding == "DDP":
        working = 0.0 if method.rank else 2.0 * matrices * (1 if method.checkpointing else 2)
        return Memory(4 * trained + frozen, 4 * trained, 8 * trained, working, per_token)
    reduced = 0 if method.rank else 6 * max(shape.block, shape.table)
    working = 2.0 * (2 * shape.block + shape.table) + reduced
    return Memory((4 * trained + frozen) / gpus, 4 * trained / gpus, 8 * trained / gpus, working, per_token)


def graph_tokens(shape: Shape, method: Method, cluster: Cluster) -> int:
    """Tokens whose graphs fit at once, as `find_budget` tries them: 512, 1024, ...; 0 where not even 1024 do."""
    needed = memory(shape, method, (cluster.node if method.sharding == "HSDP" else cluster).gpus)
    room = (SHARE * cluster.memory - needed.state) / needed.per_token
    fitting = 2 ** math.floor(math.log2(room)) if room >= 1 else 0
    return min(fitting, LARGEST) if fitting >= 2 * SMALLEST else 0


def forward_flops(shape: Shape, length: int, rank: int = 0) -> float:
    """Operations of one forward pass per token of a text of `length` tokens; a multiplication and addition are two.

    2 for each parameter of a matrix, and 4 * hidden * length per block for attention, counted whole though a decoder
    needs half of it.
    """
    return 2 * (shape.layers * shape.block_matrices + shape.adapter(rank)) + 4 * shape.layers * shape.hidden * length


@dataclass(frozen=True)
class Sent:
    """Bytes that a rank sends in a step, and the seconds they take."""

    size: float
    seconds: float


@dataclass(frozen=True)
class Step:
    """A step on paper, for the rank with most to do: whole micro-batches are dealt out.

    Attributes:
        graph_tokens: Tokens whose graphs are in memory at once. Stages 0 and 2 deal out micro-batches of half of it, a
            pass each; stage 1 of all of it, in passes of a quarter.
        passes: Forward passes with graph.
        again: Share of the texts that is embedded once more, without graph, before.
        idle: Share of the ranks' time in which they wait for this one.
        sent: What is sent.
        compute: Seconds.
        reading: Seconds of the thread that prepares the next step meanwhile.
    """

    graph_tokens: int
    passes: int
    again: float
    idle: float
    sent: dict[str, Sent]
    compute: float
    reading: float

    @property
    def traffic(self) -> float:
        """Seconds of everything that is sent."""
        return sum(sent.seconds for sent in self.sent.values())

    @property
    def dominant(self) -> str:
        """What takes longest: "compute", "reading", or the largest part of the traffic."""
        if self.reading > max(self.compute, self.traffic):
            return "reading"
        if self.compute >= self.traffic:
            return "compute"
        return max(self.sent, key=lambda term: self.sent[term].seconds)

    @property
    def seconds(self) -> float:
        """Seconds of the step where nothing overlaps but the reading."""
        return max(self.compute + self.traffic, self.reading)


def step(shape: Shape, method: Method, cluster: Cluster, work: Work) -> Step | None:
    """Put a step on paper; None where the model does not fit."""
    tokens = graph_tokens(shape, method, cluster)
    if tokens < work.together:
        return None
    dealt = tokens // 2 if work.contrastive else tokens
    if cluster.shares:
        dealt = max(min(dealt, work.tokens // (cluster.gpus * cluster.shares)), work.together)
    micro_batches = math.ceil(math.ceil(work.tokens / dealt) / cluster.gpus)
    mine = min(micro_batches * dealt, work.tokens)
    again = max(0.0, 1 - tokens // dealt / micro_batches) if work.contrastive else 0.0
    passes = micro_batches * (1 if work.contrastive else 4)
    plain, adapted = forward_flops(shape, work.length), 2.0 * shape.adapter(method.rank)
    attention = plain - forward_flops(shape, 0)
    # Backward costs a forward pass for the gradients of activations and one for those of weights; attention has no
    # weights but two factors, so twice in any case.
    backward = 2 * plain if not method.rank else plain + attention + 2 * adapted
    flops = mine * ((1 + again + method.checkpointing) * (plain + adapted) + backward)
    sent = traffic(shape, method, cluster, work, passes, math.ceil(passes * again))
    idle = 1 - work.tokens / (cluster.gpus * mine)
    compute = flops / (cluster.share * cluster.peak)
    return Step(tokens, passes, again, idle, sent, compute, work.tokens * READ_SECONDS)


def traffic(
    shape: Shape, method: Method, cluster: Cluster, work: Work, passes: int, plain_passes: int
) -> dict[str, Sent]:
    """List what a rank sends in a step.

    Unsharded, gradients are summed once, in float32. Sharded, every pass gathers the parameters in bfloat16 (forward,
    and again backward) and every backward pass reduces the float32 gradients; within nodes ("HSDP") the nodes then sum
    their shares once. Stages 0 and 2 gather float32 embeddings, and every rank computes the whole loss; stage 1 sums
    the float64 losses of the batch, and every rank computes the statistics.

    Args:
        passes: With graph.
        plain_passes: Without.
    """
    gradient = 4.0 * (shape.adapter(method.rank) if method.rank else shape.parameters)
    sent: dict[str, Sent] = {}

    def send(term: str, size: float, speed: float) -> None:
        before = sent.get(term, Sent(0.0, 0.0))
        sent[term] = Sent(before.size + size, before.seconds + size / speed)

    if method.sharding == "DDP":
        send("gradients", cluster.summed(gradient), cluster.ring)
    else:
        group = cluster.node if method.sharding == "HSDP" else cluster
        send("parameters", (2 * passes + plain_passes) * group.gathered(2 * shape.parameters), group.ring)
        send("gradients", passes * group.gathered(gradient), group.ring)
        nodes = replace(cluster, gpus=cluster.gpus // group.gpus)
        send("gradients", nodes.summed(gradient / group.gpus), cluster.network / group.gpus)
    if work.contrastive:
        send("embeddings", cluster.gathered(4 * work.texts * shape.hidden), cluster.ring)
    else:
        send("losses", cluster.summed(8 * work.batch), cluster.ring)
    return sent


def statistics_bytes(datasets: int) -> int:
    """Bytes of the sums that move the weights: 7 float64 numbers per dataset."""
    return len(COLUMNS) * 8 * datasets


def checkpoint_bytes(shape: Shape, method: Method) -> float:
    """Bytes of a checkpoint: what is trained and its two moments, float32."""
    return 12.0 * (shape.adapter(method.rank) if method.rank else shape.parameters)


def similarity_bytes(work: Work, steps: int) -> float:
    """Bytes of the reference's similarities of a stage 1 whose steps are `drawn`: float32."""
    return 4.0 * steps * work.batch * work.passages
