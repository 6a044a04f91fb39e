"""The report is a pure reader that makes a useful, safe page of any run folder."""

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folders import write_result, write_run

from tdro.cli.display import verdict
from tdro.cli.main import main
from tdro.errors import CheckpointError, EnvironmentProblem
from tdro.evaluation.compare import compare
from tdro.evaluation.sides import read_side
from tdro.report.document import Block, Figure, Fold, Note, Report, Section, Table
from tdro.report.page import as_html, make_report, write_report
from tdro.report.reading import RunFiles
from tdro.report.words import NONE, number

ANCHORS = [
    "verdict", "weights", "health", "losses", "plan", "advice", "scores", "what-if", "data", "cost", "provenance",
    "guide",
]  # fmt: skip
EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "run", gain=0.05)


class Page(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def section(report: Report, anchor: str) -> Section:
    return next(one for one in report.sections if one.anchor == anchor)


def blocks(of: Section | Fold) -> list[Block]:
    return [inner for block in of.blocks for inner in ([block, *blocks(block)] if isinstance(block, Fold) else [block])]


def words(of: Section) -> str:
    """Everything a section says, without tables and pictures."""
    return " ".join(str(block) for block in blocks(of) if not isinstance(block, Table | Figure))


def table(of: Section, column: str) -> Table:
    return next(b for b in blocks(of) if isinstance(b, Table) and column in b.header)


def test_page_and_markdown_have_all_sections_and_need_nothing_else(finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    written = write_report(finished, finished.parent / "out")
    html, text = written.page.read_text("utf-8"), written.text.read_text("utf-8")
    page = Page(html)
    assert [value for name, value in page.attributes if name == "id" and value in ANCHORS] == ANCHORS
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        one.title for one in make_report(finished).sections
    ]
    assert "could not be made" not in html
    assert len(html) < 300_000
    assert not {"link", "img", "iframe"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href") and not value.startswith("#")]
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_every_picture_has_a_title_a_description_and_unique_ids(finished):
    page = Page(as_html(make_report(finished)))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labels = [value.split() for name, value in page.attributes if name == "aria-labelledby"]
    assert len(labels) == page.tags.count("svg") > 10
    assert all(set(pair) <= set(ids) for pair in labels)


def test_names_queries_and_passages_are_never_markup(tmp_path):
    run = write_run(tmp_path / "run", [EVIL, "nq", "</script><b>"], gain=0.05, text=f"{EVIL} `code` </pre></script>")
    written = write_report(run)
    page = Page(written.page.read_text("utf-8"))
    assert page.tags.count("script") == 2
    assert not {"img", "b>"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    lines = written.text.read_text("utf-8").splitlines()
    assert not [line for line in lines if "<" in line and not line.startswith("    name: made-up")]  # that is code


def test_policy_allows_the_pages_own_script_only(finished):
    import base64
    import hashlib

    html = as_html(make_report(finished))
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


def test_a_clear_gain_is_said_with_the_numbers_of_tdro_compare(finished):
    report = make_report(finished)
    found = compare([read_side(name, [finished / "evaluation" / name]) for name in ("reference", "robust")])[0]
    assert report.headline == "The robust model is better than the reference model"
    difference = found.mean.test.difference
    expected = f"from +{100 * difference.low:.2f} to +{100 * difference.high:.2f}"
    assert expected in words(section(report, "verdict"))
    row = table(section(report, "scores"), "95 % interval").rows[-1]
    assert row[:5] == ("mean", "90", "45.00", f"{100 * found.mean.second:.2f}", f"+{100 * difference.mean:.2f}")


def test_a_loss_is_said_as_plainly_as_a_gain(tmp_path):
    run = write_run(tmp_path / "run", gain=-0.05)
    assert make_report(run).headline == "The robust model is worse than the reference model"


@pytest.mark.parametrize(
    ("gain", "tasks", "said"),
    [
        (0.0, ("fiqa",), "Too small to tell"),
        (0.05, ("fiqa", "nq", "arguana"), "The robust model is better than the reference model"),
        (-0.05, ("fiqa", "nq", "arguana"), "The robust model is worse than the reference model"),
        (0.0, ("fiqa", "nq", "arguana"), "No clear difference between the reference and the robust model"),
    ],
)
def test_the_verdict_is_that_of_the_report_with_its_numbers(tmp_path, gain, tasks, said):
    run = write_run(tmp_path / "run", tasks=tasks, gain=gain)
    printed = verdict(run)
    assert printed.startswith(f"Verdict: {said}. Robust minus reference is ")
    assert make_report(run).headline == said
    assert f"{30 * len(tasks)} queries of {len(tasks)} task" in printed
    assert printed.endswith("One training seed of each model.")


def test_there_is_no_verdict_without_two_models_and_a_reason_where_they_do_not_fit(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "evaluation" / "robust" / "fiqa" / "scores.parquet").write_bytes(b"half")
    assert verdict(run).startswith("No verdict: the results of the models cannot be compared: ")
    shutil.rmtree(run / "evaluation" / "robust")
    assert verdict(run) == ""


def test_few_tasks_without_a_clear_difference_are_too_small_to_tell(tmp_path):
    report = make_report(write_run(tmp_path / "run", tasks=("fiqa",)))
    assert report.headline == "Too small to tell"
    first = section(report, "verdict").blocks[0]
    assert isinstance(first, Note)
    assert first.title == "This run was too small to tell."


def test_equal_models_on_three_tasks_have_no_clear_difference(tmp_path):
    report = make_report(write_run(tmp_path / "run"))
    assert report.headline == "No clear difference between the reference and the robust model"


def test_a_task_that_is_clearly_worse_is_in_the_headline_of_a_mean_without_a_clear_difference(tmp_path):
    run = write_run(tmp_path / "run")
    shutil.rmtree(run / "evaluation" / "robust" / "fiqa")
    write_result(run / "evaluation" / "robust" / "fiqa", "fiqa", "robust", -0.02, "text")
    for model, task, gain in (("reference", "nq", 0.0), ("robust", "nq", 0.02)):
        write_result(run / "evaluation" / model / task, task, model, gain, "text")
    (run / "resolved.yaml").unlink()  # which does not know the fourth task
    report = make_report(run)
    said = "No clear difference between the reference and the robust model, but clearly better on nq and worse on fiqa"
    assert report.headline == said
    first = section(report, "verdict").blocks[0]
    assert isinstance(first, Note) and first.title.startswith("No clear difference in mean nDCG@10: at most about")


def test_few_tasks_are_too_small_for_their_number_and_not_for_a_difference_of_zero_points(tmp_path):
    few = words(section(make_report(write_run(tmp_path / "few", tasks=("fiqa",))), "verdict"))
    assert "1 task cannot speak for others." in few and "would not have shown" not in few
    run = write_run(tmp_path / "wide")
    for task in ("scifact", "arguana", "fiqa"):
        table = pq.read_table(run / "evaluation" / "robust" / task / "scores.parquet")
        wide = [score + 0.2 * (-1) ** k for k, score in enumerate(table["ndcg@10"].to_pylist())]
        pq.write_table(table.set_column(1, "ndcg@10", pa.array(wide)), run / f"evaluation/robust/{task}/scores.parquet")
    report = make_report(run)
    assert report.headline == "Too small to tell"
    wide = words(section(report, "verdict"))
    assert "points would not have shown here" in wide and "cannot speak" not in wide


def test_an_evaluation_that_the_study_does_not_have_is_not_needed(tmp_path):
    run = write_run(tmp_path / "run", tasks=())
    assert table(section(make_report(run), "verdict"), "state").rows[-1][:2] == ("evaluation", "not needed")


def test_queries_of_the_last_quarter_decide_whether_ratios_can_be_trusted(tmp_path):
    run = write_run(tmp_path / "run", steps=400)  # 4 queries each: 1,600 in all, 400 in the last quarter
    report = make_report(run)
    said = "fewer than 800 of every dataset in the last quarter of the weights stage (the fewest: 400)"
    assert said in words(section(report, "verdict"))
    assert {row[-1] for row in table(section(report, "losses"), "gap").rows} == {NONE}
    long = make_report(write_run(tmp_path / "long", steps=800))
    assert "fewer than 800" not in words(section(long, "verdict"))
    # sums of 800 queries: means 2 and 1; variances 0.25 and 0.125; covariance 0.05
    half = 1.96 * math.sqrt((0.25 / 4 + 0.125 - 2 * 0.05 / 2) / 799)
    ends = [number(2 * math.exp(sign * half)) for sign in (-1, 1)]
    assert table(section(long, "losses"), "gap").rows[0][-1] == " to ".join(ends)


def diagnosed(run: Path, **changed: object) -> Report:
    """A report of a run with other diagnostics."""
    path = run / "weights" / "weights.json"
    content = json.loads(path.read_text("utf-8"))
    content["diagnostics"] |= changed
    path.write_text(json.dumps(content), "utf-8")
    return make_report(run)


def test_a_plan_that_drops_nothing_has_no_cut_of_its_own(tmp_path):
    report = diagnosed(write_run(tmp_path / "run", robust={"plan": "reweight"}), selects=False)
    said = words(section(report, "advice"))
    assert "The plan drops no dataset. This is what a cut after the 2 largest weights of 3 would do" in said
    assert not [row for row in table(section(report, "plan"), "flags").rows if "undecided" in row[-1]]
    assert "For most datasets another draw" not in words(section(report, "verdict"))


def test_a_plan_of_the_smallest_weights_and_a_fixed_mixture_are_said_as_they_are(tmp_path):
    report = diagnosed(write_run(tmp_path / "low", robust={"plan": "bottom-share"}), cut=1)
    said = words(section(report, "advice"))
    assert "after the 1 largest weight of 3, and this plan keeps the datasets below it" in said
    fixed = make_report(write_run(tmp_path / "fixed", robust={"weights": "uniform"}))
    assert "Plan: every dataset, sampled by the uniform mixture." in words(section(fixed, "plan"))


def test_confidence_is_the_share_of_resamples_and_intervals_say_which_weights_they_are_of(tmp_path):
    run = write_run(tmp_path / "run")
    path = run / "weights" / "weights.json"
    content = json.loads(path.read_text("utf-8"))
    datasets = content["diagnostics"]["datasets"]
    for name, confidence in (("nq", 0.97), ("quora", 0.61), ("xsum", 1.0)):
        datasets[name]["confidence"] = confidence
    content["domain_weights"] = {"nq": 0.3, "quora": 0.3, "xsum": 0.4}
    path.write_text(json.dumps(content), "utf-8")
    report = diagnosed(run, of={"export": "mean"})
    advice = table(section(report, "advice"), "advice")
    assert {row[0]: row[2] for row in advice.rows} == {"nq": "97 %", "xsum": "100 %", "quora": "61 %"}
    assert advice.header[4] == "95 % interval (mean)" and advice.rows[0][3] == "0.300"
    weights = table(section(report, "weights"), "times even")
    assert "95 % interval (mean)" in weights.header and {row[0]: row[-1] for row in weights.rows}["xsum"] == "1.20"
    assert "of the mean, from a bootstrap" in words(section(report, "weights"))
    assert "nq (75 %, 0.90 times" in words(section(report, "health"))


def test_every_version_of_the_weights_is_shown_with_its_interval(tmp_path):
    run = write_run(tmp_path / "run")
    path = run / "weights" / "weights.json"
    content = json.loads(path.read_text("utf-8"))
    for dataset in content["diagnostics"]["datasets"].values():
        dataset["intervals"] = {"last": [0.1, 0.9], "mean": [0.2, 0.8], "ema": [0.3, 0.7]}
    path.write_text(json.dumps(content), "utf-8")
    of = section(make_report(run), "weights")
    found = table(of, "times even")
    assert found.header == (
        "dataset", "last step", "95 % interval (last step)", "mean", "95 % interval (mean)", "moving average",
        "95 % interval (moving average)", "times even",
    )  # fmt: skip
    assert found.rows[0][2::2][:3] == ("0.100 to 0.900", "0.200 to 0.800", "0.300 to 0.700")
    assert "Intervals: 95 %, from a bootstrap" in words(of)
    drawn = next(b for b in of.blocks if isinstance(b, Figure) and b.title == "Learned weights").draw(880)
    assert drawn.body.count('class="interval"') == 3 * 3 + 1  # and the legend's


def test_measures_that_disagree_are_both_in_the_headline(tmp_path):
    run = write_run(tmp_path / "run", gain=0.05)
    for model, gain in (("reference", 0.0), ("robust", -0.1)):
        for task in ("mkqa-one", "mkqa-two", "mkqa-three"):
            write_result(run / "evaluation" / model / task, task, model, gain, "text", main="acc@10")
    (run / "resolved.yaml").unlink()  # which does not know these tasks
    said = "The robust model against the reference model: better in nDCG@10; worse in Acc@10"
    assert make_report(run).headline == said


def test_an_error_that_ended_a_run_is_told(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    strip(run, "evaluation")
    with (run / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(
            json.dumps({"event": "failed", "stage": "run", "time": 999.0, "error": "the disk\n  is full"}) + "\n"
        )
    assert "The run stopped with an error: the disk is full" in words(section(make_report(run), "verdict"))


def test_health_names_drift_noise_and_clipping(tmp_path):
    said = words(section(make_report(write_run(tmp_path / "run", steps=60)), "health"))
    assert "They drift" in said
    assert "nq (75 %, 1.2 times an even weight). The measures raw and excess give such datasets weight." in said
    assert "acted in 100 % of the steps" in said
    assert "Every dataset was in every step." in said


@pytest.mark.parametrize(("steps", "warmup"), [(12, 0), (60, 100)])
def test_few_steps_and_a_warm_up_that_never_ended_cannot_have_settled(tmp_path, steps, warmup):
    run = write_run(tmp_path / "run", steps=steps, weights=[1.0, 1.0, 1.0])
    resolved = run / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace("weights:\n", f"weights:\n  warmup_steps: {warmup}\n", 1))
    said = words(section(make_report(run), "health"))
    assert "too few to tell whether they settle" in said and "have settled" not in said
    assert ("never left the warm-up of 100" in said) == (warmup == 100)


def test_a_dataset_with_hardly_any_loss_is_named(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    path = run / "weights" / "statistics.parquet"
    sums = pq.read_table(path).to_pylist()
    tiny = [{**row, "sum_l": 0.0009 * row["n"]} if row["dataset"] == "quora" else row for row in sums]
    pq.write_table(pa.Table.from_pylist(tiny), path)
    assert "mean loss is below 0.001 for quora: almost nothing" in words(section(make_report(run), "health"))


def test_a_collapse_is_called_one(tmp_path):
    run = write_run(tmp_path / "run", weights=[0.98, 0.01, 0.01])
    assert "Collapse: one dataset has 98 % of the weight" in words(section(make_report(run), "health"))


def test_reference_losses_are_counted_from_a_table_or_the_journal(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    losses = {"dataset": ["nq", "quora", "nq", "nq", "nq"], "reference_loss": [0.0, 5.0, 0.0005, 0.2, float("nan")]}
    pq.write_table(pa.table({**losses, "step": [0] * 5, "proxy_loss": [1.0] * 5}), run / "weights" / "losses.parquet")
    title = "Reference losses of single queries"
    said = next(b for b in section(make_report(run), "losses").blocks if isinstance(b, Figure) and b.title == title)
    assert said.description.endswith("nq: 67 % below 0.001; quora: 0 % below 0.001.")
    counts = {"dataset": ["nq", "nq", "quora", "quora"], "low": [0.0, 0.001] * 2, "queries": [2, 1, 0, 1]}
    pq.write_table(pa.table(counts), run / "weights" / "histogram.parquet")
    strip(run, "weights/losses.parquet")
    again = next(b for b in section(make_report(run), "losses").blocks if isinstance(b, Figure) and b.title == title)
    assert again.description == said.description
    strip(run, "weights", "data", "evaluation")
    step = {"event": "step", "stage": "weights", "time": 1.0, "step": 0, "steps": 9, "weights": [0.3, 0.3, 0.4],
            "statistics": [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]] * 3}  # fmt: skip
    histogram = {"reference_histogram": [[1, *[0] * 10], [*[0] * 9, 1, 0], [0] * 11]}
    later = {"reference_histogram": [[0, 0, 0, 1, 0, 0, 1, *[0] * 4], [0] * 11, [0] * 11]}
    lines = [json.dumps({**step, **histogram}), json.dumps({**step, "step": 1, **later})]
    (run / "events.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    again = next(b for b in section(make_report(run), "losses").blocks if isinstance(b, Figure) and b.title == title)
    assert again.description == said.description
    (run / "events.jsonl").write_text("\n".join([json.dumps(step), lines[1]]) + "\n", "utf-8")  # half an old run
    assert "No histogram of reference losses" in words(section(make_report(run), "losses"))


def test_losses_plan_and_advice_have_their_numbers(finished):
    report = make_report(finished)
    assert table(section(report, "losses"), "gap").rows[0][1:6] == ("20", "2.00", "1.00", "1.00", "2.00")
    plan = {row[0]: row for row in table(section(report, "plan"), "flags").rows}
    assert plan["xsum"][4] == "left out"
    assert plan["nq"][3:6] == ("0.333", "0.500", "2.50")
    assert "noise?" in plan["nq"][6]
    advice = [row[:3] for row in table(section(report, "advice"), "advice").rows]
    assert advice == [
        ("nq", "keep", "at least 95 %"), ("xsum", "drop", "at least 95 %"), ("quora", "undecided", "below 95 %"),
    ]  # fmt: skip


def test_estimate_is_set_against_the_real_time(tmp_path):
    run = write_run(tmp_path / "run")
    stages = {"reference": {"seconds": 30, "low": 20, "high": 40}, "weights": {"seconds": 120}}
    total = {"kwh": 0.0123, "money": 0.5}
    (run / "estimate.json").write_text(json.dumps({"stages": stages, "total": total, "currency": "EUR"}), "utf-8")
    assert "0.012 kWh and 0.50 EUR" in words(section(make_report(run), "cost"))
    rows = {row[0]: row[1:] for row in table(section(make_report(run), "cost"), "estimated").rows}
    assert rows["reference"] == ("30 s", "20 s to 40 s", "1 min 0 s", "200 %")
    assert rows["weights"][-1] == "50 %"


def costs(run: Path) -> dict[str, tuple[str, ...]]:
    """Stage -> its real time, and that against the estimate."""
    return {row[0]: row[3:] for row in table(section(make_report(run), "cost"), "estimated").rows}


def test_a_part_of_the_time_is_not_set_against_the_estimate(tmp_path):
    run = write_run(tmp_path / "run")
    stages = {"similarities": {"seconds": 20}, "weights": {"seconds": 120}}
    (run / "estimate.json").write_text(json.dumps({"stages": stages}), "utf-8")
    events_before = (run / "events.jsonl").read_text("utf-8")
    assert costs(run)["similarities"] == ("not recorded", NONE)
    told = {"event": "similarities", "stage": "similarities", "time": 900.0, "seeds": [1]}

    def after(*events: dict[str, object]) -> tuple[tuple[str, ...], str]:
        lines = [json.dumps({**told, **event}) for event in events]
        (run / "events.jsonl").write_text(events_before + "\n".join(lines) + "\n", "utf-8")
        return costs(run)["similarities"], words(section(make_report(run), "cost"))

    first = {"seconds": 4.0, "computed": 2, "kept": 0, "finished": False}
    last = {"seconds": 6.0, "computed": 3, "kept": 2, "finished": True}
    assert after(first)[0] == ("4 s (a part)", NONE) and "not finished" in after(first)[1]
    assert after(first, last)[0] == ("10 s", "50 %")
    assert after({**first, "seconds": 99.0}, first, last)[0] == ("10 s", "50 %")  # begun anew: another reference
    assert after(first, last, {**last, "computed": 0, "kept": 5, "seconds": 0.0})[0] == ("10 s", "50 %")
    assert after(last)[0] == ("6 s (a part)", NONE) and "in the cache before this run" in after(last)[1]
    other_seed = {**first, "seeds": [2], "finished": True}
    assert after(first, last, other_seed)[0] == ("14 s", "70 %")


def test_a_stage_that_went_on_took_the_time_of_all_its_starts(tmp_path):
    run = write_run(tmp_path / "run")
    stages = {"reference": {"seconds": 200}, "weights": {"seconds": 120}}
    (run / "estimate.json").write_text(json.dumps({"stages": stages}), "utf-8")

    def event(kind: str, time: float, **more: object) -> dict[str, object]:
        return {"event": kind, "stage": "reference", "time": time, "steps": 6, **more}

    lost = [event("stage_started", 100.0, from_step=0), event("step", 150.0, step=0)]
    first = [event("stage_started", 200.0, from_step=0), event("step", 210.0, step=0), event("step", 230.0, step=1)]
    pause = [event("note", 5000.0, text="left out")]
    second = [event("stage_started", 5001.0, from_step=2), event("step", 5041.0, step=2)]
    third = [event("stage_started", 9000.0, from_step=3), event("stage_finished", 9060.0, seconds=80.0)]
    lines = [json.dumps(one) for one in (*lost, *first, *pause, *second, *third)]
    (run / "events.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    assert costs(run)["reference"] == ("2 min 30 s", "75 %")  # 30 and 40 seconds, and the 80 of the last start
    assert "that of all starts together" in words(section(make_report(run), "cost"))


def test_check_and_leaks_are_shown(tmp_path):
    run = write_run(tmp_path / "run")
    check = {"totals": {"error": 1, "warning": 0, "note": 2}, "date": "today",
             "counts": [{"level": "error", "code": "no-negatives", "dataset": "nq", "count": 7}]}  # fmt: skip
    line = {"train": "nq", "test": "fiqa", "exact": 3, "near": 0, "simhash-k2": 0, "rate": 0.1, "queries": 2}
    leakage = {"settings": {"gate": "warn"}, "tests": {"fiqa": 30}, "leaking_rows": {"nq": 3}, "table": [line],
               "examples": []}  # fmt: skip
    (run / "data" / "check.json").write_text(json.dumps(check), "utf-8")
    (run / "data" / "leakage.json").write_text(json.dumps(leakage), "utf-8")
    report = make_report(run)
    assert table(section(report, "data"), "finding").rows == (("error", "nq", "no-negatives", "7"),)
    assert table(section(report, "data"), "exact").rows == (("nq", "fiqa", "3", "0", "0", "10.00 %", "2"),)
    assert "3 training rows ask what the evaluation asks" in words(section(report, "verdict"))
    assert "other data than the run" not in words(section(report, "data"))
    other = check | {"datasets": [{"name": name} for name in ("nq", "quora", "pubmed")]}
    (run / "data" / "check.json").write_text(json.dumps(other), "utf-8")
    said = "The check was of other data than the run.', text='Only the check has pubmed; only the run has xsum."
    assert said in words(section(make_report(run), "data"))


def strip(run: Path, *gone: str) -> None:
    """Take files and folders out of a run."""
    for name in gone:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


PARTIAL = {
    "only the reference": (("weights", "data", "evaluation"), "weights", "ended before they were learned"),
    "no evaluation": (("evaluation",), "verdict", "have not been evaluated yet"),
    "no robust model": (("evaluation/robust", "data/plan.csv"), "plan", "did not get there"),
    "no tables": (("weights/trajectory.parquet", "weights/statistics.parquet"), "health", "Nothing to say"),
    "no settings": (("resolved.yaml", "study.yaml"), "verdict", "robust model is better"),
    "no texts": (("evaluation/robust/fiqa/top.parquet",), "scores", "cannot be read"),
    "only the journal": (("resolved.yaml", "study.yaml", "weights", "data", "evaluation"), "verdict", "No verdict"),
    "only the settings": (("events.jsonl", "weights", "data", "evaluation"), "cost", "No stage of this run has ended"),
    "only the evaluation": (("resolved.yaml", "events.jsonl", "weights", "data"), "scores", "Queries helped most"),
}


@pytest.mark.parametrize("case", PARTIAL)
def test_a_partial_run_gets_a_page_that_says_what_is_missing(finished, tmp_path, case):
    gone, anchor, said = PARTIAL[case]
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    strip(run, *gone)
    report = make_report(run)
    assert said in words(section(report, anchor))
    assert "could not be made" not in as_html(report)


def test_a_run_that_was_killed_while_learning_shows_the_steps_of_its_journal(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    learning = RunFiles(run).learning
    assert learning is not None
    strip(run, "weights", "data", "evaluation", "events.jsonl")
    events = [
        {"event": "step", "stage": "weights", "time": 1.0, "step": step, "steps": 20, "weights": w.tolist(),
         "signal": s.tolist(), "statistics": c.tolist(), "misranked": m.tolist()}
        for step, w, s, c, m in zip(
            learning.steps, learning.weights_TG, learning.signal_TG, learning.sums_TGC, learning.misranked_TG,
            strict=True,
        )
    ]  # fmt: skip
    text = "".join(json.dumps(event) + "\n" for event in events[:15])
    (run / "events.jsonl").write_text(text + text[:50], "utf-8")  # the last line is half written
    again = RunFiles(run).learning
    assert again is not None
    assert again.names == learning.names
    assert (again.weights_TG == learning.weights_TG[:15]).all()
    report = make_report(run)
    assert "weights (75 % of its steps)" in words(section(report, "verdict"))
    assert "1 of the lines of events.jsonl cannot be read" in words(section(report, "verdict"))
    assert section(report, "weights").blocks


DAMAGED = [
    "resolved.yaml", "events.jsonl", "weights/weights.json", "weights/trajectory.parquet", "weights/statistics.parquet",
    "data/plan.csv", "evaluation/summary.json", "evaluation/robust/fiqa/summary.json",
    "evaluation/robust/fiqa/scores.parquet",
]  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_told_and_the_rest_is_shown(finished, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / name).write_bytes(b"\x00{[half")
    report = make_report(run)
    said = words(section(report, "verdict"))
    assert name in said or str(Path(name).parent) in said
    assert "could not be made" not in as_html(report)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"last": 3}',
        '{"last": {"nq": "x"}, "diagnostics": []}',
        '{"last": {"nq": NaN, "quora": Infinity, "xsum": -1}}',
    ],
)
def test_json_of_another_shape_never_stops_the_page(finished, tmp_path, content):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("weights/weights.json", "data/check.json", "data/leakage.json", "estimate.json"):
        (run / name).write_text(content, "utf-8")
    html = as_html(make_report(run))
    assert "How to read this page" in html
    assert not re.search(r' (d|x|y|width|height)="[^"]*(nan|inf)', html)


def test_one_dataset_and_two_hundred_get_a_page(tmp_path):
    one = write_run(tmp_path / "one", ["nq"], robust={"share": 1.0})
    assert "could not be made" not in as_html(make_report(one))
    names = [f"dataset-with-a-long-name-{k}" for k in range(200)]
    many = write_report(write_run(tmp_path / "many", names, steps=200, weights=[0.97**k for k in range(200)]))
    html = many.page.read_text("utf-8")
    assert "could not be made" not in html
    assert many.page.stat().st_size < 2_000_000
    assert all(f">{name}<" in html for name in names)


def test_what_is_no_run_folder_is_refused(tmp_path, capsys):
    with pytest.raises(CheckpointError, match="no run folder"):
        make_report(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "tdro run" in capsys.readouterr().err


def test_the_command_says_the_verdict_and_where_the_page_is(finished, tmp_path, capsys):
    assert main(["report", str(finished), "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "The robust model is better than the reference model",
        str(tmp_path / "index.html"),
        str(tmp_path / "report.md"),
    ]


def test_a_place_that_cannot_be_written_is_refused(finished, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(EnvironmentProblem, match="report cannot be written"):
        write_report(finished, tmp_path / "file")


def test_no_torch_and_nothing_heavy_before_it_is_needed(finished, tmp_path):
    code = (
        "import sys, tdro.report.page as page; from pathlib import Path;"
        "assert not {'numpy', 'pyarrow', 'scipy', 'jinja2'} & set(sys.modules), 'heavy';"
        f"page.write_report(Path({str(finished)!r}), Path({str(tmp_path)!r}));"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
