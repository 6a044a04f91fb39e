"""Every option of the loss of stages 0 and 2 against an exact slow version: texts embedded alone, queries in a loop."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from studies import tiny_study
from tiny_models import make_tiny_model
from torch.nn.functional import normalize

from tdro.data.collate import tokenize
from tdro.data.examples import with_instruction
from tdro.data.mixture import Draw, HomogeneousMixture, MixedMixture
from tdro.data.reading import Rows, read_dataset
from tdro.errors import ConfigError, DataError
from tdro.models.encoder import embed
from tdro.training import batch_loss
from tdro.training.contrastive_step import ContrastiveStep
from tdro.training.guide import Guide, load_guide
from tdro.training.negatives import negatives
from tdro.training.pipeline import run_study
from tdro.training.query_loss import refuse_impossible_fine_tuning
from tdro.training.run import Run
from tdro.training.texts import StepTexts, TextSource

TEMPERATURE = 0.05
FACTORS = [2.0, 1.0, 0.5]
OWN_ONLY = ("two",)
QUERIES = 14


def write_rows(root: Path) -> None:
    """Write datasets that share passages and questions, within and among themselves; every passage has a score."""
    random = np.random.default_rng(0)
    for number, name in enumerate(("one", "two", "three")):
        lines = []
        for i in range(12):
            chosen = [int(j) for j in random.permutation(11)[:6]]
            passages = [
                {"docid": f"p{j}", "text": f"{'bee hive' if number < 2 else 'river'} sand {j}", "score": j + i / 5}
                for j in chosen
            ]
            row = {"query_id": f"q{i}", "query": f"bread {i % 5}", "positive_passages": passages[: 1 + i % 2]}
            lines.append(json.dumps({**row, "negative_passages": passages[2:]}) + "\n")
        (root / "train" / f"{name}.jsonl").write_text("".join(lines))


def make_run(folder: Path, family: str = "static", reference: dict[str, Any] | None = None, **sections: Any) -> Run:
    """A run in float64 over the rows above, with a guide that has another architecture and tokenizer."""
    model = {"precision": "float64", **sections.pop("model", {})}
    study = tiny_study(
        folder, family, model=model, reference={"passages_per_query": 3, **(reference or {})}, **sections
    )
    root = folder / "root"
    write_rows(root)
    if not (root / "guide").exists():
        make_tiny_model("qwen2" if family != "qwen2" else "bert", root / "guide", seed=5)
    return Run(study)


@dataclass
class Case:
    """A step, and everything that the slow version needs."""

    run: Run
    rows: dict[str, Rows]
    step: ContrastiveStep
    model: Any
    guide: Any
    draw: Draw
    texts: StepTexts

    @cached_property
    def strings(self) -> tuple[list[tuple[int, str]], list[tuple[int, str]], list[set[tuple[int, str]]]]:
        """Queries, passages and all positives of each row, with the number of their dataset."""
        names, places, queries, passages, positives = list(self.rows), iter(self.texts.place_P.tolist()), [], [], []
        for dataset, number, count in zip(*vars(self.draw).values(), strict=True):
            row = self.rows[names[dataset]][number]
            queries.append((dataset, row.query))
            positives.append({(dataset, p.full_text) for p in row.positives})
            every = [*row.positives, *row.negatives]
            count = int(self.texts.count_B[len(queries) - 1])
            passages += [(dataset, every[next(places)].full_text) for _ in range(count)]
        return queries, passages, positives

    @cached_property
    def cosines(self) -> torch.Tensor:
        """What the guide makes of the strings, [queries, passages]."""
        data, names = self.run.study.data, list(self.rows)
        queries, passages, _ = self.strings

        def embedded(text: str, instruction: str, length: int) -> torch.Tensor:
            written = with_instruction(text, instruction, data.instruction_template)
            return normalize(embed(self.guide, tokenize(self.guide.tokenizer, [written], length)), dim=-1)

        with torch.no_grad():
            query_BD = torch.cat(
                [embedded(text, data.datasets[names[g]].instruction, data.query_max_length) for g, text in queries]
            )
            passage_PD = torch.cat([embedded(text, "", data.passage_max_length) for _, text in passages])
        return query_BD @ passage_PD.T


def make_case(folder: Path, family: str, reference: dict[str, Any], mixed: bool = True, **sections: Any) -> Case:
    """Build a step."""
    run = make_run(folder, family, reference, **sections)
    study, config, rows = run.study, run.study.reference, negatives(run)
    sizes = {name: len(dataset) for name, dataset in rows.items()}
    share = {"one": 0.5, "two": 0.25, "three": 0.25}
    mixture = (
        MixedMixture(sizes, QUERIES, 7, probabilities=share) if mixed else HomogeneousMixture(sizes, share, QUERIES, 7)
    )
    model, guide, guide_model = run.load_base(), None, None
    if config.guide:
        guide_model = load_guide(run)
        source = TextSource(rows, study.data, guide_model, study.seed)
        guide = Guide(guide_model, source, config.guide_margin, run.device, 60)
    source = TextSource(rows, study.data, model, study.seed)
    step = ContrastiveStep(
        model,
        source,
        mixture,
        list(rows),
        FACTORS,
        config,
        run.device,
        100,
        60,
        OWN_ONLY,
        normalize=study.model.normalize,
        guide=guide,
    )
    draw = mixture.draw(0)
    return Case(run, rows, step, model, guide_model, draw, source.texts(draw, 3))


def seen_by(case: Case, query: int) -> list[int]:
    """The passages that a query's InfoNCE sees, its positive first."""
    queries, passages, positives = case.strings
    starts = case.texts.positive_B.tolist()
    same = [o for o in range(QUERIES) if case.texts.queries_B[o] == case.texts.queries_B[query]]
    known = set().union(*(positives[o] for o in same))
    tokens = {tuple(case.texts.passages_P[p]) for p, text in enumerate(passages) if text in known}
    excluded = {p for p in range(len(passages)) if tuple(case.texts.passages_P[p]) in tokens}
    start, count = starts[query], int(case.texts.count_B[query])
    if case.guide is not None:
        cosine_P, margin = case.cosines[query], case.run.study.reference.guide_margin
        excluded |= {p for p, cosine in enumerate(cosine_P) if cosine > cosine_P[start] - margin}
    own_only = list(case.rows)[queries[query][0]] in OWN_ONLY
    candidates = range(start, start + count) if own_only else range(len(passages))
    return [start, *(p for p in candidates if p not in excluded and p != start)]


def slow_loss(case: Case) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of the step by the formulas, and the mean of each dataset."""
    config, texts, losses = case.run.study.reference, case.texts, []
    query_BD = torch.cat([embed(case.model, [tokens]) for tokens in texts.queries_B])
    passage_PD = torch.cat([embed(case.model, [tokens]) for tokens in texts.passages_P])
    widths = [query_BD.shape[1], *config.matryoshka]
    for b in range(QUERIES):
        parts, seen = [], seen_by(case, b)
        for width in widths:
            query_D, cut_PD = query_BD[b, :width], passage_PD[:, :width]
            if case.run.study.model.normalize:
                query_D, cut_PD = query_D / query_D.norm(), cut_PD / cut_PD.norm(dim=1, keepdim=True)
            contrast = -torch.log_softmax(cut_PD[seen] @ query_D / config.temperature, 0)[0]
            own = slice(int(texts.positive_B[b]), int(texts.positive_B[b] + texts.count_B[b]))
            student = torch.softmax(cut_PD[own] @ query_D / config.temperature, 0)
            teacher = torch.softmax(texts.score_P[own] / config.teacher_temperature, 0)
            divergence = (teacher * (teacher / student).log()).sum()
            parts.append(config.loss_factor * contrast + config.distillation * divergence)
        losses.append(torch.stack(parts).mean())
    group_B = case.draw.dataset_B
    weighted = [loss * FACTORS[g] for loss, g in zip(losses, group_B, strict=True)]
    means = {
        name: float(torch.stack([x for x, h in zip(losses, group_B, strict=True) if h == g]).mean().detach())
        for g, name in enumerate(case.rows)
        if g in group_B
    }
    return torch.stack(weighted).mean(), means


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "distilled": {"distillation": 0.7, "loss_factor": 0.0, "teacher_temperature": 2.0},
    "added": {"distillation": 0.7, "loss_factor": 0.3},
    "matryoshka": {"matryoshka": (8, 20)},
    "guide": {"guide": "{root}/guide", "guide_margin": 0.02},
    "everything": {
        "distillation": 0.7, "loss_factor": 0.3, "matryoshka": (4,), "guide": "{root}/guide", "guide_margin": -0.02,
    },
}  # fmt: skip


def difference(case: Case, expected: dict[str, torch.Tensor]) -> float:
    """Distance of the model's gradients from others, in parts of their norm."""
    found = {name: p.grad for name, p in case.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    distance = torch.cat([(found[name] - expected[name]).flatten() for name in expected]).norm()
    return float(distance / torch.cat([gradient.flatten() for gradient in expected.values()]).norm())


@pytest.mark.parametrize(
    ("setting", "family", "mixed", "at_length_one"),
    [
        *((setting, "static", True, True) for setting in SETTINGS),
        ("everything", "bert", True, True),
        ("everything", "static", False, True),
        ("everything", "static", True, False),
    ],
)
def test_loss_and_gradient_equal_the_slow_version(tmp_path, monkeypatch, setting, family, mixed, at_length_one):
    temperature = TEMPERATURE if at_length_one else 10.0
    reference, model = {**SETTINGS[setting], "temperature": temperature}, {"normalize": at_length_one}
    said = {"one": "sun", "two": "moon", "three": "sun"}  # the questions of one and three are the same
    datasets = {n: {"path": f"train/{n}.jsonl", "instruction": text} for n, text in said.items()}
    data = {"datasets": datasets, "query_max_length": 32}
    case = make_case(tmp_path, family, reference, mixed, data=data, model=model)
    loss, means = slow_loss(case)
    loss.backward()
    expected = {name: p.grad.clone() for name, p in case.model.named_parameters() if p.grad is not None}
    for at_once in (batch_loss.SCORES, 50):
        monkeypatch.setattr(batch_loss, "SCORES", at_once)
        case.model.zero_grad(set_to_none=True)
        numbers = case.step.backward(0, 0)
        assert numbers["loss"] == pytest.approx(float(loss.detach()), rel=1e-8)
        assert numbers["losses"] == pytest.approx(means, rel=1e-8)
        assert difference(case, expected) < 1e-8


def test_the_case_has_what_it_is_to_test(tmp_path):
    case = make_case(tmp_path, "static", SETTINGS["guide"])
    queries, passages, _ = case.strings
    assert set(case.draw.dataset_B) == {0, 1, 2}
    assert len({tuple(tokens) for tokens in case.texts.passages_P}) < len(set(passages)) < len(passages)
    assert len(set(queries)) < len(queries)
    with_guide = [seen_by(case, b) for b in range(QUERIES)]
    case.guide = None
    without = [seen_by(case, b) for b in range(QUERIES)]
    alone = case.draw.dataset_B == 1
    assert {len(seen) > 3 for seen, own in zip(without, alone, strict=True) if not own} == {True}
    for own in (False, True):  # the guide hides some passages of either kind of query, not all
        hidden = [len(a) - len(b) for a, b, c in zip(without, with_guide, alone, strict=True) if c == own]
        left = [len(b) for b, c in zip(with_guide, alone, strict=True) if c == own]
        assert sum(hidden) > 0 and max(left) > 1


def test_questions_and_passages_with_the_same_tokens_are_one_across_datasets():
    random = np.random.default_rng(0)
    for _ in range(20):  # few token lists and keys: long chains of texts that share one or the other
        keys, lists = random.permutation(np.r_[np.arange(9), random.integers(9, size=9)]), random.integers(9, size=18)
        texts = StepTexts(
            queries_B=[[n, 1] for n in lists.tolist()],
            passages_P=[[1, n] for n in lists[::-1].tolist()],
            count_B=torch.ones(18, dtype=torch.long),
            query_key_B=torch.from_numpy(keys),
            passage_key_P=torch.from_numpy(keys[::-1].copy()),
            known_K2=torch.tensor([[3, key] for key in range(9)]),
            place_P=torch.zeros(18, dtype=torch.long),
            score_P=torch.zeros(18, dtype=torch.float64),
        )
        lowest = keys.copy()
        for _ in range(18):  # whatever shares a token list or a key takes the lowest key of the others
            lowest = np.array([lowest[(keys == k) | (lists == n)].min() for k, n in zip(keys, lists, strict=True)])
        found = batch_loss.merge_twins(texts)
        assert found.query_key_B.tolist() == lowest.tolist()
        assert found.passage_key_P.tolist() == lowest[::-1].tolist()
        assert found.known_K2.tolist() == [[3, int(lowest[keys == key][0])] for key in range(9)]


def last_loss(folder: Path, name: str, stage: str = "reference", **sections: Any) -> float:
    """Loss of the last step of a stage of a small study."""
    reference = {"steps": 2, **sections.pop("reference", {})}
    run = make_run(folder, "static", reference, **{"evaluation": {"tasks": {}}, **sections})
    run = Run(run.study.model_copy(update={"output": str(folder / name)}))
    run_study(run, stage)
    return list(run.journal.read("step", stage))[-1]["loss"]


WORDED = {n: {"path": f"train/{n}.jsonl", "instruction": "sun moon"} for n in ("one", "two", "three")}
MORE = {**WORDED, "one": {**WORDED["one"], "more_instructions": ["tide wind"]}}
EVERY: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("loss factor", {}, {"reference": {"loss_factor": 0.5}}),
    ("distillation", {}, {"reference": {"distillation": 1.0}}),
    (
        "teacher temperature",
        {"reference": {"distillation": 1.0}},
        {"reference": {"distillation": 1.0, "teacher_temperature": 9.0}},
    ),
    ("matryoshka", {}, {"reference": {"matryoshka": (8,)}}),
    ("mixed", {}, {"reference": {"batches": "mixed"}}),
    ("guide", {}, {"reference": {"guide": "{root}/guide", "guide_margin": 0.3}}),
    (
        "guide margin",
        {"reference": {"guide": "{root}/guide", "guide_margin": 0.3}},
        {"reference": {"guide": "{root}/guide", "guide_margin": -0.3}},
    ),
    ("positives", {}, {"data": {"positives": "first"}}),
    ("negatives", {}, {"data": {"negatives": "first"}}),
    ("instruction share", {"data": {"datasets": WORDED}}, {"data": {"datasets": WORDED, "instruction_share": 0.5}}),
    ("more instructions", {"data": {"datasets": WORDED}}, {"data": {"datasets": MORE}}),
]


def test_every_option_changes_what_a_study_trains(tmp_path):
    losses: dict[str, float] = {}
    for name, before, change in EVERY:
        key = str(before)
        if key not in losses:
            losses[key] = last_loss(tmp_path, f"before {name}".replace(" ", "-"), **before)
        assert last_loss(tmp_path, name.replace(" ", "-"), **change) != losses[key], name


@pytest.mark.parametrize(
    ("reference", "what"),
    [
        ({"loss_factor": 0.0}, "no loss to train on"),
        ({"distillation": 1.0, "passages_per_query": 1}, "negatives of its row"),
        ({"matryoshka": (8, 99)}, "the embeddings have 32 dimensions"),
        ({"guide": "{root}/guide"}, "the guide's positions"),
        ({"guide_margin": 0.1}, "a margin without a guide"),
    ],
)
def test_settings_without_a_meaning_are_refused(tmp_path, reference, what):
    long = {"data": {"passage_max_length": 2000}} if "guide" in reference else {}
    with pytest.raises(ConfigError, match=what):
        last_loss(tmp_path, "run", reference=reference, **long)


def test_datasets_without_scores_are_refused_before_training(tmp_path):
    run = make_run(tmp_path, "static", {"distillation": 1.0})
    path = tmp_path / "root" / "train" / "two.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[3])
    del row["negative_passages"][0]["score"]
    path.write_text("\n".join([*lines[:3], json.dumps(row), *lines[4:]]))
    with pytest.raises(DataError, match="a score for every positive and negative") as error:
        run_study(run, "reference")
    assert "dataset two" in str(error.value) and "two.jsonl" in str(error.value) and "1 of 12 rows" in str(error.value)
    assert "mined again" not in str(error.value)
    assert not (run.folder / "reference").exists()


def test_rows_that_were_mined_without_scores_may_be_mined_again(tmp_path):
    run = make_run(tmp_path, "static", {"distillation": 1.0})
    mined = run.folder / "data" / "negatives" / "one.jsonl"
    mined.parent.mkdir(parents=True)
    mined.write_text('{"query": "a", "pos": ["b"], "neg": ["c"], "neg_scores": [0.5]}\n')
    mined.with_suffix(".json").write_text("{}")
    rows = {"one": read_dataset("one", mined, cache=tmp_path / "cache")}
    with pytest.raises(DataError, match="a score for every positive and negative") as error:
        refuse_impossible_fine_tuning(run.study.reference, rows)
    assert f"or remove {mined}, so that it is mined again" in str(error.value.do)
