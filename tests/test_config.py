"""A study file: what is accepted, what is refused, and how."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tdro.config import Study, fingerprint, options
from tdro.errors import ConfigError
from tdro.instructions import categories, known_instruction
from tdro.study_file import load_study, save_study

MINIMAL = "name: x\ndata:\n  datasets:\n    a: a.jsonl\n    b: {path: b.parquet, symmetric: true}\nmodel:\n  base: m\n"

OPTIONS = [
    "name",
    "output",
    "seed",
    "data.root",
    "data.datasets.*.path",
    "data.datasets.*.instruction",
    "data.datasets.*.more_instructions",
    "data.datasets.*.symmetric",
    "data.datasets.*.category",
    "data.datasets.*.in_batch_negatives",
    "data.datasets.*.corpus",
    "data.datasets.*.queries",
    "data.datasets.*.passages",
    "data.datasets.*.max_rows",
    "data.datasets.*.license",
    "data.datasets.*.size",
    "data.max_rows",
    "data.instructions",
    "data.instruction_template",
    "data.instruction_share",
    "data.positives",
    "data.negatives",
    "data.query_max_length",
    "data.passage_max_length",
    "data.tokens",
    "model.base",
    "model.query_encoder",
    "model.pooling",
    "model.projection",
    "model.normalize",
    "model.precision",
    "model.micro_batch_tokens",
    "model.lora_rank",
    "model.lora_alpha",
    "model.lora_dropout",
    "model.lora_targets",
    "model.gradient_checkpointing",
    "model.attention",
    "model.compile",
    "model.sharding",
    "model.deterministic",
    "mining.when",
    "mining.source",
    "mining.encoder",
    "mining.ranks",
    "mining.negatives",
    "mining.sampling",
    "mining.relative_margin",
    "mining.absolute_margin",
    "mining.max_score",
    "mining.min_score",
    "mining.cross_encoder",
    "leakage.gate",
    "leakage.level",
    "leakage.similarity",
    "leakage.against",
    "reference.steps",
    "reference.batch_size",
    "reference.passages_per_query",
    "reference.temperature",
    "reference.loss_factor",
    "reference.distillation",
    "reference.teacher_temperature",
    "reference.matryoshka",
    "reference.optimizer",
    "reference.adam_betas",
    "reference.adam_epsilon",
    "reference.learning_rate",
    "reference.weight_decay",
    "reference.warmup_steps",
    "reference.schedule",
    "reference.final_learning_rate_share",
    "reference.max_grad_norm",
    "reference.checkpoint_every",
    "reference.checkpoints_kept",
    "reference.batches",
    "reference.guide",
    "reference.guide_margin",
    "weights.steps",
    "weights.batch_size",
    "weights.passages_per_query",
    "weights.temperature",
    "weights.loss_factor",
    "weights.distillation",
    "weights.teacher_temperature",
    "weights.matryoshka",
    "weights.optimizer",
    "weights.adam_betas",
    "weights.adam_epsilon",
    "weights.learning_rate",
    "weights.weight_decay",
    "weights.warmup_steps",
    "weights.schedule",
    "weights.final_learning_rate_share",
    "weights.max_grad_norm",
    "weights.checkpoint_every",
    "weights.checkpoints_kept",
    "weights.measure",
    "weights.targets",
    "weights.shrinkage",
    "weights.update",
    "weights.step_size",
    "weights.step_schedule",
    "weights.step_warmup",
    "weights.final_step_share",
    "weights.clip",
    "weights.clip_norm",
    "weights.reference_norm",
    "weights.ema",
    "weights.momentum",
    "weights.rule_decay",
    "weights.rule_betas",
    "weights.rule_alpha",
    "weights.rule_epsilon",
    "weights.mix",
    "weights.pull",
    "weights.floor",
    "weights.cap",
    "weights.max_epochs",
    "weights.sampling",
    "weights.max_bad_share",
    "weights.reference_similarities",
    "weights.held_out_share",
    "weights.held_out_every",
    "weights.signal",
    "weights.seeds",
    "weights.seed_steps",
    "weights.keep_losses",
    "weights.export",
    "robust.plan",
    "robust.share",
    "robust.cap",
    "robust.max_epochs",
    "robust.weights",
    "evaluation.tasks.*.path",
    "evaluation.tasks.*.kind",
    "evaluation.tasks.*.split",
    "evaluation.tasks.*.languages",
    "evaluation.tasks.*.corpus",
    "evaluation.tasks.*.instruction",
    "evaluation.tasks.*.ignore_identical_ids",
    "evaluation.models",
    "evaluation.baselines",
    "evaluation.watch.*.path",
    "evaluation.watch.*.kind",
    "evaluation.watch.*.split",
    "evaluation.watch.*.languages",
    "evaluation.watch.*.corpus",
    "evaluation.watch.*.instruction",
    "evaluation.watch.*.ignore_identical_ids",
    "evaluation.watch_every",
    "evaluation.keep",
]


def write(folder: Path, text: str) -> Path:
    """Write a study file."""
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_options_are_these_and_no_others():
    # An option is a promise. Adding one here means: it is needed, documented and read.
    assert options() == OPTIONS


def test_minimal_study_gets_the_papers_settings_but_for_measure_and_plan(tmp_path):
    study = load_study(write(tmp_path, MINIMAL))
    assert study.data.datasets["a"].path == "a.jsonl" and study.data.datasets["b"].symmetric
    assert (study.weights.step_size, study.weights.passages_per_query, study.robust.share) == (0.02, 8, 0.7)
    assert (study.reference.batch_size, study.reference.temperature, study.mining.ranks) == (2048, 0.002, (2, 100))
    assert (study.weights.measure, study.robust.plan) == ("relative-sample", "reweight")  # docs/study.md
    assert study.run_folder == Path("runs/x")


def test_resolved_study_reads_back_as_the_same_study(tmp_path):
    study = load_study(write(tmp_path, MINIMAL))
    resolved = write(tmp_path, save_study(study, {"versions": {"torch": "2"}}))
    assert load_study(resolved) == study
    assert yaml.safe_load(resolved.read_text())["ran"]["versions"] == {"torch": "2"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("weights:\n  stepsize: 1\n", ["unknown key", "study.yaml:9:weights.stepsize", "did you mean 'step_size'"]),
        ("wieghts: {}\n", ["unknown key", "study.yaml:8:wieghts", "did you mean 'weights'"]),
        ("weights:\n  step_size: -3\n", ["greater than or equal to 0", "study.yaml:9:weights.step_size", "-3"]),
        ("weights:\n  measure: ratio\n", ["relative", "study.yaml:9:weights.measure", "ratio"]),
        ("mining:\n  ranks: [5, 5]\n", ["first < last", "study.yaml:8:mining"]),
        ("weights:\n  shrinkage: 0.1\n", ["study.yaml:8:weights", "add measure: relative"]),
        ("robust:\n  share: 0.5\n", ["study.yaml:8:robust", "add plan: top-share"]),
        ("reference:\n  steps: many\n", ["integer", "study.yaml:9:reference.steps", "many"]),
        ("evaluation:\n  tasks:\n    t: {path: p, splt: dev}\n", ["study.yaml:10", "did you mean 'split'"]),
        ("seed: .nan\n", ["study.yaml:8:seed"]),
        ("seed: 1\nseed: 2\n", ["key occurs twice, also in line 8", "study.yaml:9"]),
        ("evaluation:\n  tasks: {a_b: x, a-b: y}\n", ["a_b and a-b differ in - and _ only"]),
    ],
)
def test_wrong_keys_and_values_are_refused_with_file_line_and_remedy(tmp_path, change, expected):
    with pytest.raises(ConfigError) as error:
        load_study(write(tmp_path, MINIMAL + change))
    for part in expected:
        assert part in str(error.value)


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "where", "alias"),
    [
        ("data: &x [*x]\n", 1, "*x"),
        ("name: a\ndata: &x\n  datasets: *x\n", 3, "*x"),
        (f"a0: &a0 [x]\n{LAUGHS}", 2, "*a0"),
        (MINIMAL + "reference: &r {steps: 3}\nweights: {<<: *r}\n", 9, "*r"),
    ],
)
def test_aliases_are_refused_where_they_stand_and_cost_no_time(tmp_path, text, where, alias):
    with pytest.raises(ConfigError, match="no aliases") as error:
        load_study(write(tmp_path, text))
    assert f"study.yaml:{where}\n" in str(error.value) and repr(alias) in str(error.value)


def test_what_a_run_records_twice_is_written_twice(tmp_path):
    study, shared = load_study(write(tmp_path, MINIMAL)), {"torch": ["2"]}
    resolved = write(tmp_path, save_study(study, {"first": shared, "second": shared}))
    assert load_study(resolved) == study
    assert yaml.safe_load(resolved.read_text())["ran"] == {"first": shared, "second": shared}


@pytest.mark.parametrize(
    "text", ["", "- a\n", "name: [\n", "name: x\n", "a: b: c\n", "\x00", "{{}}", "!!python/object:x {}"]
)
def test_what_is_no_study_is_refused(tmp_path, text):
    with pytest.raises(ConfigError):
        load_study(write(tmp_path, text))


def test_missing_file_names_the_studies_beside_it(tmp_path):
    write(tmp_path, MINIMAL)
    with pytest.raises(ConfigError, match=r"study\.yaml"):
        load_study(tmp_path / "studi.yaml")


@given(st.text(max_size=60))
def test_any_text_is_a_study_or_one_clear_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "study.yaml"
    path.write_bytes((MINIMAL + text).encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(load_study(path), Study)
    except ConfigError as error:
        assert str(path) in str(error)


def test_study_is_frozen(tmp_path):
    study = load_study(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        study.weights.step_size = 1.0


def test_dataset_names_must_be_usable_as_file_names(tmp_path):
    with pytest.raises(ConfigError, match="pattern"):
        load_study(write(tmp_path, MINIMAL.replace("    a:", "    ../a:")))


def test_fingerprint_sees_every_value_and_no_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


def test_instructions_are_filled_in_by_name_and_by_category_and_given_ones_stay():
    datasets = {
        "msmarco": "a.jsonl",
        "own": {"path": "b.jsonl", "instruction": "Find it"},
        "tickets": {"path": "c.jsonl", "category": next(iter(categories()))},
        "unheard-of": "d.jsonl",
    }
    content = {"name": "x", "data": {"datasets": datasets, "instructions": "auto"}, "model": {"base": "m"}}
    found = {name: d.instruction for name, d in Study.model_validate(content).data.datasets.items()}
    assert found == {
        "msmarco": known_instruction("msmarco"),
        "own": "Find it",
        "tickets": next(iter(categories().values())),
        "unheard-of": "",
    }
    assert found["msmarco"]
    content["data"]["datasets"]["tickets"]["category"] = "no-such-kind"
    with pytest.raises(ValueError, match="no-such-kind"):
        Study.model_validate(content)
    content["data"]["instructions"] = "given"
    assert Study.model_validate(content).data.datasets["msmarco"].instruction == ""
