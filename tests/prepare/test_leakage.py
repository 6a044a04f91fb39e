"""Leaks of every kind in a dataset, what is only reported, and the files and tables that come of it."""

import json

import numpy as np
import pytest

from tdro.data.reading import read_dataset
from tdro.data.records import Passage
from tdro.prepare.evaluation_queries import EvaluationSet
from tdro.prepare.leakage import LeakIndex, find_leaks
from tdro.prepare.leakage_report import examples, reasons, table, without, write_cleaned
from tdro.prepare.planted import plant, self_test
from tdro.prepare.self_duplicates import self_duplicates

CUP = EvaluationSet(
    "cups",
    ("c1", "c2"),
    ("Who won the world cup in 2018?", "how do bees find their way home"),
    ((0,), (1,)),
    (Passage("d0", "Cup", "France won it in Moscow."), Passage("d1", "", "Bees look at the sun.")),
)
TOWNS = EvaluationSet("towns", ("t1",), ("who won the world cup in 2018",), ((),))


@pytest.fixture
def read(tmp_path):
    """Write rows of (query, positives...) and read them as a dataset."""

    def make(*rows: tuple[str, ...], name: str = "train"):
        path = tmp_path / f"{name}.jsonl"
        records = [{"query": query, "pos": list(positives), "neg": []} for query, *positives in rows]
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return read_dataset(name, path, cache=tmp_path / "cache")

    return make


def kinds(rows, sets, level="near", documents=True):
    """What is found: (row, set, query) -> (finding, via)."""
    leaks = find_leaks(rows, LeakIndex(sets, level), documents=documents, threads=1).leaks
    return {(leak.row, leak.place, leak.query): (leak.found, leak.via) for leak in leaks}


def test_each_kind_of_leak_is_found_and_named(read):
    rows = read(
        ("WHO won the World Cup, in 2018", "something"),
        ("who won teh world cup in 2018", "cup france won it in moscow"),
        ("who won the world cup in 2014", "something"),
        ("what is the capital of france", "something"),
        ("bees look at the sun", "How do bees find their way home?"),
        ("?!", "something"),
    )
    assert kinds(rows, [CUP]) == {
        (0, 0, 0): ("exact", "query"),
        (1, 0, 0): ("near", "pair"),
        (2, 0, 0): ("template", "query"),
        (4, 0, 1): ("exact", "reversed"),
    }
    assert kinds(rows, [CUP], "exact", documents=False) == {(0, 0, 0): ("exact", "query")}


def test_queries_of_nothing_but_punctuation_never_match(read):
    nothing = EvaluationSet("odd", ("o1", "o2"), ("?!", "..."), ((), ()))
    for level in ("exact", "near", "simhash-k2"):
        assert kinds(read(("?!", "x"), ("...", "y")), [nothing], level) == {}


def test_a_test_query_in_two_sets_leaks_into_both(read):
    assert set(kinds(read(("who won the world cup in 2018", "x")), [CUP, TOWNS])) == {(0, 0, 0), (0, 1, 0)}


def test_simhash_finds_equal_queries_and_keeps_its_blindness_to_blanks(read):
    rows = read(("whowontheworldcupin2018", "x"), ("who won the w cup in 2018 or so", "y"))
    assert kinds(rows, [CUP], "simhash-k2", documents=False) == {(0, 0, 0): ("simhash-k2", "query")}
    assert kinds(rows, [CUP], "exact", documents=False) == {}


def test_a_shared_corpus_and_test_queries_as_positives_are_counted_apart(read):
    rows = read(
        ("where did france win the final", "Cup France won it in Moscow."),
        ("who is best at football", "who won the world cup in 2018"),
        ("who won the world cup in 2018", "France won it in Moscow."),
    )
    found = find_leaks(rows, LeakIndex([CUP]), documents=True, threads=1)
    assert found.shared_rows == {0: 1} and found.query_passages == {0: 1}
    assert list(found.worst()) == [2]
    (line,) = table([found], [CUP])
    counts = {key: line[key] for key in ("exact", "near", "pair", "shared_documents", "query_passages", "queries")}
    assert counts == {"exact": 1, "near": 0, "pair": 1, "shared_documents": 1, "query_passages": 1, "queries": 1}
    assert line["rate"] == pytest.approx(1 / 3) and line["query_rate"] == 0.5


def test_the_pair_comparison_does_not_depend_on_the_buckets(read, monkeypatch):
    """A row with a relevant positive is compared with its test query even if no bucket is shared."""
    monkeypatch.setattr("tdro.prepare.buckets.Buckets.pairs", lambda self, keys: iter(()))
    rows = read(
        ("who won teh world cup in 2018", "Cup France won it in Moscow."), ("who won teh world cup in 2018", "x")
    )
    assert kinds(rows, [CUP]) == {(0, 0, 0): ("near", "pair")}


def test_parts_and_threads_do_not_change_what_is_found(read, monkeypatch):
    queries = ["who won the world cup in 2018", "how do bees find thier way home", "quite another thing"]
    rows = read(*((f"{queries[i % 3]}{'?' * (i % 2)}", f"text {i}") for i in range(40)))
    whole = find_leaks(rows, LeakIndex([CUP]), threads=1)
    monkeypatch.setattr("tdro.prepare.leakage._ROWS", 7)
    monkeypatch.setattr("tdro.prepare.leakage._DOCUMENT_ROWS", 3)
    ticks = []
    parts = find_leaks(
        rows, LeakIndex([CUP]), documents=True, threads=3, progress=lambda *numbers: ticks.append(numbers)
    )
    assert parts.leaks == whole.leaks and len(whole.worst()) == 27 and ticks[-1] == (40, 40)


def test_a_selection_is_numbered_by_its_own_rows(read):
    rows = read(("a b c", "x"), ("how do bees find their way home", "Bees look at the sun."), ("d e f", "y"))
    chosen = rows.select(np.array([2, 1]))
    assert kinds(chosen, [CUP]) == {(1, 0, 1): ("exact", "pair")}


def test_of_templates_the_best_of_a_row_and_set_is_kept(read):
    years = EvaluationSet(
        "years", ("1", "2"), ("who won the world cup in 2014", "who won the world cups in 2010"), ((), ())
    )
    assert kinds(read(("who won the world cup in 2018", "x")), [years]) == {(0, 0, 0): ("template", "query")}


def test_cleaned_and_removed_files_hold_all_rows(read, tmp_path):
    rows = read(("who won the world cup in 2018", "x"), ("what is rust", "y"), ("who won teh world cup in 2018", "z"))
    found = find_leaks(rows, LeakIndex([CUP]), threads=1)
    gone = reasons(found, rows, [CUP])
    write_cleaned(rows, gone, tmp_path / "kept.jsonl", tmp_path / "gone.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    removed = [json.loads(line) for line in (tmp_path / "gone.jsonl").read_text().splitlines()]
    assert [row["query"] for row in kept] == ["what is rust"] == [row.query for row in without(rows, gone)]
    assert [row["removed"]["level"] for row in removed] == ["exact", "near"]
    assert removed[0]["removed"] == {
        "reason": "leak", "level": "exact", "score": 1.0, "via": "query", "test": "cups", "test_query_id": "c1",
        "test_query": "Who won the world cup in 2018?",
    }  # fmt: skip
    again = read_dataset("again", tmp_path / "gone.jsonl", cache=tmp_path / "cache")
    assert list(again) == [rows[0], rows[2]]
    assert [e["level"] for e in examples(found, rows, [CUP])] == ["exact", "near"]


def test_duplicates_inside_and_across_datasets(read):
    one = read(
        ("what is rust", "iron", "decay"), ("What is rust?", "decay", "Iron"), ("what is rust", "a game"), name="one"
    )
    two = read(("what is rust", "iron", "decay"), ("what is moss", "green"), ("?!", "..."), ("?!", "..."), name="two")
    found = self_duplicates({"one": one, "two": two})
    assert found.rows == {"one": {1: ("one", 0)}, "two": {0: ("one", 0)}}
    assert found.counts() == {"one": {"one": 1}, "two": {"one": 1}}
    assert found.repeated_queries == {"one": 2, "two": 1}


QUERIES = [
    "who won the football world cup in moscow",
    "how do bees find their way back home",
    "what makes bread dough rise overnight",
    "why does iron rust faster near the sea",
    "which birds stay in the north in winter",
    "how is glass made from river sand",
    "when was the clock tower of the town built",
    "what pulls the tide towards the moon",
    "北京今天的天气怎么样呢",
    "東京で一番高い塔は何ですか",
]


def test_planted_leaks_are_found_and_salads_are_not():
    sets = [EvaluationSet("many", tuple(map(str, range(len(QUERIES)))), tuple(QUERIES), ((),) * len(QUERIES))]
    result = self_test(LeakIndex(sets), seed=1, unrelated=300)
    assert {kind: recall.planted for kind, recall in result.recall.items()} == dict.fromkeys(result.recall, 10)
    assert all(recall.share >= 0.9 for recall in result.recall.values())
    assert (result.unrelated, result.false_hits) == (300, 0)
    exact = self_test(LeakIndex(sets, "exact"), seed=1, unrelated=50)
    assert exact.recall["case"].share == 1 and exact.recall["typo"].found == 0 and exact.recall["drop"].found == 0


@pytest.mark.parametrize("kind", ["case", "typo", "swap", "drop"])
def test_planting_is_a_function_of_the_generator_and_changes_what_it_says(kind):
    for text in QUERIES:
        changed = plant(text, kind, np.random.default_rng(4))
        assert changed == plant(text, kind, np.random.default_rng(4)) != text
        if kind == "swap":
            assert sorted(changed) == sorted(text)
        if kind == "typo":
            assert abs(len(changed) - len(text)) <= 1
        if kind == "drop":
            assert len(changed) < len(text)
    assert plant("!", "typo", np.random.default_rng(4)) == "!"
    assert plant("", "swap", np.random.default_rng(4)) == plant("", "drop", np.random.default_rng(4)) == ""
