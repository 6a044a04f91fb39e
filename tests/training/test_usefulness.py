"""`usefulness`: random mixtures of a study, from rows to files."""

import csv
import json

import numpy as np
import pytest
from studies import tiny_study

from tdro.data.weights_file import read_weights
from tdro.errors import ConfigError, DataError
from tdro.evaluation.halves import Half, choice_half
from tdro.evaluation.regression import fit_usefulness
from tdro.training import trials
from tdro.training.run import Run
from tdro.training.usefulness import MixtureScores, usefulness

SHORT = {"steps": 6, "learning_rate": 1.0, "warmup_steps": 0}


def run_of(tmp_path, **changes) -> Run:
    return Run(tiny_study(tmp_path, "static", reference=SHORT, **changes))


def test_files_say_what_was_tried_and_found(tmp_path):
    run = run_of(tmp_path)
    found, fitted = usefulness(run, 20, half="all")
    folder = run.folder / "usefulness" / "all"
    with (folder / "mixtures.csv").open() as file:
        table = list(csv.DictReader(file))
    shares = np.array([[float(row[name]) for name in ("one", "two", "three")] for row in table])
    np.testing.assert_allclose(shares, found.mixture_MG, atol=1e-6)
    np.testing.assert_allclose([float(row["score of words"]) for row in table], found.score_M("all"), atol=1e-6)
    summary = json.loads((folder / "usefulness.json").read_text())
    assert summary["mixtures"] == 20
    assert summary["usefulness"] == pytest.approx(dict(zip(fitted.names, fitted.slope_G.tolist(), strict=True)))
    assert read_weights(folder / "best.json") == pytest.approx(summary["best"])


def test_more_mixtures_add_to_the_first(tmp_path, monkeypatch):
    first, _ = usefulness(run_of(tmp_path), 20, half="all")
    done = []
    train = trials.train
    monkeypatch.setattr(trials, "train", lambda *given: (done.append(1), train(*given)))
    more, _ = usefulness(run_of(tmp_path), 23, half="all")
    assert len(done) == 3
    np.testing.assert_array_equal(more.score_M("all")[:20], first.score_M("all"))


def test_what_is_reported_on_is_not_chosen_on(tmp_path):
    run = run_of(tmp_path)
    usefulness(run, 20)
    folder = run.folder / "usefulness"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    usefulness(run, 20, half="report")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert {path.name for path in (folder / "report").iterdir()} == {"mixtures.csv", "usefulness.json"}


def test_half_of_the_queries_count_unless_all_are_asked_for(tmp_path):
    run = run_of(tmp_path)
    every, _ = usefulness(run, 20, half="all")
    _, fitted = usefulness(run, 20)
    assert fitted.uniform != pytest.approx(_uniform(every, "all"), abs=1e-6)
    halves = [every.means(half)[3]["words"] for half in ("choice", "report")]
    chosen = int(choice_half(every.query_ids["words"]).sum())
    assert np.average(halves, weights=[chosen, 8 - chosen]) == pytest.approx(every.means("all")[3]["words"])


def _uniform(found: MixtureScores, half: Half) -> float:
    """What the regression expects of the uniform mixture."""
    return fit_usefulness(found.names, found.mixture_MG, found.score_M(half), 42).uniform


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"data": {"datasets": {"one": "train/one.jsonl"}}}, {}, "one dataset has no mixtures"),
        ({"evaluation": {"tasks": {}}}, {}, "nothing to score"),
        ({}, {"tasks": ("wrds",)}, "wrds"),
        ({}, {"count": 19}, "too few"),
        ({"evaluation": {"tasks": {"words": "eval/gone"}}}, {}, "not found"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_training(tmp_path, changes, arguments, said):
    run = run_of(tmp_path, **changes)
    with pytest.raises((ConfigError, DataError), match=said):
        usefulness(run, **arguments)
    assert not (run.folder / "trials").exists()


def test_a_task_with_too_few_queries_is_refused_before_training(tmp_path):
    run = run_of(tmp_path)
    judged = tmp_path / "root" / "eval" / "words" / "qrels" / "test.tsv"
    judged.write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n", encoding="utf-8")
    with pytest.raises(DataError, match="too few queries"):
        usefulness(run, 20)
    assert not (run.folder / "trials").exists()
