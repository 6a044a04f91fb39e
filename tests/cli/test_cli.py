"""The command line as a person meets it: output, errors, exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from studies import tiny_study

from tdro.cli.main import STUDY_VERBS, main
from tdro.data.weights_file import read_weights
from tdro.study_file import load_study, save_study
from tdro.training.loop import _stop_signal


@pytest.fixture
def study_file(tmp_path) -> Path:
    """A tiny study on disk, with a plan that leaves a dataset out."""
    path = tmp_path / "study.yaml"
    path.write_text(save_study(tiny_study(tmp_path, "static", robust={"plan": "top-share"})), encoding="utf-8")
    return path


def test_help_names_every_verb_and_each_verb_explains_itself(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for verb in ("demo", *STUDY_VERBS):
        assert f"\n  {verb} " in overview
        assert main([verb, "--help"]) == 0
        assert f"usage: tdro {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["demo", "doctor", "estimate", *sorted({*STUDY_VERBS} - {"evaluate"})])
def test_help_begins_with_two_examples(verb, capsys):
    assert main([verb, "--help"]) == 0
    before, _, after = capsys.readouterr().out.partition("\nexamples:\n")
    lines = after.splitlines()
    assert all(line.startswith(f"  tdro {verb}") for line in lines[:2]) and lines[2] == ""
    assert not any(line.startswith("  -") for line in before.splitlines())  # no option stands before them
    assert max(map(len, (before + after).splitlines())) <= 120


def test_help_of_a_study_lists_every_option_with_its_value_after_two_examples(study_file, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", str(study_file), "--help"])
    output = capsys.readouterr().out
    assert stop.value.code == 0 and output.index("examples:") < output.index("--dry-run")
    assert output.count(f"  tdro run {study_file}") == 2
    assert "--weights.step-size" in output and "(default: 0.2)" in output


def test_run_trains_evaluates_and_ends_with_a_verdict(study_file, tmp_path, capsys):
    assert main(["run", str(study_file)]) == 0
    output = capsys.readouterr().out
    for part in ("reference", "weights", "robust", "nDCG@10", "Verdict:", "left out", str(tmp_path / "run")):
        assert part in output
    assert load_study(tmp_path / "run" / "resolved.yaml") == load_study(study_file)
    assert (tmp_path / "run" / "study.yaml").read_text() == study_file.read_text()
    assert main(["run", str(study_file)]) == 0
    assert capsys.readouterr().out.count("finished before, skipped") == 3


def test_override_changes_one_option_and_is_recorded(study_file, tmp_path):
    assert main(["weights", str(study_file), "--weights.step-size", "0.5", "--reference.steps", "2"]) == 0
    resolved = load_study(tmp_path / "run" / "resolved.yaml")
    assert (resolved.weights.step_size, resolved.reference.steps) == (0.5, 2)
    assert not (tmp_path / "run" / "robust").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(study_file, tmp_path, capsys):
    assert main(["run", str(study_file), "--dry-run", "--robust.weights", "uniform"]) == 0
    output = capsys.readouterr().out
    assert "6 steps of 8 queries" in output and "epochs reference" in output and "0.3333" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu"], "did you mean 'run'"),
        (["run", "nothing.yaml"], "nothing.yaml"),
        (["run", "--seed", "3"], "study file comes first"),
        (["run", "{study}", "--data.root", "nowhere"], "nowhere"),
        (["run", "{study}", "--model.base", "no/such/model"], "no/such/model"),
        (["evaluate", "{study}"], "not there yet"),
    ],
)
def test_user_errors_are_one_block_on_stderr_with_exit_code_2(study_file, capsys, arguments, expected):
    assert main([argument.replace("{study}", str(study_file)) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and expected in captured.err and "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--weights.step-siz", "1"], ["unknown option", "'--weights.step-siz'", "--weights.step-size"]),
        (["--weights.step-size", "-1"], ["greater than or equal to 0", "--weights.step-size", "'-1'"]),
        (["--reference.steps", "abc"], ["cannot be read", "--reference.steps", "'abc'", "Optimizer steps"]),
        (["--weights.measure=ratio"], ["no such choice", "--weights.measure", "'ratio'", "'relative'"]),
        (["--evaluation.keep", "best"], ["keep: best needs tasks in watch", "--evaluation"]),
        (["--reference.steps"], ["lacks its value", "--reference.steps"]),
        (["stray"], ["belongs to no option", "'stray'"]),
    ],
)
def test_wrong_overrides_are_one_block_with_the_option_the_value_and_what_to_do(study_file, capsys, given, expected):
    assert main(["run", str(study_file), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "│" not in error and error.count("\n") <= 4
    for part in expected:
        assert part in error
    assert "  do:    " in error


def test_debug_shows_the_traceback(study_file):
    with pytest.raises(Exception, match="no/such/model"):
        main(["run", str(study_file), "--model.base", "no/such/model", "--debug"])


def test_unwritable_run_folder_is_an_environment_problem(study_file, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["run", str(study_file), "--output", str(tmp_path / "file" / "run")]) == 3
    assert "run folder cannot be written" in capsys.readouterr().err


def test_weights_verb_shows_what_was_learned_even_where_the_plan_is_fixed(study_file, tmp_path, capsys):
    assert main(["weights", str(study_file), "--robust.weights", "uniform"]) == 0
    learned = read_weights(tmp_path / "run" / "weights" / "weights.json")
    assert f"{max(learned.values()):.4f}" in capsys.readouterr().out


def test_refused_input_leaves_no_study_behind(study_file, tmp_path):
    assert main(["run", str(study_file), "--model.base", "no/such/model"]) == 2
    assert not (tmp_path / "run" / "study.yaml").exists()


@pytest.mark.slow
def test_interrupted_run_says_how_to_go_on_and_exits_130_with_its_last_step_saved(study_file, tmp_path):
    command = [sys.executable, "-m", "tdro", "run", str(study_file), "--reference.steps", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    events = tmp_path / "run" / "events.jsonl"
    deadline = time.monotonic() + 60
    while not (events.exists() and events.read_text().count('"event": "step"') > 20):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from here" in output
    checkpoint = max((tmp_path / "run" / "reference" / "checkpoints").iterdir())
    last = json.loads(events.read_text().splitlines()[-1])
    assert last["event"] == "step" and int(checkpoint.name.removeprefix("step-")) == last["step"] + 1 > 20


def test_dry_run_warns_of_a_warm_up_that_never_ends(study_file, capsys):
    assert main(["run", str(study_file), "--dry-run"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert main(["run", str(study_file), "--dry-run", "--weights.warmup-steps", "6"]) == 0
    assert capsys.readouterr().out.count("the warm-up is as long as the training") == 1


def test_status_says_how_a_run_ended(study_file, tmp_path):
    status = tmp_path / "run" / "status.json"
    assert main(["reference", str(study_file), "--reference.learning-rate", "1e30", "--reference.steps", "20"]) == 2
    assert json.loads(status.read_text())["event"] == "failed" and "not finite" in status.read_text()
    shutil.rmtree(tmp_path / "run")
    assert main(["run", str(study_file)]) == 0
    assert json.loads(status.read_text())["event"] == "run_finished"


def test_replaying_a_misspelt_run_names_the_runs_beside_it(study_file, tmp_path, capsys):
    assert main(["weights", str(study_file)]) == 0
    assert main(["weights", "--replay", str(tmp_path / "rnu")]) == 2
    assert f"did you mean one of: {tmp_path / 'run'}" in capsys.readouterr().err


def test_a_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), _stop_signal(lambda: None) as stopping:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping()
        os.kill(os.getpid(), signal.SIGINT)


def test_recipes_are_valid_and_their_first_line_names_hardware_and_time():
    recipes = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert {"demo.yaml", "multidomain-minilm.yaml", "paper-qwen1.5-0.5b.yaml"} <= {path.name for path in recipes}
    for path in recipes:
        assert load_study(path).name == path.stem
        first = path.read_text().splitlines()[0]
        assert (
            first.startswith("#")
            and any(word in first for word in ("cores", "GPU"))
            and any(word in first for word in ("minutes", "hours"))
        )


def test_papers_recipe_is_planned_without_model_or_data(capsys):
    recipe = Path(__file__).parents[2] / "recipes" / "paper-qwen1.5-0.5b.yaml"
    assert main(["run", str(recipe), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "1000 steps of 2048 queries x 2 passages, temperature 0.002" in output
    assert "1000 steps of 2048 queries x 8 passages" in output
    assert "32,405" in output  # rows of MIRACL; its epochs under uniform sampling: 2,048,000 / 25 / 32,405 = 2.53
    assert "2.53" in output


def test_verbs_know_their_own_options_by_short_names(study_file, tmp_path, capsys):
    assert main(["weights", str(study_file), "--seeds", "2", "--seed-steps=3"]) == 0
    assert "2 seeds" in capsys.readouterr().out
    written = load_study(tmp_path / "run" / "resolved.yaml").weights
    assert (written.seeds, written.seed_steps) == (2, 3)
    assert main(["robust", str(study_file), "--plan", "reweight", "--share=0.5", "--weights", "size"]) == 0
    robust = load_study(tmp_path / "run" / "resolved.yaml").robust
    assert (robust.plan, robust.share, robust.weights) == ("reweight", 0.5, "size")
    assert main(["reference", str(study_file), "--plan", "reweight"]) == 2  # only the verb that it belongs to knows it


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--robust.plan", "reweight"], ""),
        (["--robust.share", "0.5"], "add --robust.plan top-share"),
        (["--robust.plan", "bottom-share", "--robust.share", "0.5"], ""),
        (["--weights.shrinkage=0.1"], "add --weights.measure relative"),
        (["--weights.shrinkage", "0.1", "--weights.measure", "initial"], ""),
    ],
)
def test_an_option_that_decides_nothing_with_the_default_is_refused(tmp_path, capsys, options, said):
    path = tmp_path / "study.yaml"
    path.write_text(save_study(tiny_study(tmp_path, "static")), encoding="utf-8")
    assert main(["run", str(path), "--dry-run", *options]) == (2 if said else 0)
    error = capsys.readouterr().err
    assert said in error and ("does not change what is trained" in error) == bool(said)


def test_export_prints_the_mixture_that_robust_was_trained_with(study_file, tmp_path, capsys):
    assert main(["robust", str(study_file)]) == 0
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run")]) == 0
    assert list(json.loads(capsys.readouterr().out).values()) == [0.5, 0.5]


@pytest.mark.parametrize("verb", ["run", "weights", "check", "report", "index", "config", "import-args"])
def test_a_verb_without_what_it_needs_is_explained_and_fails(verb, capsys):
    assert main([verb]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"usage: tdro {verb}")
