"""Stages 0 and 2 against an exact slow version: every text embedded alone, formulas written out."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from studies import tiny_study

from tdro.data.mixture import HomogeneousMixture
from tdro.errors import ConfigError, DataError
from tdro.models.encoder import embed
from tdro.training import batch_loss, contrastive_step
from tdro.training.contrastive_step import ContrastiveStep
from tdro.training.negatives import negatives
from tdro.training.pipeline import run_study
from tdro.training.prefetch import Prefetch
from tdro.training.run import Run
from tdro.training.texts import TextSource

TEMPERATURE = 0.05


def make_step(folder, family: str, max_tokens: int = 120, graph_tokens: int = 0, own_only: tuple[str, ...] = ()):
    """A step in float64 over a dataset whose passages are shared by many queries, some of which ask the same."""
    study = tiny_study(folder, family, model={"precision": "float64"}, reference={"passages_per_query": 3})
    shared = [{"docid": f"n{j}", "text": f"bee hive {j}"} for j in range(4)]
    rows = []
    for i in range(24):
        positives = [{"docid": f"p{i % 7}", "text": f"sand {i % 7}"}]
        row = {"query_id": f"q{i}", "query": f"river {i % 9}"}
        rows.append({**row, "positive_passages": positives, "negative_passages": shared})
    path = folder / "root" / "train" / "one.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run(study)
    datasets = negatives(run)
    model = run.load_base()
    mixture = HomogeneousMixture({n: len(r) for n, r in datasets.items()}, {"one": 1.0}, 8, 42)
    source = TextSource(datasets, study.data, model, 42)
    factor_G = [2.0, 1.0, 1.0]
    step = ContrastiveStep(
        model,
        source,
        mixture,
        list(datasets),
        factor_G,
        study.reference,
        run.device,
        max_tokens,
        graph_tokens,
        own_only,
    )
    return step, model, source.texts(mixture.draw(0), 3)


@pytest.mark.parametrize("family", ["bert", "qwen2", "static"])
def test_gradient_equals_the_slow_version_with_shared_passages_and_repeated_questions(tmp_path, family, monkeypatch):
    step, model, texts = make_step(tmp_path, family)
    assert len(texts.passage_key_P.unique()) < len(texts.passage_key_P)  # shared passages
    assert len(texts.query_key_B.unique()) < len(texts.query_key_B)  # repeated questions
    query_BD = torch.cat([embed(model, [tokens]) for tokens in texts.queries_B])
    passage_PD = torch.cat([embed(model, [tokens]) for tokens in texts.passages_P])
    positive_B, losses = texts.positive_B.tolist(), []
    for b in range(8):
        same = [o for o in range(8) if texts.query_key_B[o] == texts.query_key_B[b]]
        known = {int(texts.passage_key_P[positive_B[o]]) for o in same}
        others = [p for p, key in enumerate(texts.passage_key_P.tolist()) if key not in known]
        logits = query_BD[b] @ passage_PD[[positive_B[b], *others]].T / TEMPERATURE
        losses.append(-torch.log_softmax(logits, 0)[0])
    expected_loss = 2.0 * torch.stack(losses).mean()
    expected_loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for scores, graph_tokens in ((batch_loss.SCORES, 0), (1, 60), (50, 10_000)):
        monkeypatch.setattr(batch_loss, "SCORES", scores)
        model.zero_grad(set_to_none=True)
        step._graph_tokens = graph_tokens
        numbers = step.backward(0, 0)
        assert numbers["loss"] == pytest.approx(float(expected_loss.detach()), rel=1e-7)
        assert numbers["losses"]["one"] == pytest.approx(float(expected_loss.detach()) / 2, rel=1e-7)
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys()
        difference = torch.cat([(found[name] - expected[name]).flatten() for name in expected])
        assert difference.norm() <= 1e-7 * torch.cat([g.flatten() for g in expected.values()]).norm()


def test_without_in_batch_negatives_a_query_sees_its_own_passages_alone(tmp_path):
    step, model, texts = make_step(tmp_path, "bert", own_only=("one",))
    passages, losses = iter(texts.passages_P), []
    for query, count in zip(texts.queries_B, texts.count_B.tolist(), strict=True):
        passage_ND = torch.cat([embed(model, [next(passages)]) for _ in range(count)])
        losses.append(-torch.log_softmax(passage_ND @ embed(model, [query])[0] / TEMPERATURE, 0)[0])
    expected_loss = 2.0 * torch.stack(losses).mean()
    expected_loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    assert step.backward(0, 0)["loss"] == pytest.approx(float(expected_loss.detach()), rel=1e-7)
    difference = torch.cat([(p.grad - expected[n]).flatten() for n, p in model.named_parameters() if n in expected])
    assert difference.norm() <= 1e-7 * torch.cat([g.flatten() for g in expected.values()]).norm()


def test_datasets_without_in_batch_negatives_need_their_own(tmp_path):
    datasets = {"one": {"path": "train/one.jsonl", "in_batch_negatives": False}}
    changes = {"data": {"datasets": datasets}, "robust": {"plan": "top-share", "share": 1.0}}
    alone = tiny_study(tmp_path, "static", **changes, reference={"passages_per_query": 1})
    with pytest.raises(ConfigError, match="negatives of their own"):
        run_study(Run(alone), "reference")
    path = tmp_path / "root" / "train" / "one.jsonl"
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(lines[0]), "negative_passages": []}), *lines[1:]]), "utf-8")
    lacking = tiny_study(tmp_path, "static", **changes, mining={"when": "never"})
    with pytest.raises(DataError, match="rows without negatives"):
        run_study(Run(lacking), "reference")


def test_a_shared_passage_is_embedded_once(tmp_path, monkeypatch):
    step, _, texts = make_step(tmp_path, "static")
    embedded = []

    def count(model, tokens, *_):
        embedded.append(len(tokens))
        return torch.ones(())

    monkeypatch.setattr(contrastive_step, "cached_backward", count)
    step.backward(0, 0)
    assert embedded == [8 + len(texts.passage_key_P.unique())]


def test_kept_graphs_save_forward_passes(tmp_path, monkeypatch):
    from tdro.training import cached_step

    calls = []
    real = cached_step.embed
    monkeypatch.setattr(cached_step, "embed", lambda model, tokens: (calls.append(len(tokens)), real(model, tokens))[1])
    counts = []
    for graph_tokens in (0, 24, 10_000):
        step, *_ = make_step(tmp_path, "static", max_tokens=8, graph_tokens=graph_tokens)
        calls.clear()
        step.backward(0, 0)
        counts.append(len(calls))
    groups = (counts[0] + 1) // 2
    assert counts[0] == 2 * groups - 1 and counts[0] > counts[1] > counts[2] == groups


def test_prefetch_prepares_one_step_ahead_and_no_further():
    prepared = []
    ahead = Prefetch(lambda step: prepared.append(step) or step, 3)
    assert [ahead(0), ahead(1), ahead(2)] == [0, 1, 2] and prepared == [0, 1, 2]
    assert ahead(1) == 1 and ahead(2) == 2  # any step may be asked for
    assert prepared == [0, 1, 2, 1, 2]


def test_preparing_uses_one_torch_thread_and_other_threads_as_many_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        ahead = Prefetch(lambda step: torch.get_num_threads(), 1)
        with ThreadPoolExecutor(1) as later:
            assert (ahead(0), torch.get_num_threads(), later.submit(torch.get_num_threads).result()) == (1, 3, 3)
    finally:
        torch.set_num_threads(before)


def test_what_fails_while_preparing_is_raised_at_its_step():
    def prepare(step: int) -> int:
        if step == 1:
            raise ValueError("bad row")
        return step

    ahead = Prefetch(prepare, 3)
    assert ahead(0) == 0
    with pytest.raises(ValueError, match="bad row"):
        ahead(1)
