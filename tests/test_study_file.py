"""A study file that extends another: what is merged, what is refused and where, and what is kept of it."""

from pathlib import Path

import pytest

from tdro.config import TrainingConfig
from tdro.errors import ConfigError
from tdro.study_file import load_study, save_study, study_text

BASE = """\
# the base
name: base
data:
  root: data
  datasets:
    a: {path: a.jsonl, size: 5, instruction: "Find: it"}
    b: b.jsonl
model: {base: m, lora_targets: [q_proj, v_proj]}
reference: {steps: 9, batch_size: 4}
ran: {versions: {torch: "1"}}
"""


def write(folder: Path, name: str, text: str) -> Path:
    """Write a study file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_mappings_are_merged_all_the_way_down_and_everything_else_is_replaced(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    leaf = write(
        tmp_path,
        "rows/leaf.yaml",
        "extends: ../base.yaml\nname: leaf\nmodel: {lora_targets: [k_proj]}\nreference: {steps: 3}\n"
        "data: {datasets: {a: {size: 7}, c: c.jsonl}}\n",
    )
    study = load_study(leaf)
    assert study.name == "leaf" and study.model.base == "m" and study.model.lora_targets == ("k_proj",)
    assert (study.reference.steps, study.reference.batch_size) == (3, 4)
    assert list(study.data.datasets) == ["a", "b", "c"] and study.data.root == "data"
    a = study.data.datasets["a"]
    assert (a.path, a.size, a.instruction) == ("a.jsonl", 7, "Find: it")


def test_null_takes_away_what_the_other_file_has(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    text = "extends: base.yaml\ndata: {datasets: {b: null}}\nreference: {batch_size: null}\n"
    leaf = write(tmp_path, "leaf.yaml", text)
    study = load_study(leaf)
    assert list(study.data.datasets) == ["a"]
    assert (study.reference.steps, study.reference.batch_size) == (9, TrainingConfig().batch_size)
    assert load_study(write(tmp_path, "kept.yaml", study_text(leaf))) == study
    with pytest.raises(ConfigError, match="c") as caught:  # there is nothing of this name to take away
        load_study(write(tmp_path, "typo.yaml", "extends: base.yaml\ndata: {datasets: {c: null}}\n"))
    assert "typo.yaml:2:data.datasets.c" in str(caught.value)


def test_a_file_may_extend_one_that_extends_and_the_first_has_the_last_word(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    write(tmp_path, "middle.yaml", "extends: base.yaml\nseed: 1\nreference: {steps: 8}\n")
    leaf = write(tmp_path, "leaf.yaml", "extends: middle.yaml\nreference: {batch_size: 2}\n")
    study = load_study(leaf)
    assert (study.name, study.seed, study.reference.steps, study.reference.batch_size) == ("base", 1, 8, 2)


def test_what_a_run_keeps_is_the_whole_study_and_loads_anywhere(tmp_path):
    base = write(tmp_path, "base.yaml", BASE)
    leaf = write(tmp_path, "rows/leaf.yaml", "# two hours\n# really\nextends: ../base.yaml\nreference: {steps: 3}\n")
    kept = write(tmp_path, "elsewhere/study.yaml", study_text(leaf))
    assert load_study(kept) == load_study(leaf)
    assert kept.read_text().startswith("# two hours\n# really\n# Joined from ")
    assert "temperature" not in kept.read_text()  # what was written, not the defaults
    resolved = write(tmp_path, "elsewhere/resolved.yaml", save_study(load_study(leaf), {"versions": {}}))
    assert load_study(resolved) == load_study(leaf)
    assert study_text(base) == BASE
    again = write(tmp_path, "elsewhere/again.yaml", "extends: resolved.yaml\nseed: 5\n")
    assert load_study(again).seed == 5


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        ("extends: base.yaml\nreference: {stepz: 3}\n", ["unknown key", "leaf.yaml:2:reference.stepz", "'steps'"]),
        ("extends: broken.yaml\nseed: 3\n", ["valid integer", "broken.yaml:5:reference.steps", "many"]),
        ("extends: broken.yaml\nreference:\n  steps: lots\n", ["leaf.yaml:3:reference.steps", "lots"]),
        ("extends: bas.yaml\n", ["to extend is not there", "leaf.yaml:1:extends", "bas.yaml", "base.yaml"]),
        ("seed: 1\nextends: [base.yaml]\n", ["extends names one study file", "leaf.yaml:2:extends"]),
        ("extends: leaf.yaml\n", ["in a circle", "leaf.yaml:1:extends"]),
        ("seed: 1\nextends: ../FOLDER/round.yaml\n", ["in a circle", "round.yaml:2:extends", "leaf.yaml"]),
        ("extends: list.yaml\n", ["mapping of keys to values", "list.yaml"]),
        ("extends: base.yaml\nreference: {steps: 1, steps: 2}\n", ["occurs twice", "leaf.yaml:2"]),
    ],
)
def test_errors_name_the_file_and_line_that_say_it(tmp_path, leaf, expected):
    write(tmp_path, "base.yaml", BASE)
    write(
        tmp_path,
        "broken.yaml",
        "name: x\nmodel: {base: m}\ndata: {datasets: {a: a.jsonl}}\nreference:\n  steps: many\n",
    )
    write(tmp_path, "round.yaml", "seed: 2\nextends: leaf.yaml\n")
    write(tmp_path, "list.yaml", "- a\n")
    path = write(tmp_path, "leaf.yaml", leaf.replace("FOLDER", tmp_path.name))
    with pytest.raises(ConfigError) as error:
        load_study(path)
    for part in expected:
        assert part in str(error.value)
