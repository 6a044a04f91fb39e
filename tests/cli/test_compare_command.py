"""`tdro compare`: result folders in; tables, a verdict, JSON and Markdown out."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tdro.cli.compare import command
from tdro.cli.main import main
from tdro.errors import ConfigError, DataError


def write_result(folder, task, scores, **summary):
    """Write a result folder by hand, every query with the same three documents."""
    place = folder / task
    place.mkdir(parents=True)
    ids = [f"q{i}" for i in range(len(scores))]
    pq.write_table(pa.table({"query_id": ids, "ndcg@10": scores, "recall@100": scores}), place / "scores.parquet")
    rows = [
        {"query_id": i, "query": f"what\nis |{i}|", "rank": rank, "document_id": f"d{rank or 9}", "score": 1.0,
         "relevance": relevance, "title": "Title", "text": "long " * 60}
        for i in ids for rank, relevance in ((1, None), (2, 0), (None, 1))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), place / "top.parquet")
    name, _, part = task.partition("/")
    content = {"task": name, "part": part, "model": folder.name, "main": "ndcg@10", "depth": 1000, "corpus": "c"}
    (place / "summary.json").write_text(json.dumps({**content, **summary}))


@pytest.fixture
def run(tmp_path):
    """A run with three models: `better` than `base` on two tasks, `same` as it."""
    random = np.random.default_rng(0)
    for task, count, gain in (("scifact", 80, 0.1), ("miracl/sw", 50, 0.2), ("miracl/yo", 40, 0.0), ("fiqa", 60, 0.0)):
        base = random.uniform(0.2, 0.6, count)
        better = base + gain + random.normal(0, 0.1, count)
        for name, scores in (("base", base), ("better", better), ("same", base)):
            write_result(tmp_path / "run" / "evaluation" / name, task, np.clip(scores, 0, 1))
    return tmp_path / "run"


def test_models_of_a_run_are_compared(run, capsys):
    assert main(["compare", f"{run}:base", f"{run}:better"]) == 0
    printed = capsys.readouterr().out
    assert "better against base, ndcg@10 x 100" in printed
    assert re.search(r"better is better than base: \+\d+\.\d\d points of ndcg@10 \(95 % interval \+", printed)
    assert "better on 2 (miracl, scifact) and worse on 0 after Holm at level 0.05" in printed
    assert "One run of each side" in printed
    for row in ("scifact", "miracl", "  sw", "  yo", "fiqa", "mean"):
        assert re.search(rf"^ {row} +\d+ +\d", printed, re.M), row
    assert len(re.findall(r"\[relevant\] d", printed)) == 20  # 5 queries that gain and 5 that lose, 2 sides each
    assert "not found [relevant] d9: Title. long long" in printed


def test_halves_of_the_queries_are_compared_apart(run, tmp_path):
    counts = {}
    for half in ("choice", "report", "all"):
        path = tmp_path / f"{half}.json"
        assert main(["compare", f"{run}:base", f"{run}:better", "--half", half, "--json", str(path)]) == 0
        content = json.loads(path.read_text())
        assert content["half"] == half
        counts[half] = sum(line["test"]["difference"]["queries"] for line in content["contrasts"][0]["tasks"])
    assert counts["choice"] + counts["report"] == counts["all"] > counts["choice"] > 0


def test_order_decides_the_baseline(run, capsys):
    assert command([f"{run}:better", f"{run}:base", "--examples", "0"]) == 0
    printed = capsys.readouterr().out
    assert "base is worse than better: -" in printed and "relevant" not in printed


def test_equal_models_show_no_clear_difference(run, capsys):
    assert command([f"{run}:base", f"{run}:same"]) == 0
    printed = capsys.readouterr().out
    assert "No clear difference between base and same: +0.00 points" in printed and "p = 1.0000" in printed
    assert "nan" not in printed.lower() and "gains most" not in printed


def test_several_sides_and_measures_are_all_compared_with_the_first(run, capsys):
    sides = [str(run / "evaluation" / name) for name in ("base", "better", "same")]
    assert command([*sides, "--measure", "ndcg@10", "recall@100", "--only", "scifact", "--examples", "0"]) == 0
    titles = re.findall(r"^\w+ against \w+, \S+", capsys.readouterr().out, re.M)
    assert titles == [
        "better against base, ndcg@10", "same against base, ndcg@10",
        "better against base, recall@100", "same against base, recall@100",
    ]  # fmt: skip


def test_json_has_the_numbers_and_no_nan(run, tmp_path, capsys):
    out = tmp_path / "c.json"
    command([f"{run}:base", f"new={run}:better", "--json", str(out), "--examples", "2", "--level", "0.01"])
    content = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert [side["name"] for side in content["sides"]] == ["base", "new"]
    assert content["sides"][1]["seeds"][0]["miracl/sw"] == str(run / "evaluation" / "better" / "miracl" / "sw")
    assert (content["level"], content["resamples"]) == (0.01, 10_000)
    (contrast,) = content["contrasts"]
    assert contrast["verdict"] in capsys.readouterr().out
    tasks = {line["name"]: line for line in contrast["tasks"]}
    assert list(tasks) == ["fiqa", "miracl", "scifact"]
    assert [line["name"] for line in contrast["parts"]] == ["miracl/sw", "miracl/yo"]
    change = [tasks[name]["test"]["difference"]["mean"] for name in tasks]
    assert contrast["mean"]["test"]["difference"]["mean"] == pytest.approx(np.mean(change))
    assert tasks["scifact"]["second"] - tasks["scifact"]["first"] == pytest.approx(change[2])
    assert len(contrast["helped"]) == len(contrast["hurt"]) == 2
    assert contrast["helped"][0]["second"] > contrast["helped"][0]["first"]


def test_markdown_is_a_table_whatever_the_texts_contain(run, tmp_path):
    out = tmp_path / "c.md"
    command([f"{run}:base", f"{run}:better", "--markdown", str(out), "--examples", "1"])
    text = out.read_text()
    rows = [line for line in text.split("\n") if line.startswith("|")]
    assert len(rows) == 2 + 6 and {row.count("|") for row in rows} == {rows[0].count("|")}
    assert rows[0].startswith("| task | queries | base | better | difference |")
    assert "## better against base, ndcg@10 x 100" in text and "better is better than base" in text
    assert re.search(r"^- \S+ q\d+: .* \*\*what is \\\|q\d+\\\|\*\*$", text, re.M)


def test_seeds_are_shown_beside_the_noise_of_the_queries(tmp_path, capsys):
    random = np.random.default_rng(1)
    base = random.uniform(0.3, 0.6, 200)
    for side, gain in (("u", 0.0), ("l", 0.03)):
        for seed, shift in enumerate((-0.06, 0.0, 0.06)):
            write_result(tmp_path / f"{side}{seed}", "scifact", base + gain + shift + random.normal(0, 0.05, 200))
    uniform, learned = (",".join(str(tmp_path / f"{side}{seed}") for seed in range(3)) for side in "ul")
    command([f"uniform={uniform}", f"learned={learned}", "--examples", "0"])
    printed = capsys.readouterr().out
    assert "learned is better than uniform, but by less than the seed spread: +" in printed
    assert "is within the seed spread" in printed and "from 3 and 3 seeds" in printed
    assert "sd of seeds" in printed and re.search(r"[56]\.\d\d / [56]\.\d\d", printed)
    command([f"uniform={tmp_path / 'u1'},{tmp_path / 'u0'}", f"learned={tmp_path / 'l2'}", "--examples", "0"])
    assert "exceeds the seed spread" in capsys.readouterr().out


def test_models_are_evaluated_first(run, tmp_path, monkeypatch, capsys):
    asked = []

    def evaluate_models(parsed, console, ranks):
        from tdro.cli.evaluate import Evaluated

        asked.append((parsed.models, parsed.tasks, parsed.out))
        names = [text.partition("=")[0] for text in parsed.models]
        for name in names:
            write_result(tmp_path / "out" / name, "fiqa", np.zeros(60))
            write_result(tmp_path / "out" / name, "left-from-before", np.zeros(60))
        return Evaluated({name: tmp_path / "out" / name for name in names}, {"fiqa": {}})

    monkeypatch.setattr("tdro.cli.evaluate.evaluate_models", evaluate_models)
    arguments = ["bm25", "org/small", f"{run}:base", "--tasks", "beir/fiqa", "--out", str(tmp_path / "out")]
    assert command([*arguments, "--examples", "0"]) == 0
    assert asked == [(("bm25=bm25", "org__small=org/small"), ("beir/fiqa",), str(tmp_path / "out"))]
    printed = capsys.readouterr().out
    assert "small against bm25" in printed and "base is better than bm25" in printed and "left" not in printed


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["{run}:base"], "at least two sides"),
        (["{run}:base", "{run}:base"], "called the same"),
        (["a={run}:base", "a={run}:better"], "called the same"),
        (["a={run}:base,{run}:base", "{run}:better"], "given twice"),
        (["a={run}:base,", "{run}:better"], "without a folder"),
        (["{run}:base", "bm25"], "no results here"),
        (["{run}:base", "{run}:better", "--tasks", "x"], "nothing is evaluated"),
        (["{run}:base", "{run}:better", "--out", "x"], "nothing is evaluated"),
        (["{run}:base", "{run}:better", "--level", "5"], "between 0 and 1"),
        (["{run}:base", "{run}:better", "--resamples", "10"], "too few resamples"),
        (["{run}:base", "{run}:better", "--examples", "-1"], "at least 0"),
        (["{run}:base", "{run}:better", "--measure", "map"], "no task has this measure"),
        (["{run}:base", "{run}:better", "--only", "nq"], "no results of this task"),
    ],
)
def test_what_cannot_be_is_refused(run, arguments, what):
    with pytest.raises(ConfigError, match=what):
        command([argument.format(run=run) for argument in arguments])


def test_a_run_without_the_model_names_those_it_has(run):
    with pytest.raises(DataError, match="not evaluated") as error:
        command([f"{run}:base", f"{run}:robust"])
    assert "base, better, same" in str(error.value)
    with pytest.raises(DataError, match="several models") as error:
        command([f"{run}:base", str(run)])
    assert f"{run}:better" in str(error.value)


def test_other_corpora_end_with_exit_code_2(run, tmp_path, capsys):
    write_result(tmp_path / "other", "scifact", np.zeros(80), corpus="d")
    assert main(["compare", f"{run}:base", str(tmp_path / "other"), "--only", "scifact"]) == 2
    assert "results differ in corpus" in capsys.readouterr().err


def test_help_is_there_without_arguments(capsys):
    assert command([]) == 0
    assert "usage: tdro compare A B" in capsys.readouterr().out
