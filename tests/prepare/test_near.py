"""Near matches: what is verified, what is a template, and how much the buckets miss."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import WORDS

from tdro.prepare.buckets import Buckets
from tdro.prepare.near import NearIndex, character_grams, is_template, signatures
from tdro.prepare.normalise import normalise, units


def found(origin: str, changed: str, similarity: float = 0.8) -> str:
    """How a changed text is found: "near", "template" or not at all ("")."""
    index = NearIndex(normalise([origin]), similarity)
    matches = index.find(normalise([changed]))
    return "" if not len(matches.row_M) else "template" if matches.template_M[0] else "near"


@pytest.mark.parametrize(
    ("origin", "changed", "expected"),
    [
        ("who won the world cup in 2018", "who won teh world cup in 2018", "near"),
        ("who won the world cup in 2018", "who won the worldcup in 2018", "near"),
        ("who won the world cup in 2018", "in 2018 who won the world cup", "near"),
        ("who won the world cup in 2018", "who won world cup in 2018", "near"),
        ("who won the world cup in 2018", "who won the world cup in 2014", "template"),
        ("what are the symptoms of wolman disease", "what are the symptoms of norman disease", "template"),
        ("what are the symptoms of wolman disease", "what are the symptoms of wolmam disease", "near"),
        ("foods with vitamin b", "foods with vitamin d", "template"),
        ("is covid19 airborne in rooms", "is covid 19 airborne in rooms", "near"),
        ("who won the world cup in 2018", "how do bees find their way home", ""),
        ("北京今天的天气怎么样", "北京今天的天气怎样", "near"),
        ("北京今天的天气怎么样", "北京今夭的天气怎么样", "near"),
        ("北京三月的天气怎么样", "北京四月的天气怎么样", "template"),
        ("कितने लोग दिल्ली में रहते हैं", "कितने लोग दिल्लि में रहते हैं", "near"),
        ("ประเทศไทยมีกี่จังหวัด", "ประเทศไทยมีกี่จังหวด", "near"),
    ],
)
def test_small_changes_are_near_and_other_subjects_are_templates(origin, changed, expected):
    assert found(origin, changed) == expected


def test_similarity_is_the_largest_of_the_three_measures():
    index = NearIndex(["alpha beta gamma delta epsilon zeta"], 0.5)
    pairs = [
        "alpha beta gamma delta epsilon",
        "zeta epsilon delta gamma beta alpha",
        "alpha beta gamma delta epsilom zeta",
    ]
    scores = index.compare(pairs, [0, 0, 0]).score_M
    assert scores == pytest.approx([2 * 30 / (30 + 35), 1.0, 2 * 34 / 70], abs=1e-6)


def test_only_what_is_similar_enough_is_a_match():
    index = NearIndex(["alpha beta gamma delta epsilon zeta"], 0.99)
    assert not len(index.compare(["alpha beta gamma delta epsilom zeta"], [0]).row_M)
    assert NearIndex(["zeta alpha"], 1.0).compare(["alpha zeta"], [0]).score_M.tolist() == [1.0]


def test_an_empty_index_and_no_texts_give_no_match():
    assert not len(NearIndex([], 0.8).find(["a"]).row_M)
    assert not len(NearIndex(["a"], 0.8).find([]).row_M)


def test_find_sees_what_comparing_all_pairs_sees():
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(300)]
    near = [" ".join(words) for words in (rng.permutation(text.split()) for text in texts[:150])]
    index = NearIndex(texts, 0.8)
    expected = {
        (i, j) for i in range(len(near)) for j in index.compare(near[i : i + 1] * 300, range(300)).text_M.tolist()
    }
    matches = index.find(near)
    got = set(zip(matches.row_M.tolist(), matches.text_M.tolist(), strict=True))
    assert got <= expected and {(i, i) for i in range(150)} <= got and len(got) > 0.9 * len(expected)


def grams(text: str) -> set[str]:
    """Three characters of a padded text, or two where one of the first two belongs to a script without spaces."""
    padded = f" {text} "
    windows = []
    for i in range(len(padded) - 1):
        short = any("\u3040" <= c <= "\u9fff" for c in padded[i : i + 2])
        windows.append(padded[i : i + (2 if short else 3)])
    return {window for window in windows if len(window) == 3 or any("\u3040" <= c <= "\u9fff" for c in window)}


@given(
    st.lists(st.text("ab c東京", min_size=1).map(lambda t: " ".join(t.split())).filter(bool), min_size=1, max_size=5)
)
def test_grams_are_those_of_each_text_alone(texts):
    gram_G, start_n = character_grams(texts)
    parts = np.split(gram_G, start_n[1:])
    hashes = {text: set(part.tolist()) for text, part in zip(texts, parts, strict=True)}
    for a, b in combinations(hashes, 2):
        assert len(hashes[a] & hashes[b]) == len(grams(a) & grams(b))
    assert all(len(hashes[text]) == len(grams(text)) for text in texts)


def test_signatures_agree_as_often_as_the_sets_of_grams():
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(WORDS[:9], 7)) for _ in range(60)]
    signature_Kn = signatures(texts)
    errors = []
    for i, j in combinations(range(len(texts)), 2):
        a, b = grams(texts[i]), grams(texts[j])
        errors.append((signature_Kn[:, i] == signature_Kn[:, j]).mean() - len(a & b) / len(a | b))
    assert abs(np.mean(errors)) < 0.01 and np.std(errors) < 1.3 * np.sqrt(0.25 / len(signature_Kn))


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=6),
    st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=6),
)
def test_buckets_give_the_pairs_that_share_a_key_once(items, rows):
    key_BT, key_Bn = np.array(items, np.uint64).T, np.array(rows, np.uint64).T
    got = [
        (int(row), int(item))
        for row_p, item_p in Buckets(key_BT).pairs(key_Bn)
        for row, item in zip(row_p, item_p, strict=True)
    ]
    shared = [
        (i, j)
        for i, a in enumerate(rows)
        for j, b in enumerate(items)
        if any(x == y for x, y in zip(a, b, strict=True))
    ]
    assert got == shared


def test_buckets_give_the_same_pairs_in_small_parts(monkeypatch):
    rng = np.random.default_rng(3)
    key_BT, key_Bn = rng.integers(0, 5, (4, 40)).astype(np.uint64), rng.integers(0, 5, (4, 30)).astype(np.uint64)
    whole = [np.concatenate(side) for side in zip(*Buckets(key_BT).pairs(key_Bn), strict=True)]
    monkeypatch.setattr("tdro.prepare.buckets._MOST_PAIRS", 50)
    parts = list(Buckets(key_BT).pairs(key_Bn))
    assert len(parts) > 5
    for all_at_once, side in zip(whole, zip(*parts, strict=True), strict=True):
        assert np.array_equal(all_at_once, np.concatenate(side))


def test_one_side_having_more_words_is_no_template():
    assert not is_template(units("capital of france"), units("what is the capital of france"))
    assert is_template(units("capital of france"), units("capital of spain today"))


def test_short_words_are_typos_only_where_nothing_else_differs():
    assert not is_template(units("what is ards"), units("what is aids"))
    assert is_template(units("what is ards"), units("what is hearing aids"))
    assert not is_template(units("caffeine in an espresso shot"), units("caffeine in a shot of espresso"))
    assert not is_template(units("best mutual fund in india"), units("best mutual funds to buy in india"))
