"""`tdro config`: what is shown is a study again, what differs leads to the right stages, the schema is that of YAML."""

import json
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import yaml
from studies import tiny_study

from tdro.cli.config import command
from tdro.config import Section, Study, fingerprint, options, section_of
from tdro.errors import ConfigError
from tdro.setup.differences import STAGES, first_stage
from tdro.setup.options import show, study_schema
from tdro.study_file import load_study, save_study
from tdro.training.stages import influential, training_inputs

RECIPES = Path(__file__).parents[2] / "recipes"
STUDIES = sorted(RECIPES.glob("*.yaml"))


@pytest.fixture
def study(tmp_path) -> Path:
    """A study file of three datasets."""
    file = tmp_path / "a.yaml"
    sections = {"datasets": {"one": "one.jsonl", "two": {"path": ["a b.jsonl", "c.csv"], "instruction": "Say: # 'x'"}}}
    content = {"name": "a", "data": sections, "model": {"base": "m"}, "reference": {"steps": 7}}
    file.write_text(yaml.safe_dump(content))
    return file


def run(capsys, *arguments: str) -> str:
    """Run the command and return what it printed."""
    assert command(list(arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.name)
@pytest.mark.parametrize("only", [False, True])
def test_what_is_shown_is_read_back_to_the_same_study(path, only, tmp_path):
    study = load_study(path)
    (tmp_path / "again.yaml").write_text("\n".join(line for line, _ in show(study, only_changed=only)))
    assert load_study(tmp_path / "again.yaml") == study


def test_odd_texts_survive_and_what_differs_is_marked_with_the_default(study, capsys, tmp_path):
    shown = run(capsys, "show", str(study), "--weights.step-size", "0.5")
    assert "  steps: 7  # default: 1000" in shown and "  step_size: 0.5  # default: 0.02" in shown
    assert "  batch_size: 2048\n" in shown and "name: a\n" in shown
    (tmp_path / "again.yaml").write_text(shown)
    assert load_study(tmp_path / "again.yaml").data == load_study(study).data
    changed = run(capsys, "show", str(study), "--changed")
    assert "batch_size" not in changed and "evaluation" not in changed and len(changed.splitlines()) == 9


def test_equal_studies_do_not_differ(study, capsys):
    assert run(capsys, "diff", str(study), str(study)) == "no option differs\n"


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"robust": {"cap": 0.5}}, ["robust", "evaluation"]),
        ({"weights": {"step_size": 0.3}}, ["weights", "robust", "evaluation"]),
        ({"weights": {"step_size": 0.3}, "robust": {"weights": "uniform"}}, ["weights", "robust", "evaluation"]),
        ({"reference": {"steps": 9}}, ["reference", "weights", "robust", "evaluation"]),
        ({"data": {"query_max_length": 9}}, list(STAGES)),
        ({"data": {"query_max_length": 9}, "mining": {"when": "never"}}, list(STAGES[1:])),
        ({"reference": {"checkpoint_every": 9}, "model": {"compile": True}}, []),
        ({"evaluation": {"watch": {"w": "x"}}}, []),
        ({"evaluation": {"watch": {"w": "x"}, "keep": "best"}}, list(STAGES[1:])),
        ({"evaluation": {"models": ["robust"]}}, ["evaluation"]),
        ({"weights": {"export": "mean"}}, ["robust", "evaluation"]),
        ({"weights": {"export": "mean"}, "robust": {"weights": "size"}}, ["robust", "evaluation"]),
    ],
)
def test_the_stages_that_would_be_done_again(study, changes, again, capsys, tmp_path):
    content = yaml.safe_load(study.read_text())
    for section, values in changes.items():
        content[section] = content.get(section, {}) | values
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(content))
    said = run(capsys, "diff", str(study), str(tmp_path / "b.yaml")).splitlines()[-1]
    kept = [stage for stage in STAGES if stage not in again]
    assert said == f"done again, at most: {', '.join(again) or 'nothing'}; kept: {', '.join(kept) or 'nothing'}"


def test_weights_that_nobody_reads_leave_the_robust_model_alone(study, capsys, tmp_path):
    content = yaml.safe_load(study.read_text()) | {"robust": {"weights": "uniform"}}
    study.write_text(yaml.safe_dump(content))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(content | {"weights": {"step_size": 0.3}}))
    said = run(capsys, "diff", str(study), str(tmp_path / "b.yaml"))
    assert "done again, at most: weights, evaluation;" in said
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(content | {"weights": {"export": "mean"}}))
    assert "done again, at most: nothing;" in run(capsys, "diff", str(study), str(tmp_path / "b.yaml"))


def test_two_runs_differ_in_their_rows_and_in_versions(tmp_path, capsys):
    for name, rows, version in (("a", "1", "2.13"), ("b", "2", "2.14")):
        folder = tmp_path / name
        folder.mkdir()
        study = tiny_study(tmp_path).model_copy(update={"output": str(folder)})
        ran = {"data": {"one": rows, "two": "x"}, "versions": {"torch": version}, "base": "c"}
        (folder / "resolved.yaml").write_text(save_study(study, ran))
    said = run(capsys, "diff", str(tmp_path / "a"), str(tmp_path / "b"))
    assert "rows of one" in said and "version of torch" in said and "rows of two" not in said and "base" not in said
    assert "done again, at most: negatives, reference" in said and "--output" in said


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # a changed option holds what it should not
def test_every_option_is_given_the_first_stage_that_reads_it(tmp_path):
    """The table is compared with what the stages of training really put into their fingerprints."""
    distilled = {"distillation": 0.5}  # as LoRA, it makes options count that otherwise do not
    study = tiny_study(tmp_path, model={"lora_rank": 2}, reference=distilled, weights=distilled)
    before = _reference_inputs(study), fingerprint(influential(study.weights))
    for option in options():
        first = first_stage(option)
        assert first in ("", "rows", *STAGES)
        if first == "rows" or option.startswith(("mining.", "robust.", "evaluation.")):
            continue
        changed = _change(study, option.split("."))
        after = _reference_inputs(changed), fingerprint(influential(changed.weights))
        expected = first in ("negatives", "reference"), first == "weights"
        if option == "weights.held_out_share":  # takes rows from the reference, which shows in the rows
            expected = False, True
        assert (before[0] != after[0], before[1] != after[1]) == expected, option


def _reference_inputs(study: Study) -> str:
    """What the reference depends on, but for rows and files."""
    run = SimpleNamespace(study=study, base_fingerprint=study.model.base)
    return fingerprint({**training_inputs(run, {}), "reference": influential(study.reference)})


def _change(section: Section, names: list[str]) -> Section:
    """Change one option to something that no option has; `*` is the first dataset or task."""
    name, rest = names[0], names[1:]
    inner, star = section_of(type(section).model_fields[name].annotation)
    value = getattr(section, name)
    if inner is None:
        return section.model_copy(update={name: "changed"})
    if not star:
        return section.model_copy(update={name: _change(value, rest)})
    first = next(iter(value), None)
    new = {} if first is None else {**value, first: _change(value[first], rest[1:])}
    return section.model_copy(update={name: new})


def test_the_schema_takes_every_recipe_and_what_a_run_writes(tmp_path):
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    judge = jsonschema.Draft202012Validator(schema)
    for path in (*STUDIES, *RECIPES.glob("paper/*.yaml")):
        judge.validate(yaml.safe_load(path.read_text()))
    judge.validate(yaml.safe_load(save_study(tiny_study(tmp_path), {"versions": {}})))


@pytest.mark.parametrize(
    "change",
    [
        {"robusst": {}},
        {"reference": {"steps": 0}},
        {"robust": {"plan": "best"}},
        {"data": {"datasets": {"a/b": "x"}}},
        {"data": {"datasets": {"a": {"symmetrical": True}}}},
    ],
)
def test_the_schema_refuses_what_tdro_refuses(study, change, tmp_path):
    content = yaml.safe_load(study.read_text()) | change
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError):
        load_study(tmp_path / "bad.yaml")
    assert not jsonschema.Draft202012Validator(study_schema()).is_valid(content)


def test_the_schema_explains_options_and_is_written(tmp_path, capsys):
    said = run(capsys, "schema", "--output", str(tmp_path / "s.json"))
    assert f"$schema={tmp_path / 's.json'}" in said
    schema = json.loads((tmp_path / "s.json").read_text())
    assert schema["$defs"]["RobustConfig"]["properties"]["share"]["description"].startswith("Share of the datasets")
    assert schema == json.loads(run(capsys, "schema"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["shwo"], "does not know this"),
        (["diff", "a.yaml"], "two studies are compared"),
        (["show", "--changed"], "the study comes first"),
        (["show", "no-such.yaml"], "cannot be read"),
        (["show", "."], "no run in this folder"),
    ],
)
def test_mistakes_are_explained(arguments, expected):
    with pytest.raises(ConfigError, match=expected):
        command(arguments)


def test_help_has_two_examples_first(capsys):
    said = run(capsys)
    assert said.index("examples:") < said.index("  --changed") and said == run(capsys, "show", "--help")
