"""The tables of the study, on trials with known scores."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from study.arms import together
from study.material import _made
from study.pages import PAGE, page
from study.results import Halves, Outcome, agreement, arms_table, headroom_of, proxies, ranks
from study.settings import IN_DOMAIN, OUT_OF_DOMAIN, SETTINGS, study_of
from study.transfer import gift

from tdro.evaluation.halves import choice_half
from tdro.evaluation.regression import fit_usefulness, random_mixtures
from tdro.training.trials import Trial
from tdro.training.usefulness import MixtureScores

IDS = {task: [f"{task}-{i}" for i in range(60)] for task in (*OUT_OF_DOMAIN, *IN_DOMAIN)}
NAMES = ("a", "b", "c")


def outcome(name: str, gain: float, seeds: tuple[int, ...] = (0, 1, 2), **gains: float) -> Outcome:
    """An arm whose every query scores .5 and a gain, and a little more with every seed."""
    random = np.random.default_rng(0)
    noise = {task: 0.02 * random.standard_normal(len(ids)) for task, ids in IDS.items()}
    trials = {
        seed: Trial({t: 0.5 + 0.001 * seed + gains.get(t.replace("-", "_"), gain) + e for t, e in noise.items()}, 1.0)
        for seed in seeds
    }
    return Outcome(name, trials, {seed: {"a": 0.5, "b": 0.5} for seed in seeds})


def test_an_arm_is_compared_with_uniform_of_the_same_seeds():
    rows = arms_table([outcome("uniform", 0.0), outcome("better", 0.02, cosqa=-0.1), outcome("same", 0.0)], Halves(IDS))
    uniform, better, same = rows
    assert better["gain"] == pytest.approx(2.0, abs=0.01)
    assert better["out"] == pytest.approx(uniform["out"] + 2.0, abs=0.02)
    assert better["out_deviation"] == uniform["out_deviation"] == 0.1
    assert (better["worst"], better["worst_gain"]) == ("cosqa", pytest.approx(-10.0, abs=0.01))
    assert better["gain_in"] == pytest.approx((3 * 2 - 10) / 4, abs=0.01)
    assert better["p_holm"] < 0.01
    assert (same["gain"], same["p_holm"]) == (0.0, 1.0)
    assert "p_holm" not in uniform
    assert better["datasets"] == 2


def test_the_page_says_what_the_results_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: PYTHONPATH=benchmarks python -m study.pages"


def test_a_gift_is_what_the_others_gain():
    score_GG = np.array([[0.9, 0.6, 0.6], [0.2, 0.9, 0.2], [0.2, 0.2, 0.9]])
    others, own = gift(score_GG, own=False), gift(score_GG, own=True)
    assert int(others.argmax()) == 0
    assert others[1] == pytest.approx(others[2])
    assert own[1] > others[1]
    np.testing.assert_allclose(gift(10 * score_GG - 3, own=False), others)  # a scale of its own for every held-out set
    with_easy_GG = np.block([[score_GG, np.ones((3, 1))], [np.full((1, 3), 0.1), np.ones((1, 1))]])
    assert np.isfinite(gift(with_easy_GG, own=False)).all()  # all score 1 on the last set
    assert int(gift(with_easy_GG, own=False).argmin()) == 3


def test_only_the_report_half_is_in_the_table():
    arm = outcome("arm", 0.0)
    for trial in arm.trials.values():
        for task, scores in trial.scores.items():
            scores[choice_half(IDS[task])] = 1.0
    row = arms_table([outcome("uniform", 0.0), arm], Halves(IDS))[1]
    assert row["gain"] == 0


def test_headroom_is_what_the_optimised_mixture_gains():
    mixture_MG, noise = random_mixtures(3, 60, seed=0), np.random.default_rng(0)
    trials = tuple(
        Trial({task: 0.4 + 0.1 * share + 0.01 * noise.standard_normal(60) for task in IDS}, 1.0)
        for share in mixture_MG[:, 0].tolist()
    )
    found = MixtureScores(NAMES, mixture_MG, trials, IDS)
    fitted = fit_usefulness(NAMES, mixture_MG, found.score_M("choice", OUT_OF_DOMAIN))
    arms = [outcome("uniform", 0.0), outcome("optimised", 0.03)]
    room = headroom_of(found, fitted, arms, Halves(IDS), OUT_OF_DOMAIN)
    assert room["gain_of_optimised"] == pytest.approx(3.0, abs=0.01)
    assert room["seed_deviation"] == 0.1
    assert room["reliability"] > 0.5
    assert room["halves_agree"] > 0.9
    assert room["shared"] == pytest.approx(room["deviation"], abs=0.1)
    weights = {"relative": {0: {"a": 0.6, "b": 0.2, "c": 0.2}, 1: {"a": 0.5, "b": 0.3, "c": 0.2}}}
    row = agreement(weights, fitted)[0]
    assert all(value > 0.4 for value in row["with_usefulness"])
    assert row["between_seeds"] == [pytest.approx(0.866, abs=1e-3)]
    assert ranks(weights, ["a", "nowhere"]) == [
        {"measure": "relative", "dataset": "a", "places": [1, 1], "of": 3, "weight": 0.55}
    ]


def test_the_made_datasets_are_as_wrong_as_they_say(tmp_path):
    for name in ("jaquad", "snli", "stackexchange_qa", "zh_wiki_qa", "agnews", "package_desc", "medquad", "scitldr"):
        rows = [{"query": f"{name} {i}", "positive_passages": [{"text": f"of {name} {i}"}]} for i in range(400)]
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    made = dict(_made(tmp_path))

    def right(name: str) -> float:
        return float(np.mean([row["positive_passages"][0]["text"] == f"of {row['query']}" for row in made[name]]))

    assert len(made["jaquad-small"]) == 300 and right("jaquad-small") == 1
    assert len(made["noise30"]) == 200 and right("noise30") == pytest.approx(0.7)
    assert right("noise100") == 0
    assert {row["positive_passages"][0]["text"] for row in made["noise100"]} == {
        "of " + row["query"] for row in made["noise100"]
    }
    assert len(made["medquad_copy"]) == 400
    assert all(row["query"] in row["positive_passages"][0]["text"] for row in made["easy"])


def test_proxies_of_two_models_are_compared_by_measure_and_seed():
    large = {"relative": {0: {"a": 0.6, "b": 0.3, "c": 0.1}, 1: {"a": 0.3, "b": 0.6, "c": 0.1}}}
    small = {"relative": {0: {"c": 0.7, "b": 0.2, "a": 0.1}, 1: {"c": 0.1, "b": 0.5, "a": 0.4}}, "raw": {}}
    assert proxies(large, small) == [{"measure": "relative", "with_smaller": [-1.0, 1.0], "between_seeds": [0.5]}]


def test_weights_put_together_are_between_both():
    both = together({"a": 0.8, "b": 0.2}, {"b": 0.8, "a": 0.2})
    assert both == {"a": pytest.approx(0.5), "b": pytest.approx(0.5)}
    assert together({"a": 0.9, "b": 0.1}, {"a": 0.5, "b": 0.5})["a"] == pytest.approx(0.75)


@pytest.mark.parametrize("setting", SETTINGS)
def test_recipes_of_the_study_have_what_the_program_needs(setting):
    study = study_of(setting, Path("somewhere"))
    assert set(study.evaluation.tasks) <= set(OUT_OF_DOMAIN) | set(IN_DOMAIN)
    assert len(study.evaluation.tasks) == (3 if setting == "users-decoder" else 10)
    assert len(study.data.datasets) == (17 if setting.startswith("given") else 21)
    assert study.run_folder == Path("somewhere") / setting
    assert study.data.root == "somewhere/data"
