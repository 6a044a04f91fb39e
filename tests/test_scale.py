"""The formulas of benchmarks/scale.py are those of the code: bytes, operations and passes as tiny models show them."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import scale
import scale_measured
from scale_measured import AUTOCAST, LENGTH, PLAIN, TEXTS, paper_kept_bytes, tiny
from scale_subjects import FINE_TUNING, METHODS, SHAPES, WEIGHTS, Cluster, Method, Shape
from scale_terms import (
    checkpoint_bytes,
    forward_flops,
    graph_tokens,
    memory,
    similarity_bytes,
    statistics_bytes,
    step,
    traffic,
)

from tdro.core.groups import GroupStatistics
from tdro.devices import Device
from tdro.training.budget import LARGEST, SHARE, SMALLEST
from tdro.training.cached_step import _first_kept

ROOT = Path(__file__).parent.parent
BERT = Shape("bert", 768, 3072, 12, 12, 768, 30_522, "all", 514)
FULL = Method("DDP")


@pytest.mark.parametrize("shape", [BERT, *SHAPES], ids=lambda shape: shape.name)
def test_parameters_are_those_of_the_architecture(shape):
    sizes = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "vocab_size": shape.vocabulary,
    }
    key_heads = {"num_key_value_heads": shape.key_width * shape.heads // shape.hidden}
    with torch.device("meta"):
        if shape.is_bert:
            model = BertModel(BertConfig(**sizes), add_pooling_layer=False)
        elif shape.biases == "qkv":
            model = Qwen2Model(Qwen2Config(**sizes, **key_heads))
        else:
            model = LlamaModel(LlamaConfig(**sizes, **key_heads))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("family", "method", "device"),
    [
        ("bert", FULL, PLAIN),
        ("qwen2", FULL, AUTOCAST),
        ("qwen2", Method("DDP", 8), AUTOCAST),
        ("qwen2", Method("DDP", 0, True), AUTOCAST),
        ("llama", FULL, AUTOCAST),
    ],
    ids=str,
)
def test_a_graph_keeps_the_bytes_of_the_formula(tmp_path, family, method, device: Device):
    model, shape = tiny(family, tmp_path / "model", method)
    assert scale_measured.kept_bytes(model, device) == pytest.approx(paper_kept_bytes(shape, method), rel=0.03)


@pytest.mark.parametrize("method", [FULL, Method("DDP", 8)], ids=str)
def test_parameters_gradients_and_moments_take_the_bytes_of_the_formula(tmp_path, method):
    model, shape = tiny("qwen2", tmp_path / "model", method)
    on_paper = memory(shape, method, gpus=1)
    expected = (on_paper.parameters, on_paper.gradients, on_paper.moments)
    assert scale_measured.state_bytes(model) == expected


@pytest.mark.parametrize("method", [FULL, Method("DDP", 8)], ids=str)
def test_a_checkpoint_has_the_bytes_of_the_formula_and_a_header_per_tensor(tmp_path, method):
    model, shape = tiny("qwen2", tmp_path / "model", method)
    tensors = 4 * sum(parameter.requires_grad for parameter in model.parameters())  # with moments and their steps
    size = scale_measured.checkpoint_size(model, tmp_path / "checkpoints")
    assert checkpoint_bytes(shape, method) < size < checkpoint_bytes(shape, method) + 200 * tensors


@pytest.mark.parametrize(("family", "pooler"), [("llama", 0), ("qwen2", 0), ("bert", 1)])
def test_operations_are_two_per_weight_and_token_and_those_of_attention(tmp_path, family, pooler):
    model, shape = tiny(family, tmp_path / "model", FULL, attention="eager")
    forward = TEXTS * LENGTH * forward_flops(shape, LENGTH)
    unused = pooler * TEXTS * 2 * shape.hidden**2  # one token of each text goes through BERT's pooler for nothing
    assert scale_measured.flops(model) == (forward + unused, 2 * forward)


def test_the_sums_that_move_1000_weights_are_56_kilobytes():
    assert statistics_bytes(1000) == GroupStatistics.zeros(1000).sums_GC.nbytes == 56_000


def test_similarities_of_1000_steps_of_2048_queries_with_8_passages_are_65_megabytes():
    assert similarity_bytes(WEIGHTS, 1000) == 65_536_000


def test_a_ring_of_4_sends_three_quarters_to_gather_and_twice_that_to_sum():
    assert (Cluster(4).gathered(100), Cluster(4).summed(100)) == (75, 150)
    assert (Cluster(1).gathered(100), Cluster(1).summed(100)) == (0, 0)


def test_a_ring_over_two_nodes_is_as_fast_as_the_network():
    assert (Cluster(8).ring, Cluster(16).ring) == (300e9, 25e9)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_budget_is_the_largest_power_of_two_that_fits(shape, method):
    cluster = Cluster(8)
    tokens, needed = graph_tokens(shape, method, cluster), memory(shape, method, 8)
    room = SHARE * cluster.memory - needed.state
    if tokens:
        assert tokens * needed.per_token <= room
    assert tokens == LARGEST or max(2 * tokens, 2 * SMALLEST) * needed.per_token > room


def test_the_share_that_is_embedded_twice_is_what_the_step_leaves_without_graph():
    cluster = Cluster(8)
    found = step(SHAPES[1], FULL, cluster, FINE_TUNING)
    per_pass, mine = found.graph_tokens // 2, FINE_TUNING.tokens // cluster.gpus
    assert mine % per_pass == 0 and found.passes == mine // per_pass
    assert found.again == _first_kept([per_pass] * found.passes, found.graph_tokens) / found.passes


def test_on_one_gpu_nothing_is_sent():
    for work in (FINE_TUNING, WEIGHTS):
        for method in METHODS:
            sent = traffic(SHAPES[0], method, Cluster(1), work, passes=3, plain_passes=1)
            assert sum(part.size for part in sent.values()) == 0


def test_sharding_in_one_node_is_sharding():
    sent = [traffic(SHAPES[0], Method(s), Cluster(8), FINE_TUNING, 3, 1) for s in ("FSDP2", "HSDP")]
    assert sent[0] == sent[1]


def test_embeddings_of_4096_numbers_are_100_megabytes_and_the_losses_of_stage_1_16_kilobytes():
    sent = [traffic(SHAPES[-1], FULL, Cluster(2), work, 1, 0) for work in (FINE_TUNING, WEIGHTS)]
    assert sent[0]["embeddings"].size == 2048 * 3 * 4096 * 4 / 2
    assert sent[1]["losses"].size == 2048 * 8


def test_shards_of_64_gpus_are_an_eighth_of_those_of_8():
    shards = [memory(SHAPES[-1], Method("FSDP2"), gpus) for gpus in (8, 64)]
    assert shards[0].moments == 8 * shards[1].moments and shards[0].working == shards[1].working


def test_ranks_wait_for_the_one_with_a_micro_batch_more():
    work = replace(WEIGHTS, batch=9 * 8, query_tokens=0, passage_tokens=1024)  # 9 micro-batches of 65,536 tokens
    found = step(SHAPES[2], Method("DDP", 8, True), Cluster(8), work)
    assert (found.graph_tokens, found.passes) == (65_536, 2 * 4)
    assert found.idle == pytest.approx(1 - 9 / 16)
    smaller = step(SHAPES[2], Method("DDP", 8, True), Cluster(8, shares=3), work)
    assert (smaller.passes, smaller.idle) == (3 * 4, 0)


def test_the_document_has_the_tables_that_the_script_prints():
    assert scale.tables() in (ROOT / "docs" / "scale.md").read_text("utf-8")
