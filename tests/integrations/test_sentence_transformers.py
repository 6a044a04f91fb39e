"""Batches by weight and the robust loss, inside the trainer of sentence-transformers."""

import json
import pickle
import runpy
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from datasets import Dataset
from launch import run_ranks
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler, NoDuplicatesBatchSampler
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tiny_models import SENTENCES, make_tiny_model
from torch.utils.data import ConcatDataset, DataLoader

from tdro.core.groups import group_statistics
from tdro.core.measures import relative
from tdro.core.rule import Rule
from tdro.core.updates import clip_l2, eg, initial_state
from tdro.data.mixture import HomogeneousMixture
from tdro.errors import ConfigError, DataError, TdroError
from tdro.integrations.sentence_transformers import (
    MixedBatches,
    MixtureBatchSampler,
    RobustCallback,
    RobustLoss,
    WeightedBatches,
    with_groups,
)

SIZES = {"a": 10, "b": 300, "c": 50}
WEIGHTS = {"a": 0.2, "b": 0.7, "c": 0.1}


def rows_of(name: str, count: int) -> Dataset:
    """Rows with two negatives."""
    texts = [f"{name} {number} {SENTENCES[number % len(SENTENCES)]}" for number in range(count + 3)]
    columns = ("query", "positive", "negative_1", "negative_2")
    return Dataset.from_dict({column: texts[shift : shift + count] for shift, column in enumerate(columns)})


@pytest.fixture(scope="module")
def datasets() -> dict[str, Dataset]:
    """Three datasets of different sizes."""
    return {name: rows_of(name, size) for name, size in SIZES.items()}


def sampler(batches: WeightedBatches | MixedBatches, datasets: dict[str, Dataset], size: int) -> MixtureBatchSampler:
    """The sampler as the trainer makes it."""
    each = [DefaultBatchSampler(range(len(rows)), batch_size=size, drop_last=False) for rows in datasets.values()]
    return batches(ConcatDataset(list(datasets.values())), each, generator=None, seed=7)


def dataset_of(row: int) -> str:
    """Name of the dataset that a row of the joined dataset is of."""
    return next(name for name, end in zip(SIZES, np.cumsum(list(SIZES.values())), strict=True) if row < end)


def test_every_batch_is_of_one_dataset_and_they_come_by_weight(datasets: dict[str, Dataset]) -> None:
    made = list(sampler(WeightedBatches(WEIGHTS, datasets, steps=100), datasets, 4))
    assert all(len(batch) == 4 and len({dataset_of(row) for row in batch}) == 1 for batch in made)
    count = Counter(dataset_of(batch[0]) for batch in made)
    assert all(abs(count[name] - 100 * weight) < 1 for name, weight in WEIGHTS.items())
    seen = Counter(row for batch in made for row in batch if row < SIZES["a"])
    assert set(seen.values()) == {8}  # 80 queries of 10 rows: each pass has every row once


def test_the_rows_are_those_that_tdro_run_draws(datasets: dict[str, Dataset]) -> None:
    made = list(sampler(WeightedBatches(WEIGHTS, datasets, steps=30), datasets, 4))
    mixture = HomogeneousMixture(SIZES, WEIGHTS, 4, seed=7)
    start = np.array([0, 10, 310])
    for step, batch in enumerate(made):
        draw = mixture.draw(step)
        assert batch == (start[draw.dataset_B] + draw.row_B).tolist()


def test_an_epoch_has_as_many_rows_as_there_are_and_the_next_goes_on(datasets: dict[str, Dataset]) -> None:
    one = sampler(WeightedBatches(WEIGHTS, datasets), datasets, 4)
    assert len(one) == len(list(one)) == 90
    both = list(one)
    one.set_epoch(1)
    both += list(one)
    assert both == list(sampler(WeightedBatches(WEIGHTS, datasets, steps=180), datasets, 4))


def test_mixed_batches_draw_the_datasets_equally_often(datasets: dict[str, Dataset]) -> None:
    made = list(sampler(MixedBatches(datasets, steps=200), datasets, 6))
    count = Counter(dataset_of(row) for batch in made for row in batch)
    assert all(abs(number - 400) < 4 * np.sqrt(1200 * 1 / 3 * 2 / 3) for number in count.values())
    even = list(sampler(MixedBatches(datasets, steps=20, stratified=True), datasets, 6))
    assert all(Counter(dataset_of(row) for row in batch) == {"a": 2, "b": 2, "c": 2} for batch in even)


def loader(datasets: dict[str, Dataset], batches: WeightedBatches, size: int, ranks: int, rank: int) -> Any:
    """The loader of one of several ranks, sharded by accelerate as the trainer has it done."""
    made = sampler(batches, datasets, size)
    joined = made.dataset
    plain = DataLoader(joined, batch_sampler=made, collate_fn=lambda rows: [row["query"] for row in rows])
    return prepare_data_loader(plain, num_processes=ranks, process_index=rank, even_batches=False, put_on_device=False)


def test_two_ranks_together_see_the_batches_of_one(datasets: dict[str, Dataset]) -> None:
    alone = list(loader(datasets, WeightedBatches(WEIGHTS, datasets, steps=20), 8, 1, 0))
    two = WeightedBatches(WEIGHTS, datasets, steps=20, ranks=2)
    first, second = (list(loader(datasets, two, 4, 2, rank)) for rank in (0, 1))
    assert [a + b for a, b in zip(first, second, strict=True)] == alone


@pytest.mark.parametrize("ranks", [1, 2])
def test_going_on_in_a_later_epoch_gives_the_batches_that_would_have_come(
    datasets: dict[str, Dataset], ranks: int
) -> None:
    batches = WeightedBatches(WEIGHTS, datasets, steps=6, ranks=ranks)
    undisturbed = loader(datasets, batches, 4, ranks, ranks - 1)
    undisturbed.set_epoch(2)
    expected = list(undisturbed)
    fresh = skip_first_batches(loader(datasets, batches, 4, ranks, ranks - 1), 4)
    fresh.set_epoch(2)
    assert len(expected) == 6 and list(fresh) == expected[4:]
    undisturbed.set_epoch(0)
    assert list(undisturbed) != expected


def test_batches_and_their_sampler_can_be_pickled(datasets: dict[str, Dataset]) -> None:
    batches = WeightedBatches(WEIGHTS, datasets, steps=3)
    assert len(pickle.dumps(batches)) < 1000
    made = sampler(pickle.loads(pickle.dumps(batches)), datasets, 4)
    assert list(pickle.loads(pickle.dumps(made))) == list(made)


def test_weights_come_from_files_presets_and_runs(tmp_path: Path, datasets: dict[str, Dataset]) -> None:
    folder = tmp_path / "run" / "weights"
    folder.mkdir(parents=True)
    (folder / "weights.json").write_text(json.dumps({"domain_weights": {"a": 2, "b": 6}}))
    for source in (str(tmp_path / "run"), folder / "weights.json", {"a": 1, "b": 3}):
        assert WeightedBatches(source, datasets).probabilities == {"a": 0.25, "b": 0.75, "c": 0.0}
    with pytest.raises(ConfigError, match=r"(?s)unknown dataset.*did you mean 'a'"):
        WeightedBatches({"aa": 1.0}, datasets)
    with pytest.raises(ConfigError, match="no weights"):
        WeightedBatches({"a": 0.0}, datasets)
    with pytest.raises(ConfigError, match="cannot be read"):
        WeightedBatches(tmp_path / "nowhere", datasets)


def test_what_would_be_ignored_is_refused(datasets: dict[str, Dataset]) -> None:
    batches = WeightedBatches(WEIGHTS, datasets)
    other = {name: datasets["a"] for name in datasets}
    with pytest.raises(ConfigError, match="other datasets"):
        sampler(batches, other, 4)
    each = [NoDuplicatesBatchSampler(rows, batch_size=4, drop_last=False) for rows in datasets.values()]
    with pytest.raises(ConfigError, match=r"(?s)no effect.*NoDuplicates"):
        batches(ConcatDataset(list(datasets.values())), each)
    with pytest.raises(ConfigError, match="at least 1"):
        WeightedBatches(WEIGHTS, datasets, steps=0)
    with pytest.raises(DataError, match="no rows"):
        MixedBatches({"a": []})


def test_datasets_of_equal_sizes_in_another_order_are_refused() -> None:
    datasets = {name: rows_of(name, 20) for name in "abc"}
    batches = WeightedBatches({"a": 1.0}, datasets)
    turned = {name: datasets[name] for name in "bac"}
    with pytest.raises(ConfigError, match=r"(?s)another order.*those of a, b"):
        sampler(batches, turned, 4)
    for rows in datasets.values():  # as the trainer does to add the name of the dataset
        rows.set_transform(lambda batch: {**batch, "query": [f"name: {text}" for text in batch["query"]]})
    assert len(list(sampler(batches, datasets, 4))) == 15
    assert len(list(sampler(batches, with_groups({name: rows_of(name, 20) for name in "abc"}), 4))) == 15


def test_datasets_without_names_are_refused(datasets: dict[str, Dataset]) -> None:
    for unnamed in (datasets["a"], list(datasets.values())):
        for make in (with_groups, MixedBatches, lambda rows: WeightedBatches(WEIGHTS, rows)):
            with pytest.raises(ConfigError, match=r"(?s)come as a dictionary.*(Dataset|list)"):
                make(unnamed)


def test_the_loss_of_an_evaluation_is_that_of_its_rows_whatever_the_weights() -> None:
    proxy, reference, columns, groups = tables()
    loss = RobustLoss(proxy, reference, ["a", "b", "c"], temperature=0.3)
    loss.advance()
    loss.state = initial_state(np.array([0.98, 0.01, 0.01]))
    with torch.no_grad():
        value = loss(columns, groups)
    torch.testing.assert_close(value, plain_losses(proxy.values.detach(), 0.3).mean(), rtol=1e-12, atol=0)


def test_batches_that_do_not_mix_datasets_are_refused_after_some_steps() -> None:
    proxy, reference, columns, groups = tables()
    loss = RobustLoss(proxy, reference, ["a", "b", "c"])
    loss.advance()
    for _ in range(4):
        loss(columns, torch.zeros(5).long())
        loss.advance()
    loss(columns, groups)  # a mixed batch: the others were an accident
    loss.advance()
    for step in range(5):
        loss(columns, torch.ones(5).long())
        if step < 4:
            loss.advance()
    with pytest.raises(ConfigError, match=r"(?s)no weight can move.*MixedBatches"):
        loss.advance()
    alone = RobustLoss(*tables()[:2], ["a"])
    for _ in range(7):
        alone.advance()
        alone(columns, torch.zeros(5).long())
    assert alone.weights == {"a": 1.0}


def test_rows_say_which_dataset_they_are_of(datasets: dict[str, Dataset]) -> None:
    named = with_groups(datasets)
    assert [set(rows["label"]) for rows in named.values()] == [{0}, {1}, {2}]
    with pytest.raises(DataError, match="needed for the dataset's number"):
        with_groups(named)
    with pytest.raises(DataError, match="the same columns"):
        with_groups({**datasets, "c": datasets["c"].remove_columns("negative_2")})


class Table(torch.nn.Module):
    """An encoder whose embeddings are its parameters: token number -> embedding."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(values)
        self.tokenizer = SimpleNamespace(get_vocab=lambda: {"bee": 0})

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Look embeddings up."""
        return {"sentence_embedding": self.values[features["number"]]}


def tables() -> tuple[Table, Table, list[dict[str, torch.Tensor]], torch.Tensor]:
    """Two encoders, and a batch of five queries, a positive and two negatives each, of groups 0, 2, 2, 0, 2."""
    values = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    columns = [{"number": torch.arange(5) + 5 * column} for column in range(4)]
    return Table(values[0]), Table(values[1]), columns, torch.tensor([0, 2, 2, 0, 2])


def plain_losses(values: torch.Tensor, tau: float) -> torch.Tensor:
    """Equation (1), query by query, from the definition."""
    unit = values / values.norm(dim=1, keepdim=True)
    losses = []
    for query in range(5):
        similarity = torch.stack([unit[query] @ unit[query + 5 * column] for column in (1, 2, 3)])
        losses.append(-similarity[0] / tau + torch.logsumexp(similarity / tau, 0))
    return torch.stack(losses)


def test_loss_gradient_and_weights_are_those_of_the_equations() -> None:
    proxy, reference, columns, groups = tables()
    loss = RobustLoss(proxy, reference, ["a", "b", "c"], temperature=0.3, step_size=0.5)
    loss.advance()
    loss.state = initial_state(np.array([0.5, 0.2, 0.3]))
    value = loss(columns, groups)
    value.backward()
    twin = proxy.values.detach().clone().requires_grad_()
    of_proxy, of_reference = plain_losses(twin, 0.3), plain_losses(reference.values, 0.3)
    expected = 0.5 * of_proxy[groups == 0].mean() + 0.3 * of_proxy[groups == 2].mean()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(proxy.values.grad, twin.grad, rtol=1e-10, atol=1e-14)
    assert reference.values.grad is None
    loss.advance()
    seen = group_statistics(of_proxy, of_reference, groups, 3)
    moved = eg(
        loss_state := initial_state(np.array([0.5, 0.2, 0.3])), clip_l2(relative(seen, 0.01), 1.0), 0.5, seen.present_G
    )
    assert list(loss.weights) == ["a", "b", "c"]
    np.testing.assert_allclose(list(loss.weights.values()), moved.weights_G, rtol=1e-12)
    assert loss.weights["b"] == pytest.approx(loss_state.weights_G[1], rel=1e-15)  # absent: unchanged


def test_accumulated_batches_move_the_weights_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for parts in ([range(5)], [range(2), range(2, 5)]):
        proxy, reference, columns, groups = tables()
        loss = RobustLoss(proxy, reference, ["a", "b", "c"], temperature=0.3)
        loss.advance()
        for part in parts:
            loss([{"number": column["number"][list(part)]} for column in columns], groups[list(part)])
        with torch.no_grad():
            loss(columns, groups)  # evaluation leaves the weights alone
        loss.advance()
        loss.advance()
        moved.append(list(loss.weights.values()))
        assert loss.state.updates == 1
    np.testing.assert_allclose(*moved, rtol=1e-12)


def test_the_state_goes_through_state_dict_and_json() -> None:
    proxy, reference, columns, groups = tables()
    loss = RobustLoss(proxy, reference, ["a", "b", "c"])
    loss.advance()
    loss(columns, groups)
    loss.advance()
    twin = RobustLoss(*tables()[:2], ["a", "b", "c"])
    twin.load_state_dict(loss.state_dict())
    thrice = RobustLoss(*tables()[:2], ["a", "b", "c"])
    thrice.set_extra_state(json.loads(json.dumps(loss.get_extra_state())))
    for each in (loss, twin, thrice):
        each.advance()
        each(columns, groups)
        each.advance()
    assert len({json.dumps(each.get_extra_state()) for each in (loss, twin, thrice)}) == 1  # NaN is not equal to NaN
    assert loss.state.updates == 2 and len(set(loss.weights.values())) == 3
    with pytest.raises(ConfigError, match="other datasets"):
        RobustLoss(*tables()[:2], ["x", "b", "c"]).set_extra_state(loss.get_extra_state())


def test_the_loss_refuses_what_it_cannot_do() -> None:
    proxy, reference, columns, groups = tables()
    loss = RobustLoss(proxy, reference, ["a", "b", "c"])
    assert not reference.values.requires_grad
    loss.train()
    assert loss.model.training and not loss.reference.training
    with pytest.raises(ConfigError, match="nobody would move the weights"):
        loss(columns, groups)
    loss.advance()
    with pytest.raises(ConfigError, match="no negatives"):
        loss(columns[:2], groups)
    with pytest.raises(ConfigError, match="do not say which dataset"):
        loss(columns, None)
    with pytest.raises(ConfigError, match="no dataset has this number"):
        loss(columns, groups + 1)
    with torch.no_grad():
        proxy.values[0] = torch.nan
    with pytest.raises(TdroError, match=r"(?s)not finite.*'a'"):
        loss(columns, groups)
    with pytest.raises(ConfigError, match="the model itself"):
        RobustLoss(proxy, proxy, ["a"])
    with pytest.raises(ConfigError, match="losses of every query"):
        uniform = np.ones(1)
        RobustLoss(proxy, reference, ["a"], rule=Rule("relative-sample", "eg", prior_G=uniform, target_G=uniform))
    other = tables()[1]
    other.tokenizer = SimpleNamespace(get_vocab=lambda: {"wasp": 0})
    with pytest.raises(ConfigError, match="different tokenizers"):
        RobustLoss(proxy, other, ["a"])


def robust_trainer(
    base: Path, folder: Path, datasets: dict[str, Dataset], batch_size: int, **options: Any
) -> tuple[SentenceTransformerTrainer, RobustLoss]:
    """A trainer for stage 1 on CPUs, in float64."""
    model, reference = (SentenceTransformer(str(base), device="cpu").double() for _ in range(2))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in reference.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    loss = RobustLoss(model, reference, datasets, temperature=0.1, step_size=0.3)
    mixed = with_groups(datasets)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        multi_dataset_batch_sampler=MixedBatches(mixed, steps=4),
        save_strategy="steps",
        save_steps=1,
        learning_rate=1e-2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    callbacks = [RobustCallback(loss)]
    return SentenceTransformerTrainer(model, arguments, mixed, loss=loss, callbacks=callbacks), loss


def final(trainer: SentenceTransformerTrainer, loss: RobustLoss) -> torch.Tensor:
    """Everything that training has changed, as one vector."""
    model = trainer.accelerator.unwrap_model(loss.model)
    parameters = [parameter.detach().flatten() for _, parameter in sorted(model.named_parameters())]
    return torch.cat([torch.tensor(list(loss.weights.values()), dtype=torch.float64), *parameters])


def test_a_trainer_that_goes_on_ends_as_one_that_was_not_stopped(tmp_path: Path, datasets: dict[str, Dataset]) -> None:
    base = make_tiny_model("static", tmp_path / "base")
    whole, loss = robust_trainer(base, tmp_path / "whole", datasets, 6, max_steps=7)
    whole.train()
    assert loss.state.updates == 7 and len(set(loss.weights.values())) == 3
    again, later = robust_trainer(base, tmp_path / "again", datasets, 6, max_steps=7)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))  # step 5 is in the second epoch
    assert later.state.updates == 7
    assert torch.equal(final(whole, loss), final(again, later))


def test_the_weights_move_once_per_step_also_where_an_epoch_ends_within_it(
    tmp_path: Path, datasets: dict[str, Dataset]
) -> None:
    base = make_tiny_model("static", tmp_path / "base")
    trainer, loss = robust_trainer(base, tmp_path, datasets, 6, max_steps=3, gradient_accumulation_steps=3)
    trainer.train()  # of the four batches of an epoch a step takes three, and the next one only the last
    assert loss.state.updates == trainer.state.global_step == 3


def work_of_a_rank(base: str, folder: str, resume: str) -> None:
    """Train as one of two ranks; rank 0 writes what came out."""
    datasets = {name: rows_of(name, size) for name, size in SIZES.items()}
    trainer, loss = robust_trainer(Path(base), Path(folder), datasets, 3, max_steps=7)
    trainer.train(resume_from_checkpoint=resume or None)
    if trainer.is_world_process_zero():
        torch.save(final(trainer, loss), Path(folder, "final.pt"))


@pytest.mark.slow
def test_two_ranks_train_what_one_trains_also_after_a_stop(tmp_path: Path, datasets: dict[str, Dataset]) -> None:
    base = make_tiny_model("static", tmp_path / "base")
    alone, loss = robust_trainer(base, tmp_path / "alone", datasets, 6, max_steps=7)
    alone.train()
    for folder, resume in ((tmp_path / "two", ""), (tmp_path / "again", str(tmp_path / "two" / "checkpoint-5"))):
        call = f"import test_sentence_transformers as t; t.work_of_a_rank({str(base)!r}, {str(folder)!r}, {resume!r})"
        run_ranks(["-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); {call}"], 2)
    two, again = (torch.load(tmp_path / name / "final.pt") for name in ("two", "again"))
    torch.testing.assert_close(two, final(alone, loss), rtol=1e-7, atol=1e-9)
    assert torch.equal(two, again)


def test_the_trainer_takes_weighted_batches_as_they_are(tmp_path: Path, datasets: dict[str, Dataset]) -> None:
    model = SentenceTransformer(str(make_tiny_model("static", tmp_path / "base")), device="cpu")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=10,
        per_device_train_batch_size=4,
        multi_dataset_batch_sampler=WeightedBatches({"a": 1.0, "c": 1.0}, datasets),
        save_strategy="steps",
        save_steps=10,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    seen: list[str] = []
    preprocess = model.preprocess

    def watch(texts: list[str], **options: Any) -> Any:
        seen.append("".join({text.split()[0] for text in texts}))
        return preprocess(texts, **options)

    trainer = SentenceTransformerTrainer(model, arguments, datasets, loss=MultipleNegativesRankingLoss(model))
    trainer.data_collator.preprocess_fn = watch
    trainer.train()
    assert Counter(seen[:40]) == {"a": 20, "c": 20}  # ten batches of four columns
    assert (tmp_path / "out" / "checkpoint-10" / "training_args.bin").exists()


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_tiny_model("bert", tmp_path / "base")
    script = Path(__file__).parents[2] / "examples" / "sentence_transformers_trainer.py"
    asked = ["--model", str(base), "--output", str(tmp_path / "out"), "--steps", "6", "--rows", "40"]
    monkeypatch.setattr(sys, "argv", [str(script), *asked])
    runpy.run_path(str(script), run_name="__main__")
    weights = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert set(weights) == {"facts", "titles", "noise"} and sum(weights.values()) == pytest.approx(1)
    assert len(SentenceTransformer(str(tmp_path / "out" / "robust" / "model"), device="cpu").encode("a bee")) == 32
