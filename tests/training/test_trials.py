"""Trials: the same training and the same scores as the stages, once each."""

import shutil

import numpy as np
import pytest
from studies import tiny_study

from tdro.core.plan import Plan, reweight, reweight_loss
from tdro.evaluation.halves import half_means
from tdro.evaluation.results import read_result
from tdro.training import trials as module
from tdro.training.examiner import Examiner
from tdro.training.loop import Stopped, train
from tdro.training.pipeline import evaluate_only, run_study
from tdro.training.run import Run
from tdro.training.trials import Trials
from tdro.training.usefulness import study_rows

UNIFORM = reweight({"one": 1.0, "two": 1.0, "three": 1.0})


def trials_of(tmp_path, **changes) -> Trials:
    run = Run(tiny_study(tmp_path, "static", **changes))
    return Trials(run, study_rows(run))


@pytest.mark.parametrize("tokens", ["cached", "fresh"])
def test_a_uniform_trial_scores_every_query_as_the_reference_does(tmp_path, tokens):
    run = Run(tiny_study(tmp_path, "static", data={"tokens": tokens}, evaluation={"models": ["reference"]}))
    run_study(run, "reference")
    evaluate_only(run)
    result = read_result(run.folder / "evaluation" / "reference" / "words")
    expected = dict(zip(result.query_ids, result.scores["ndcg@10"].tolist(), strict=True))
    trials = Trials(run, study_rows(run))
    found = trials.run(UNIFORM, run.study.seed)
    assert dict(zip(trials.query_ids["words"], found.scores["words"].tolist(), strict=True)) == pytest.approx(expected)


def test_a_trial_is_done_once_whatever_it_is_called(tmp_path, monkeypatch):
    trials = trials_of(tmp_path)
    first = trials.run(UNIFORM, 1)
    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained again"))
    again = trials.run(Plan({"three": 1 / 3, "one": 1 / 3, "two": 1 / 3}), 1)
    np.testing.assert_array_equal(again.scores["words"], first.scores["words"])
    for plan, seed in (
        (UNIFORM, 2),
        (reweight({"one": 0.5, "two": 0.5}), 1),
        (reweight_loss({"one": 1, "two": 2, "three": 3}), 1),
    ):
        assert trials.find(plan, seed) is None


def test_a_task_may_have_any_name(tmp_path):
    trials = trials_of(tmp_path, evaluation={"tasks": {"file": "eval/words", "allow_pickle": "eval/words"}})
    scores = trials.run(UNIFORM, 1).scores
    assert set(scores) == {"file", "allow_pickle"}
    np.testing.assert_array_equal(scores["file"], scores["allow_pickle"])


def test_seed_and_mixture_change_what_comes_out(tmp_path):
    trials = trials_of(tmp_path, reference={"steps": 20, "learning_rate": 0.1})
    runs = [
        trials.run(plan, seed).scores["words"] for plan, seed in ((UNIFORM, 1), (UNIFORM, 2), (Plan({"one": 1.0}), 1))
    ]
    assert not np.array_equal(runs[0], runs[1]) or not np.array_equal(runs[0], runs[2])


def test_another_setting_or_task_is_another_trial(tmp_path):
    key = trials_of(tmp_path / "a").key(UNIFORM, 1)
    assert trials_of(tmp_path / "b").key(UNIFORM, 1) == key
    assert trials_of(tmp_path / "c", reference={"steps": 7}).key(UNIFORM, 1) != key
    asked = {"words": {"path": "eval/words", "instruction": "find"}}
    assert trials_of(tmp_path / "d", evaluation={"tasks": asked}).key(UNIFORM, 1) != key
    assert trials_of(tmp_path / "e", weights={"steps": 7}).key(UNIFORM, 1) == key


def test_other_files_are_another_trial(tmp_path):
    def key(**changes) -> str:
        return trials_of(tmp_path, **changes).key(UNIFORM, 1)

    first = key()
    shutil.copytree(tmp_path / "root" / "model", tmp_path / "root" / "guide")
    guided = key(reference={"guide": "{root}/guide"})
    judged = tmp_path / "root" / "eval" / "words" / "qrels" / "test.tsv"
    judged.write_text(judged.read_text("utf-8").replace("q1\td1\t1", "q1\td2\t1"), encoding="utf-8")
    keys = [first, guided, key()]
    (tmp_path / "root" / "guide" / "note.txt").write_text("another guide", encoding="utf-8")
    keys.append(key(reference={"guide": "{root}/guide"}))
    keys += [key(data={"passage_max_length": 20}), key(data={"max_rows": 20}), key(model={"normalize": False})]
    assert len(set(keys)) == len(keys)


def test_a_stopped_trial_goes_on_and_ends_with_the_same_scores(tmp_path, monkeypatch):
    whole = trials_of(tmp_path / "a").run(UNIFORM, 1)
    trials = trials_of(tmp_path / "b")

    def stop_early(model, config, step, place):
        backward = step.backward

        def stopping(number, seed):
            if number == 5:
                raise Stopped("killed")
            return backward(number, seed)

        step.backward = stopping
        train(model, config, step, place)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train", stop_early)
        with pytest.raises(Stopped):
            trials.run(UNIFORM, 1)
    assert trials.find(UNIFORM, 1) is None
    np.testing.assert_array_equal(trials.run(UNIFORM, 1).scores["words"], whole.scores["words"])
    journal = trials._run.journal.within(trials._run.folder / "trials" / trials.key(UNIFORM, 1))
    assert [event["from_step"] for event in journal.read("stage_started", "robust")] == [0, 4]


def test_an_instruction_of_a_task_stands_before_its_queries(tmp_path):
    run = Run(tiny_study(tmp_path, "static", evaluation={"tasks": {"words": "eval/words"}}))
    plain = Examiner(run, run.load_base())
    told = run.study.evaluation.model_copy(
        update={"tasks": {"words": run.study.evaluation.tasks["words"].model_copy(update={"instruction": "a b c d"})}}
    )
    run.study = run.study.model_copy(update={"evaluation": told})
    model = run.load_base()
    assert not np.array_equal(Examiner(run, model).scores(model)["words"], plain.scores(model)["words"])


def test_means_are_over_the_queries_that_count():
    scores = {"a": np.array([0.0, 1.0, 0.5]), "b": np.array([1.0])}
    chosen = {"a": np.array([True, True, False]), "b": np.array([False])}
    assert half_means(scores, chosen) == {"a": 0.5}
