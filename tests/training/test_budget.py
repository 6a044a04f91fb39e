"""The token budget that is found by trying."""

import pytest
import torch
from studies import tiny_study
from tiny_models import make_tiny_model

from tdro.devices import Device, pick_device
from tdro.models.encoder import load_encoder
from tdro.models.sides import sides_of
from tdro.training import budget
from tdro.training.budget import Budget, find_budget, keep_budget, kept_budget
from tdro.training.run import Run

CPU, GPU = pick_device("float32"), Device("cuda", torch.float32, False)


@pytest.fixture
def model(tmp_path):
    """A tiny encoder."""
    return load_encoder(str(make_tiny_model("bert", tmp_path / "model")))


def pretend(monkeypatch, seconds, peak=lambda tokens: 0) -> list[int]:
    """Make passes take these seconds and this memory; returns the sizes that are tried."""
    tried: list[int] = []

    def attempt(model, device, tokens, length, clock):
        tried.append(tokens)
        return seconds(tokens), peak(tokens)

    monkeypatch.setattr(budget, "_try", attempt)
    return tried


def test_on_a_cpu_it_is_the_smallest_about_as_fast_as_the_best(model, monkeypatch):
    speed = {512: 1000, 1024: 1800, 2048: 1850, 4096: 1700, 8192: 1600}
    tried = pretend(monkeypatch, lambda tokens: tokens / speed[tokens])
    assert find_budget(model, CPU, 64).max_tokens == 1024  # 2048 is 3 % faster, which does not pay
    assert tried == [512, 1024, 2048]  # larger ones would only take memory


def test_on_a_cpu_long_passes_end_the_trial(model, monkeypatch):
    tried = pretend(monkeypatch, lambda tokens: tokens / 100 / tokens**0.5)
    find_budget(model, CPU, 64)
    assert tried[-1] / 100 / tried[-1] ** 0.5 <= 10 * 2


def test_on_a_gpu_two_passes_fit_beside_the_moments(model, monkeypatch):
    monkeypatch.setattr(budget, "total_memory", lambda: 10_000_000)
    pretend(monkeypatch, lambda tokens: 1.0, lambda tokens: tokens * 1000)
    found = find_budget(model, GPU, 64)
    moments = 2 * 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    largest = max(found.tried)
    assert largest * 1000 + moments <= 8_000_000 < largest * 2000 + moments
    assert (found.max_tokens, found.graph_tokens) == (largest // 2, largest)


def test_on_a_gpu_other_models_and_the_other_side_have_their_room(tmp_path, monkeypatch):
    model = load_encoder(str(make_tiny_model("bert", tmp_path / "model")), query_encoder="copy")
    of_side = 4 * sum(p.numel() for p in sides_of(model)[0].parameters() if p.requires_grad)
    pretend(monkeypatch, lambda tokens: 1.0, lambda tokens: tokens * 1000)
    for beside in (0, 1 << 20):
        needed = 4096 * 1000 + 2 * 2 * of_side + of_side + beside  # both sides' moments, gradients of the queries' side
        for memory, largest in ((needed, 4096), (needed - 1, 2048)):
            monkeypatch.setattr(budget, "total_memory", lambda memory=memory: memory / budget.SHARE)
            assert max(find_budget(model, GPU, 64, beside).tried) == largest


def test_a_guide_is_part_of_what_a_budget_was_found_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("tdro.training.run.find_budget", lambda *given: (asked.append(given[3]), Budget(777, {}))[1])
    monkeypatch.setattr(Run, "load_base", lambda run: None)
    guide = make_tiny_model("static", tmp_path / "guide")
    for folder in ("cpu", "cuda"):
        study = tiny_study(tmp_path, model={"micro_batch_tokens": None}, reference={"guide": str(guide)})
        run = Run(study.model_copy(update={"output": str(tmp_path / folder)}))
        run.device = Device(folder, torch.float32, False)
        monkeypatch.setattr("tdro.training.run.cache_folder", lambda folder=folder: tmp_path / f"cache of {folder}")
        assert run.max_tokens == 777
    assert asked == [0, 4 * sum(p.numel() for p in load_encoder(str(guide)).parameters())]
    alone = study.model_copy(update={"reference": study.reference.model_copy(update={"guide": ""})})
    other = Run(alone.model_copy(update={"output": str(tmp_path / "alone")}))
    assert other.max_tokens == 777 and len(asked) == 3


def test_on_a_gpu_running_out_of_memory_ends_the_trial(model, monkeypatch):
    def seconds(tokens: int) -> float:
        if tokens > 4096:
            raise torch.OutOfMemoryError
        return 1.0

    monkeypatch.setattr(budget, "total_memory", lambda: 10**12)
    pretend(monkeypatch, seconds)
    assert find_budget(model, GPU, 64).max_tokens == 2048
    pretend(monkeypatch, lambda tokens: seconds(10**6))
    assert find_budget(model, GPU, 64).max_tokens == budget.SMALLEST


def test_a_trial_leaves_no_trace(model, monkeypatch):
    monkeypatch.setattr(budget, "LARGEST", 1024)
    before = {name: p.clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    found = find_budget(model, CPU, 40)
    assert set(found.tried) == {512, 1024} and found.max_tokens in found.tried
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())
    assert torch.equal(random, torch.get_rng_state()) and not model.training


@pytest.mark.parametrize("family", ["qwen2", "static"])
def test_every_kind_of_model_can_be_tried(tmp_path, monkeypatch, family):
    monkeypatch.setattr(budget, "LARGEST", 512)
    model = load_encoder(str(make_tiny_model(family, tmp_path / "model")))
    assert find_budget(model, CPU, 24).tried[512] > 0


def test_what_was_found_is_kept_and_a_damaged_file_is_not_used(tmp_path):
    path, found = tmp_path / "b.json", Budget(1024, {512: 10.0, 1024: 20.5})
    assert kept_budget(path, "k") is None
    keep_budget(path, "k", found)
    assert kept_budget(path, "k") == found and kept_budget(path, "other") is None
    path.write_text("{")
    assert kept_budget(path, "k") is None


def test_a_run_tries_once_keeps_it_and_says_so(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "tdro.training.run.find_budget", lambda *_: (calls.append(1), Budget(777, {777: 1.0}))[1]
    )  # fmt: skip
    events = []
    study = tiny_study(tmp_path, model={"micro_batch_tokens": None})
    assert Run(study, events.append).max_tokens == 777
    assert [e["text"] for e in events if e["event"] == "note"] == [str(Budget(777, {777: 1.0}))]
    other = study.model_copy(update={"output": str(tmp_path / "other")})
    assert Run(study).max_tokens == 777 and Run(other).max_tokens == 777 and len(calls) == 1
    assert (tmp_path / "other" / "budget.json").exists()
    given = study.model_copy(update={"model": study.model.model_copy(update={"micro_batch_tokens": 99})})
    assert Run(given).budget == Budget(99, {})
