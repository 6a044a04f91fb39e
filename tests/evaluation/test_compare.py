"""Tests of comparing result folders: the numbers of scipy on the same scores; what cannot be compared is refused."""

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from tdro.cli.compare_display import verdict
from tdro.errors import ConfigError, DataError
from tdro.evaluation.compare import compare, find_examples
from tdro.evaluation.sides import query_differences, read_side, subtract


def write_result(folder, task, scores, *, ids=None, main="ndcg@10", top=(), **summary):
    """Write a result folder by hand; `task` may be `task/part`."""
    measures = scores if isinstance(scores, dict) else {main: scores}
    count = len(next(iter(measures.values())))
    ids = [f"q{i}" for i in range(count)] if ids is None else list(ids)
    place = folder / task
    place.mkdir(parents=True)
    pq.write_table(pa.table({"query_id": ids, **measures}), place / "scores.parquet")
    columns = ("query_id", "query", "rank", "document_id", "relevance", "title", "text")
    rows = [dict(zip(columns, row, strict=True)) for row in top]
    strings = [(name, pa.string()) for name in ("query_id", "query", "document_id", "title", "text")]
    schema = pa.schema([*strings, ("rank", pa.int32()), ("relevance", pa.int32()), ("score", pa.float32())])
    pq.write_table(pa.Table.from_pylist(rows, schema), place / "top.parquet")
    name, _, part = task.partition("/")
    content = {"task": name, "part": part, "model": folder.name, "main": main, "depth": 1000, "corpus": "c1"}
    (place / "summary.json").write_text(json.dumps({**content, **summary}))


def sides(tmp_path, *names, only=()):
    """Read sides of one seed."""
    return [read_side(name, [tmp_path / name], only) for name in names]


@pytest.fixture
def scores():
    """Scores of two models on 60 queries."""
    random = np.random.default_rng(0)
    first = random.random(60)
    return first, np.clip(first + random.normal(0.05, 0.15, 60), 0, 1)


# numbers


def test_a_line_has_the_means_and_the_tests_of_scipy(tmp_path, scores):
    first, second = scores
    write_result(tmp_path / "a", "scifact", first)
    write_result(tmp_path / "b", "scifact", second[::-1], ids=[f"q{i}" for i in range(60)][::-1])
    (contrast,) = compare(sides(tmp_path, "a", "b"))
    (line,) = contrast.tasks
    assert (line.first, line.second) == pytest.approx((first.mean(), second.mean()))
    assert line.test.difference.mean == pytest.approx((second - first).mean())
    assert line.test.p_t == pytest.approx(stats.ttest_rel(second, first).pvalue)
    assert line.p_holm == line.test.p_randomisation == contrast.mean.p_holm
    assert line.test.wins + line.test.ties + line.test.losses == 60
    assert contrast.parts == () and line.seed_noise is None


def test_a_comparison_turned_round_changes_signs_only(tmp_path, scores):
    write_result(tmp_path / "a", "scifact", scores[0])
    write_result(tmp_path / "b", "scifact", scores[1])
    (forth,), (back,) = compare(sides(tmp_path, "a", "b")), compare(sides(tmp_path, "b", "a"))
    assert forth.mean.test.difference.mean == -back.mean.test.difference.mean
    assert forth.mean.test.difference.low == pytest.approx(-back.mean.test.difference.high, abs=1e-12)
    assert forth.mean.test.p_randomisation == back.mean.test.p_randomisation
    assert forth.mean.test.wins == back.mean.test.losses


def test_parts_count_the_same_in_their_task_and_tasks_in_the_mean(tmp_path):
    for name, shift in (("a", 0.0), ("b", 0.1)):
        write_result(tmp_path / name, "miracl/sw", np.full(3, 0.2 + shift), ids=["s1", "s2", "s3"])
        write_result(tmp_path / name, "miracl/yo", np.full(50, 0.6 + 3 * shift))
        write_result(tmp_path / name, "scifact", np.full(9, 0.5 - shift))
    (contrast,) = compare(sides(tmp_path, "a", "b"))
    miracl, scifact = contrast.tasks
    assert (miracl.name, miracl.first, miracl.second) == ("miracl", pytest.approx(0.4), pytest.approx(0.6))
    assert (scifact.name, scifact.test.difference.mean) == ("scifact", pytest.approx(-0.1))
    assert [line.name for line in contrast.parts] == ["miracl/sw", "miracl/yo"]
    assert [line.p_holm for line in contrast.parts] == [None, None]
    assert contrast.mean.test.difference.mean == pytest.approx((0.2 - 0.1) / 2)
    assert contrast.mean.first == pytest.approx((0.4 + 0.5) / 2)


def test_the_same_questions_in_several_languages_are_one_observation_each(tmp_path):
    random = np.random.default_rng(1)
    questions = random.normal(0.03, 0.3, 80)
    for name, shift in (("a", 0), ("b", questions)):
        for language in ("da", "de", "en", "fi"):
            write_result(tmp_path / name, f"mkqa/{language}", 0.5 + np.zeros(80) + shift, main="acc@10")
            write_result(
                tmp_path / name,
                f"own/{language}",
                0.5 + np.zeros(80) + shift,
                ids=[f"{language}{i}" for i in range(80)],
            )
    acc, ndcg = compare(sides(tmp_path, "a", "b"))
    assert (acc.measure, ndcg.measure) == ("acc@10", "ndcg@10")
    assert acc.mean.test.p_t == pytest.approx(stats.ttest_1samp(questions, 0).pvalue)
    assert acc.mean.test.difference.queries == 80 and ndcg.mean.test.difference.queries == 320
    width = [line.test.difference.high - line.test.difference.low for line in (acc.mean, ndcg.mean)]
    assert width[0] / width[1] == pytest.approx(2, rel=0.1)  # sqrt(4) languages


def test_a_question_that_a_language_lacks_keeps_the_mean_over_parts(tmp_path):
    random = np.random.default_rng(2)
    for name in "ab":
        write_result(tmp_path / name, "mkqa/da", random.random(40), main="acc@10")
        write_result(tmp_path / name, "mkqa/de", random.random(37), main="acc@10")
    first, second = sides(tmp_path, "a", "b")
    (joined,) = query_differences(first, second, "acc@10").values()
    changes = subtract(first, second, "acc@10", first.tasks)
    assert len(joined) == 40
    assert joined.mean() == pytest.approx(np.mean([change.mean() for change in changes.values()]))


def test_holm_counts_all_tasks_and_all_sides_of_a_measure(tmp_path):
    random = np.random.default_rng(3)
    for name, gain in (("a", 0), ("b", 0.02), ("c", 0.1)):
        for task in ("one", "two"):
            measures = {m: random.normal(0.5 + gain, 0.1, 50) for m in ("ndcg@10", "mrr@10")}
            write_result(tmp_path / name, task, measures)
    contrasts = compare(sides(tmp_path, "a", "b", "c"), ("ndcg@10", "mrr@10"))
    assert [(c.measure, c.second.name) for c in contrasts] == [
        ("ndcg@10", "b"), ("ndcg@10", "c"), ("mrr@10", "b"), ("mrr@10", "c"),
    ]  # fmt: skip
    lines = [line for contrast in contrasts[:2] for line in contrast.tasks]
    p = [line.test.p_randomisation for line in lines]
    smallest = int(np.argmin(p))
    assert lines[smallest].p_holm == pytest.approx(min(1, 4 * p[smallest]))
    means = [contrast.mean for contrast in contrasts[:2]]
    assert min(line.p_holm for line in means) == pytest.approx(2 * min(line.test.p_randomisation for line in means))


# seeds


def test_seeds_are_averaged_per_query_and_their_spread_is_that_of_the_means(tmp_path):
    random = np.random.default_rng(4)
    first, second = random.random((3, 40)), random.random((2, 40))
    for name, rows in (("a", first), ("b", second)):
        for seed, values in enumerate(rows):
            write_result(tmp_path / f"{name}{seed}", "scifact", values)
    a = read_side("a", [tmp_path / f"a{seed}" for seed in range(3)])
    b = read_side("b", [tmp_path / f"b{seed}" for seed in range(2)])
    (contrast,) = compare([a, b])
    assert contrast.mean.first_spread == pytest.approx(first.mean(axis=1).std(ddof=1))
    assert contrast.mean.second_spread == pytest.approx(second.mean(axis=1).std(ddof=1))
    assert contrast.mean.test.p_t == pytest.approx(stats.ttest_rel(first.mean(axis=0), second.mean(axis=0)).pvalue)
    assert contrast.mean.seed_noise == pytest.approx(
        np.sqrt(first.mean(axis=1).var(ddof=1) + second.mean(axis=1).var(ddof=1))
    )


def test_a_single_seed_is_taken_to_spread_like_the_other_side(tmp_path):
    for name, score in (("a", 0.5), ("b0", 0.5), ("b1", 0.7)):
        write_result(tmp_path / name, "scifact", np.full(4, score))
    a, b = read_side("a", [tmp_path / "a"]), read_side("b", [tmp_path / "b0", tmp_path / "b1"])
    line = compare([a, b])[0].mean
    assert line.first_spread is None
    assert line.seed_noise == pytest.approx(np.sqrt(2) * np.std([0.5, 0.7], ddof=1))


# corners


def test_equal_models_are_equal_without_warnings(tmp_path, scores):
    for name in "ab":
        write_result(tmp_path / name, "scifact", scores[0])
        write_result(tmp_path / name, "tiny", np.array([0.5]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (contrast,) = compare(sides(tmp_path, "a", "b"))
    for line in (*contrast.tasks, contrast.mean):
        assert (line.test.p_randomisation, line.test.p_t, line.p_holm, line.test.effect) == (1, 1, 1, 0)
    assert contrast.mean.test.ties == 61
    assert find_examples(contrast, 5) == ((), ())


def test_a_mean_over_seeds_that_is_equal_but_for_rounding_is_a_tie(tmp_path):
    for name, values in (("a0", 0.1), ("a1", 0.2), ("a2", 0.3), ("b0", 0.3), ("b1", 0.2), ("b2", 0.1)):
        write_result(tmp_path / name, "t", np.full(5, values))
    a, b = (read_side(name, [tmp_path / f"{name}{seed}" for seed in range(3)]) for name in "ab")
    assert compare([a, b])[0].mean.test.ties == 5


def test_a_single_query_proves_nothing(tmp_path):
    write_result(tmp_path / "a", "tiny", np.array([0.1]))
    write_result(tmp_path / "b", "tiny", np.array([0.9]))
    line = compare(sides(tmp_path, "a", "b"))[0].mean
    assert (line.test.p_randomisation, line.p_holm, line.test.p_t, line.test.effect) == (1, 1, None, None)


# examples


def test_examples_are_the_largest_changes_with_what_both_sides_found(tmp_path):
    top = {
        "a": [
            ("q1", "why?", 2, "d2", 0, "", "no"),
            ("q1", "why?", 1, "d1", 1, "T", "yes"),
            ("q0", "how?", 1, "x", None, None, None),
        ],
        "b": [("q1", "why?", 1, "d3", None, "", "so"), ("q1", "why?", None, "d1", 1, "T", "yes")],
    }
    write_result(tmp_path / "a", "t", np.array([0.5, 0.9, 0.1, 0.3]), top=top["a"])
    write_result(tmp_path / "b", "t", np.array([0.6, 0.2, 0.1, 0.8]), top=top["b"])
    write_result(tmp_path / "a", "u/de", np.array([0.4, 0.3]))
    write_result(tmp_path / "b", "u/de", np.array([0.4, 0.1]))
    (contrast,) = compare(sides(tmp_path, "a", "b"))
    helped, hurt = find_examples(contrast, 2)
    assert [(e.task, e.query_id, e.first, e.second) for e in helped] == [("t", "q3", 0.3, 0.8), ("t", "q0", 0.5, 0.6)]
    assert [(e.task, e.query_id) for e in hurt] == [("t", "q1"), ("u/de", "q1")]
    assert hurt[0].query == "why?" and helped[1].query == "how?"
    assert [(f.rank, f.document_id, f.relevant) for f in hurt[0].first_found] == [(1, "d1", True), (2, "d2", False)]
    assert [(f.rank, f.document_id, f.relevant) for f in hurt[0].second_found] == [(1, "d3", False), (None, "d1", True)]
    assert find_examples(contrast, 0) == ((), ())


# measures and tasks


def test_by_default_every_task_is_compared_in_its_main_measure(tmp_path):
    for name in "ab":
        write_result(tmp_path / name, "scifact", {"ndcg@10": np.zeros(3), "mrr@10": np.zeros(3)})
        write_result(tmp_path / name, "mkqa/de", {"acc@1": np.zeros(3), "acc@10": np.zeros(3)}, main="acc@10")
    contrasts = compare(sides(tmp_path, "a", "b"))
    assert {c.measure: [line.name for line in c.tasks] for c in contrasts} == {
        "acc@10": ["mkqa"],
        "ndcg@10": ["scifact"],
    }
    contrasts = compare(sides(tmp_path, "a", "b"), ("mrr@10", "acc@1"))
    assert [c.measure for c in contrasts] == ["mrr@10", "acc@1"]
    with pytest.raises(DataError, match="mkqa/de has none of the measures"):
        compare(sides(tmp_path, "a", "b"), ("mrr@10",))
    with pytest.raises(ConfigError, match="no task has this measure") as error:
        compare(sides(tmp_path, "a", "b"), ("ndcg@100", "mrr@10"))
    assert "acc@1, acc@10, mrr@10, ndcg@10" in str(error.value)


def test_only_chooses_tasks_and_parts(tmp_path):
    for task in ("miracl/sw", "miracl/yo", "scifact", "mira"):
        write_result(tmp_path / "a", task, np.zeros(3))
    assert read_side("a", [tmp_path / "a"], ["miracl"]).tasks == ("miracl/sw", "miracl/yo")
    assert read_side("a", [tmp_path / "a"], ["miracl/yo", "scifact"]).tasks == ("miracl/yo", "scifact")
    with pytest.raises(ConfigError, match="no results of this task") as error:
        read_side("a", [tmp_path / "a"], ["nq"])
    assert "nq" in str(error.value) and "scifact" in str(error.value)


# refusals


def test_other_queries_are_refused_and_some_are_named(tmp_path):
    write_result(tmp_path / "a", "t", np.zeros(3), ids=["q1", "q2", "q3"])
    write_result(tmp_path / "b", "t", np.zeros(3), ids=["q1", "q2", "q9"])
    with pytest.raises(DataError, match="other queries") as error:
        compare(sides(tmp_path, "a", "b"))
    assert "1 missing: q3" in str(error.value) and "q9" in str(error.value) and str(tmp_path / "b") in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("corpus", "c2"), ("depth", 100), ("variant", "hard-negatives"), ("content", "x"), ("split", "dev")],
)
def test_other_data_and_settings_are_refused(tmp_path, key, value):
    write_result(tmp_path / "a", "t", np.zeros(3))
    write_result(tmp_path / "b", "t", np.zeros(3), **{key: value})
    with pytest.raises(DataError, match=f"results differ in {key}") as error:
        compare(sides(tmp_path, "a", "b"))
    assert str(value) in str(error.value)


def test_kinds_of_search_are_not_mixed_but_recalls_may_differ(tmp_path):
    searches = {
        "old": {},
        "exact": {"search": {"kind": "exact"}},
        "flat": {"search": {"kind": "flat", "recall": 1.0, "measured_on": 3}},
        "a": {"search": {"kind": "ivf-pq", "recall": 0.9, "measured_on": 3}},
        "b": {"search": {"kind": "ivf-pq", "recall": 0.8, "measured_on": 3}},
    }
    for name, summary in searches.items():
        write_result(tmp_path / name, "t", np.zeros(3), **summary)
    for same, said in ((("old", "exact"), False), (("a", "b"), True)):
        (contrast,) = compare(sides(tmp_path, *same))
        assert ("its recall at least 80.0%" in verdict(contrast, 0.05)) == said
    for mixed in (("old", "a"), ("exact", "flat"), ("flat", "a")):
        with pytest.raises(DataError, match="results differ in search"):
            compare(sides(tmp_path, *mixed))


def test_other_data_of_another_seed_is_refused(tmp_path):
    for name, corpus in (("a", "c1"), ("b0", "c1"), ("b1", "c2")):
        write_result(tmp_path / name, "t", np.zeros(3), corpus=corpus)
    a, b = read_side("a", [tmp_path / "a"]), read_side("b", [tmp_path / "b0", tmp_path / "b1"])
    with pytest.raises(DataError, match="differ in corpus"):
        compare([a, b])


def test_other_tasks_are_refused(tmp_path):
    write_result(tmp_path / "a", "t", np.zeros(3))
    write_result(tmp_path / "b", "t", np.zeros(3))
    write_result(tmp_path / "b", "u", np.zeros(3))
    with pytest.raises(DataError, match="other tasks than in a") as error:
        compare(sides(tmp_path, "a", "b"))
    assert "alone has u" in str(error.value) and "--only" in str(error.value)
    with pytest.raises(DataError, match="other tasks"):
        read_side("seeds", [tmp_path / "a", tmp_path / "b"])
    assert len(compare(sides(tmp_path, "a", "b", only=["t"]))) == 1


def test_a_measure_that_one_side_lacks_is_refused(tmp_path):
    write_result(tmp_path / "a", "t", {"ndcg@10": np.zeros(3), "mrr@10": np.zeros(3)})
    write_result(tmp_path / "b", "t", {"ndcg@10": np.zeros(3)})
    with pytest.raises(DataError, match="lacks this measure") as error:
        compare(sides(tmp_path, "a", "b"), ("mrr@10",))
    assert "there are ndcg@10" in str(error.value)


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    write_result(tmp_path / "a", "t", np.zeros(3))
    write_result(tmp_path / "b", "t", np.array([0.1, np.nan, 0.2]))
    with pytest.raises(DataError, match="not a number") as error:
        compare(sides(tmp_path, "a", "b"))
    assert "q1" in str(error.value)
