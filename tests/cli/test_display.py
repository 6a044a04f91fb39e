"""What a run shows: banner, bar, weights, JSON lines; in wide and narrow terminals, and where there is none."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from studies import tiny_study

from tdro.cli import display, live, study
from tdro.cli.banner import changed_options, print_banner
from tdro.cli.display import clock
from tdro.cli.live import Display, _ends
from tdro.cli.main import main
from tdro.study_file import save_study
from tdro.training.run import Run

NAMES = [f"dataset_{letter}" for letter in "abcdefghijklmnop"]


@pytest.fixture
def study_file(tmp_path) -> Path:
    """A tiny study on disk."""
    path = tmp_path / "study.yaml"
    path.write_text(save_study(tiny_study(tmp_path, "static")), encoding="utf-8")
    return path


def step(number: int, steps: int = 80, stage: str = "weights") -> dict:
    """An event of a training step: the last datasets have the highest weights."""
    losses = {name: 1.0 + place / 10 for place, name in enumerate(NAMES)}
    total = sum(range(1, len(NAMES) + 1))
    weights = {"weights": [(place + 1) / total for place in range(len(NAMES))]} if stage == "weights" else {}
    event = {"event": "step", "stage": stage, "step": number, "steps": steps, "loss": 1.25, "losses": losses}
    return {**event, "seconds_left": 3725.0, **weights}


def drawn(width: int, height: int = 24, steps: int = 3) -> str:
    """What a terminal of some size shows during stage 1."""
    display = Display(io.StringIO(), batch_sizes={"weights": 32})
    display.console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    display._live = display  # a terminal without a thread that redraws it
    for number in range(steps):
        display.show(step(number, 6))
    display.console.print(display._render())
    return display.console.file.getvalue()


def test_stage_1_shows_progress_speed_loss_and_the_highest_and_lowest_weights():
    shown = drawn(100)
    for part in ("weights", "3/6", "1:02:05 left", "queries/s", "loss 1.250", "━"):
        assert part in shown
    lines = shown.splitlines()
    assert "x uniform" in lines[1]
    assert lines[2].split() == ["dataset_p", "0.1176", "1.88", "2.500"]  # 16/136 of the weight, 16 datasets
    assert lines[-1].split()[0] == "dataset_a"
    assert len(lines) == 2 + live.MOST_DATASETS and "... 5 more" in shown


@pytest.mark.parametrize(("width", "height"), [(160, 50), (80, 24), (60, 24), (40, 24), (40, 12)])
def test_nothing_is_wider_or_higher_than_the_terminal(width, height):
    lines = drawn(width, height).splitlines()
    assert max(map(len, lines)) <= width and len(lines) <= height - 1
    assert "3/6" in lines[0] and "left" in lines[0] and "loss" in lines[0]
    assert ("━" in lines[0]) == (width >= 56) and ("queries/s" in lines[0]) == (width >= 76)
    assert "0.1176" in lines[2]


def test_names_that_are_left_out_are_between_the_first_and_the_last():
    assert _ends(list("abc"), 3) == ["a", "b", "c"]
    assert _ends(list("abcdefg"), 4) == ["a", "b", None, "g"]
    assert _ends(list("abcdefg"), 5) == ["a", "b", None, "f", "g"]


def test_without_a_terminal_there_are_lines_now_and_then(monkeypatch):
    now = iter(range(0, 1000, 4))
    monkeypatch.setattr(live.time, "monotonic", lambda: float(next(now)))
    file = io.StringIO()
    with Display(file, batch_sizes={"reference": 32}) as display:
        for number in range(10):
            display.show(step(number, 10, "reference"))
    lines = file.getvalue().splitlines()
    assert 2 <= len(lines) < 10 and lines[-1].startswith("reference  10/10")
    assert "queries/s" in lines[-1] and "loss 1.250" in lines[-1] and "mean dataset_a 1.00" in lines[-1]


def test_quiet_shows_nothing_and_json_every_event_as_one_line():
    quiet, lines = io.StringIO(), io.StringIO()
    with Display(quiet, "quiet") as silent, Display(lines, "json") as display:
        for each in (silent, display):
            each.note("loading")
            each.show(step(0))
            each.show({"event": "stage_finished", "stage": "weights", "seconds": 12.0})
    assert quiet.getvalue() == ""
    events = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["note", "step", "stage_finished"]


def test_where_it_was_is_known_when_it_is_interrupted():
    display = Display(io.StringIO(), "quiet")
    assert display.where == "the beginning"
    display.show({"event": "progress", "stage": "negatives", "done": 300, "total": 8000, "dataset": "nq"})
    assert display.where == "negatives, 300 of 8,000"


def test_clock_has_hours_where_there_are_some():
    assert [clock(seconds) for seconds in (5, 75.9, 3599, 3600, 90061)] == [
        "0:05",
        "1:15",
        "59:59",
        "1:00:00",
        "25:01:01",
    ]


def test_banner_has_five_entries_and_names_what_was_changed(tmp_path):
    run = Run(tiny_study(tmp_path, "static", robust={"plan": "top-share", "share": 0.5}))
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    print_banner(console, run, "run", None, "tdro estimate study.yaml measures it")
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["what", "where", "data", "options", "estimate"]
    assert "seed 42" in lines[0] and "evaluate on 1 task" in lines[0] and str(run.folder) in lines[1]
    assert "3 datasets" in lines[2] and "none yet" in lines[4]
    changed = changed_options(run.study)
    assert "robust.share 0.5" in changed and "reference.steps 6" in changed
    assert not any("checkpoint" in option or "micro_batch" in option for option in changed)


def test_banner_warns_of_long_warm_ups_and_of_weights_that_nothing_judges(tmp_path):
    made = tiny_study(tmp_path, "static", weights={"warmup_steps": 6})
    run = Run(made.model_copy(update={"evaluation": made.evaluation.model_copy(update={"tasks": {}})}))
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    print_banner(console, run, "run", None, "measure it")
    lines = console.file.getvalue().splitlines()
    assert lines[5].split()[:3] == ["WARNING", "weights:", "the"] and "peak learning rate is never reached" in lines[5]
    assert lines[6].split()[:4] == ["note", "no", "evaluation", "set:"] and "not judged" in lines[6]


@pytest.mark.parametrize("selects", [True, False])
def test_only_a_plan_with_a_cut_shows_where_datasets_are(selects, tmp_path, monkeypatch):
    names = ["one", "two", "three"]
    about = {"selects": selects, "datasets": {name: {"interval": [0.3, 0.4], "verdict": "keep"} for name in names}}
    monkeypatch.setattr("tdro.data.weights_file.read_sizes", lambda _: dict.fromkeys(names, 30))
    monkeypatch.setattr("tdro.data.weights_file.read_weights", lambda _: dict.fromkeys(names, 1 / 3))
    monkeypatch.setattr("tdro.data.weights_file.read_diagnostics", lambda _: about)
    monkeypatch.setattr("tdro.training.planning.read_weights", lambda _: dict.fromkeys(names, 1 / 3))
    monkeypatch.setattr("tdro.training.diagnose.sentences", lambda _: ["said"])
    console = Console(file=io.StringIO(), width=120)
    display._print_plan_and_weights(Run(tiny_study(tmp_path, "static")), console, "weights")
    shown = console.file.getvalue()
    assert ("at the cut" in shown) == ("keep" in shown) == selects
    assert "0.3000 to 0.4000" in shown and "robust samples it with" in shown


@pytest.mark.parametrize("width", [40, 80])
def test_banner_fits_into_narrow_terminals(tmp_path, width):
    run = Run(tiny_study(tmp_path, "static"))
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    print_banner(console, run, "run", None, "tdro estimate study.yaml measures it")
    lines = console.file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    following = lines[[line.startswith("options") for line in lines].index(True) + 1]
    assert width < 80 or following.startswith("estimate")  # one line of options, however many there are


def test_json_run_writes_nothing_but_json_and_ends_with_the_outcome(study_file, tmp_path, capsys):
    assert main(["reference", str(study_file), "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(event["event"] == "step" for event in events) == 6
    assert events[-1]["event"] == "outcome" and events[-1]["folder"] == str(tmp_path / "run")


def test_quiet_run_prints_only_what_came_out(study_file, tmp_path, capsys):
    assert main(["reference", str(study_file), "-q"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(f"everything is in {tmp_path / 'run'}")


def test_a_start_that_is_refused_leaves_no_folder_and_one_that_ran_before_stays(study_file, tmp_path):
    assert main(["run", str(study_file), "--model.base", "no/such/model"]) == 2
    assert not (tmp_path / "run").exists()
    assert main(["reference", str(study_file)]) == 0
    assert main(["run", str(study_file), "--model.base", "no/such/model"]) == 2
    assert (tmp_path / "run" / "reference" / "done.json").exists()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["event"] == "failed"


def test_an_interrupted_start_says_where_and_how_to_go_on(study_file, capsys, monkeypatch):
    def interrupted(run, last):
        run.journal.progress("negatives", 3, 9, dataset="one")
        raise KeyboardInterrupt

    monkeypatch.setattr("tdro.training.pipeline.run_study", interrupted)
    assert main(["run", str(study_file), "--seed", "7"]) == 130
    assert (
        f"negatives, 3 of 9; what is finished is kept, and it goes on from here with: tdro run {study_file} --seed 7"
        in (capsys.readouterr().out)
    )


def test_no_estimate_and_no_report_ever_fail_a_run(study_file, capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no luck")

    monkeypatch.setattr("tdro.training.estimate.foretell", broken)
    monkeypatch.setattr("tdro.report.page.write_report", broken)
    monkeypatch.setattr("tdro.training.pipeline.run_study", lambda run, last: None)
    assert main(["run", str(study_file)]) == 0
    output = capsys.readouterr().out
    assert "none yet" in output and "no report could be written: no luck; try tdro report" in output
    assert study._foretell(None, "run") is None
