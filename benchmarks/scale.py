"""What a step costs on many GPUs, on paper; and the same formulas measured on this machine.

    .venv/bin/python benchmarks/scale.py                             # the tables of docs/scale.md
    .venv/bin/python benchmarks/scale.py --network 50 --query-tokens 30 --passage-tokens 150
    .venv/bin/python benchmarks/scale.py --measure                   # what this machine says about the formulas

Nothing here needs a GPU. The formulas are in `scale_terms.py`, their assumptions in docs/scale.md.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace

from scale_subjects import BATCH, FINE_TUNING, GIGA, METHODS, RANK, SHAPES, WEIGHTS, Cluster, Method, Shape, Work
from scale_terms import Step, checkpoint_bytes, graph_tokens, memory, similarity_bytes, statistics_bytes, step

CLUSTER, GPUS = Cluster(8), (8, 16, 32, 64)


def largest(method: Method, cluster: Cluster, work: Work) -> str:
    """Name the largest of the models that fits, "-" where none does."""
    fitting = [shape for shape in SHAPES if graph_tokens(shape, method, cluster) >= work.together]
    return max(fitting, key=lambda shape: shape.parameters).name if fitting else "-"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def memory_table(cluster: Cluster) -> str:
    """GB on each GPU, KB per token in a graph, and tokens whose graphs fit; HSDP is FSDP2 on one node."""
    rows = []
    for shape in SHAPES:
        for method in METHODS:
            if method.sharding == "HSDP":
                continue
            found, tokens = memory(shape, method, cluster.gpus), graph_tokens(shape, method, cluster)
            sizes = (found.parameters, found.gradients, found.moments, found.working, found.state)
            kilobytes = f"{found.per_token / 1e3:,.0f}"
            cells = [*(f"{size / GIGA:.1f}" for size in sizes), kilobytes, f"{tokens:,}" if tokens else "-"]
            rows.append([shape.name, method, *cells])
    sizes_head = ["parameters", "gradients", "moments", "working", "sum"]
    return table(["model", "method", *sizes_head, "KB/token", "graph tokens"], rows)


def faster(shape: Shape, method: Method, cluster: Cluster, work: Work) -> tuple[Method, Step] | None:
    """Put a step on paper with and without checkpointing, and take the faster; None where neither fits."""
    both = [replace(method, checkpointing=saves) for saves in (False, True)]
    found = [(tried, done) for tried in both if (done := step(shape, tried, cluster, work))]
    return min(found, key=lambda pair: pair[1].seconds) if found else None


def step_table(clusters: Sequence[Cluster], work: Work) -> str:
    """Seconds of compute + traffic on each cluster and what takes longest; "c": with checkpointing, as it is faster."""
    rows = []
    for shape in SHAPES:
        for method in (method for method in METHODS if not method.checkpointing):
            found = [faster(shape, method, cluster, work) for cluster in clusters]
            if any(found):
                cells = [_seconds(*pair) if pair else "-" for pair in found]
                rows.append([shape.name, method, *cells])
    return table(["model", "method", *(f"{c.gpus} GPUs" for c in clusters)], rows)


def _seconds(method: Method, found: Step) -> str:
    """Write a cell of `step_table`."""
    return f"{found.compute:.1f} + {found.traffic:.2f} {found.dominant}{' c' * method.checkpointing}"


def sent_table(cluster: Cluster, work: Work) -> str:
    """GB that a GPU sends in a step, and how its texts are cut up; of the faster of with and without checkpointing."""
    rows = []
    for shape in SHAPES:
        for plain in (method for method in METHODS if not method.checkpointing):
            if pair := faster(shape, plain, cluster, work):
                method, found = pair
                terms = ("parameters", "gradients", "embeddings")
                sent = [f"{found.sent[term].size / GIGA:.3g}" if term in found.sent else "-" for term in terms]
                rows.append([shape.name, method, *sent, found.passes, f"{found.again:.0%}", f"{found.idle:.0%}"])
    head = ["model", "method", "parameters", "gradients", "embeddings", "passes", "embedded twice", "idle"]
    return table(head, rows)


def largest_table(clusters: Sequence[Cluster], works: Sequence[Work]) -> str:
    """The largest model that fits: stages 0 and 2 / stage 1."""
    rows = [[method, *(" / ".join(largest(method, c, w) for w in works) for c in clusters)] for method in METHODS]
    return table(["method", *(f"{c.gpus} GPUs" for c in clusters)], rows)


def dataset_table(numbers: Sequence[int]) -> str:
    """What grows with the number of datasets; nothing that is sent does."""
    rows = []
    for datasets in numbers:
        absent = (1 - 1 / datasets) ** BATCH
        rows.append([datasets, f"{statistics_bytes(datasets):,}", f"{BATCH / datasets:.1f}", f"{absent:.1%}"])
    return table(["datasets", "statistics of a step, bytes", "queries of each in a step", "absent from a step"], rows)


def file_table() -> str:
    """GB of the files of a run: a checkpoint by model, and the reference's similarities of 1,000 steps."""
    rows = [[s.name, *(f"{checkpoint_bytes(s, Method('DDP', rank)) / GIGA:.2f}" for rank in (0, RANK))] for s in SHAPES]
    rows.append(["any: similarities", *[f"{similarity_bytes(WEIGHTS, 1000) / GIGA:.2f}"] * 2])
    return table(["model", "checkpoint full", "LoRA"], rows)


def tables(
    cluster: Cluster = CLUSTER, gpus: Sequence[int] = GPUS, works: Sequence[Work] = (FINE_TUNING, WEIGHTS)
) -> str:
    """All tables, as docs/scale.md has them."""
    clusters = [replace(cluster, gpus=number) for number in gpus]
    sections = [(f"Memory on each of {clusters[0].gpus} GPUs, GB", memory_table(clusters[0]))]
    sections.append(("Largest model that fits: stages 0 and 2 / stage 1", largest_table(clusters, works)))
    for work in works:
        stage = "stages 0 and 2" if work.contrastive else "stage 1"
        sections.append(
            (f"Seconds of a step, {stage}: compute + traffic, what takes longest", step_table(clusters, work))
        )
    last = clusters[-1]
    sent = sent_table(last, next(work for work in works if work.contrastive))
    sections.append((f"GB that each of {last.gpus} GPUs sends in a step of stages 0 and 2", sent))
    sections += [("Datasets", dataset_table((25, 100, 300, 1000))), ("Files, GB", file_table())]
    return "\n\n".join(f"### {title}\n{text}" for title, text in sections)


def main() -> None:
    """Print the tables, or what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, nargs="+", default=list(GPUS))
    parser.add_argument("--network", type=float, default=CLUSTER.network / GIGA, help="GB/s that a node sends")
    parser.add_argument("--peak", type=float, default=CLUSTER.peak / 1e12, help="TFLOP/s of a GPU in bfloat16")
    parser.add_argument("--share", type=float, default=CLUSTER.share, help="share of it that a step reaches")
    parser.add_argument("--shares", type=int, default=CLUSTER.shares, help="micro-batches of each GPU at least")
    parser.add_argument("--query-tokens", type=int, default=WEIGHTS.query_tokens, help="of every query")
    parser.add_argument("--passage-tokens", type=int, default=WEIGHTS.passage_tokens, help="of every passage")
    parser.add_argument("--measure", action="store_true", help="compare the formulas with this machine")
    given = parser.parse_args()
    if given.measure:
        from scale_measured import report

        print(report())
        return
    cluster = replace(CLUSTER, peak=given.peak * 1e12, share=given.share, network=given.network * GIGA)
    cluster = replace(cluster, shares=given.shares)
    lengths = {"query_tokens": given.query_tokens, "passage_tokens": given.passage_tokens}
    print(tables(cluster, given.gpus, [replace(work, **lengths) for work in (FINE_TUNING, WEIGHTS)]))


if __name__ == "__main__":
    main()
