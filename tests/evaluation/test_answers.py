"""Tokens and matches as DPR has them, compared with a slow reading of the definition; and the tokens kept on disk."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdro.errors import EnvironmentProblem
from tdro.evaluation import answers
from tdro.evaluation.answers import answer_tokens, first_hits, tokenize, tokenize_documents
from tdro.retrieval.arrays import content_of


class Documents:
    """Documents in a list; notes which slices are read, and cannot read beyond `readable`."""

    def __init__(self, texts: Sequence[str], readable: int | None = None) -> None:
        self.content = content_of(texts)
        self.read: list[tuple[int, int]] = []
        self._texts, self._readable = texts, len(texts) if readable is None else readable

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, part: slice) -> Sequence[str]:
        if part.stop > self._readable:
            raise KeyboardInterrupt
        self.read.append((part.start, part.stop))
        return self._texts[part]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three documents in a block."""
    monkeypatch.setattr(answers, "_BLOCK", 3)


def slow_tokens(text: str) -> list[str]:
    """Read a text character by character."""
    tokens, in_word = [], False
    for character in unicodedata.normalize("NFD", text):
        kind = unicodedata.category(character)[0]
        if kind in "LNM" and in_word:
            tokens[-1] += character
        elif kind not in "ZC":
            tokens.append(character)
        in_word = kind in "LNM"
    return [token.lower() for token in tokens]


def slow_first(texts: Sequence[str], wanted: Sequence[str]) -> int:
    """Compare every answer with every place of every text; -1 where there is none. Empty answers are no answers."""
    for rank, tokens in enumerate(map(slow_tokens, texts)):
        for answer in filter(None, map(slow_tokens, wanted)):
            if any(tokens[i : i + len(answer)] == answer for i in range(len(tokens))):
                return rank
    return -1


def all_first(texts: Sequence[str], wanted: Sequence[Sequence[str]], orders: Sequence[Sequence[int]]) -> list[int]:
    """Find the first text with one of each list of answers by the code under test."""
    with TemporaryDirectory() as cache:
        tokens = tokenize_documents(Documents(texts), Path(cache))
        indices_QK = np.array(orders)
        return first_hits(indices_QK, [answer_tokens(some) for some in wanted], tokens).tolist()


def first(texts: Sequence[str], wanted: Sequence[str], order: Sequence[int] | None = None) -> int:
    """Find the first text with one of the answers."""
    return all_first(texts, [wanted], [range(len(texts)) if order is None else order])[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3,000.5 km", ["3", ",", "000", ".", "5", "km"]),
        ("U.S.A.", ["u", ".", "s", ".", "a", "."]),
        ("don't—stop", ["don", "'", "t", "—", "stop"]),
        ("東京都は", ["東京都は"]),
        ("東京、大阪", ["東京", "、", "大阪"]),
        ("หกสิบ ๖๐", ["หกสิบ", "๖๐"]),
        ("a\u200bb a\u00a0b\nb", ["a", "b", "a", "b", "b"]),
        ("ΟΔΟΣ.Δ", ["οδος", ".", "δ"]),
        ("10½ m²", ["10½", "m²"]),
        ("\u200b \t", []),
    ],
)
def test_tokens_are_runs_of_letters_digits_and_marks_or_single_visible_characters(text, expected):
    assert tokenize(text) == expected


@pytest.mark.parametrize(
    ("text", "answer", "is_hit"),
    [
        ("by Zoe\u0308 in Sa\u0303o Paulo", "ZOË", True),
        ("by Zoë", "zoe", False),
        ("some 1,000 bees", "1,000", True),
        ("some 1,000 bees", "1000", False),
        ("some 1,000 bees", "000", True),
        ("some 11,000 bees", "1,000", False),
        ("in 東京 today", "東京", True),
        ("in 東京都 today", "東京", False),
        ("the New-York times", "New York", False),
        ("the New  York times", "new\nyork", True),
        ("a a a b", "a a b", True),
        ("bees", "bee", False),
        ("", "bee", False),
    ],
)
def test_an_answer_matches_whole_tokens_one_after_another(text, answer, is_hit):
    assert (first([text], [answer]) == 0) is is_hit


def test_an_empty_answer_is_never_a_hit():
    assert first(["", "bees", "\u200b"], ["", "  ", "\u200b"]) == -1


def test_an_answer_does_not_match_across_two_documents():
    assert first(["the new", "york times", "", "times"], ["new york", "times times"]) == -1
    assert first(["the new", "york times", "new york"], ["new york"]) == 2


def test_an_answer_longer_than_the_last_document_is_no_hit():
    assert first(["a", "new york"], ["york times", "new york city", "york york york"]) == -1


def test_ranks_are_those_of_the_ranking_and_gaps_keep_their_place():
    texts = ["x", "y bees", "z bees"]
    assert first(texts, ["bees"], [0, 2, 1]) == 1
    assert first(texts, ["bees"], [-1, 0, -1, 2]) == 3
    assert first(texts, ["bees"], [-1, -1]) == -1


TEXT = st.text(st.sampled_from("abeAB1é2,. -\n中文Σς\u0301\u00a0\u200dİ😀"), max_size=14)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(TEXT, min_size=1, max_size=8),
    wanted=st.lists(st.lists(TEXT, max_size=4), min_size=1, max_size=6),
    data=st.data(),
)
def test_matching_equals_the_slow_definition(texts, wanted, data):
    orders = [data.draw(st.permutations(range(len(texts)))) for _ in wanted]
    expected = [slow_first([texts[i] for i in order], some) for order, some in zip(orders, wanted, strict=True)]
    assert all_first(texts, wanted, orders) == expected
    assert list(map(tokenize, texts)) == list(map(slow_tokens, texts))


PHRASE = st.lists(st.sampled_from("ab,"), max_size=9).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(PHRASE, min_size=1, max_size=6),
    wanted=st.lists(st.lists(PHRASE, max_size=3), min_size=1, max_size=8),
)
def test_matching_equals_the_slow_definition_where_tokens_repeat(texts, wanted):
    expected = [slow_first(texts, some) for some in wanted]
    assert all_first(texts, wanted, [range(len(texts))] * len(wanted)) == expected


TEXTS = ["bees dance", "", "Trees grow", "bees", "grow, trees!", "honey", "wax"]


def test_documents_are_tokenised_once(tmp_path):
    made = tokenize_documents(Documents(TEXTS), tmp_path)
    again = Documents(TEXTS)
    kept = tokenize_documents(again, tmp_path)
    assert again.read == []
    numbers = np.array([4, 0, 1, 6, 4])
    for one, other in zip(made.take(numbers), kept.take(numbers), strict=True):
        assert np.array_equal(one, other)
    assert len(kept) == 7 and kept.content == made.content
    assert made.take(numbers)[1].tolist() == [5, 8, 9, 11, 16]


def test_other_documents_have_other_tokens(tmp_path):
    tokenize_documents(Documents(TEXTS), tmp_path)
    other = [*TEXTS[:-1], "bees"]
    found = tokenize_documents(Documents(other), tmp_path)
    assert first_hits(np.array([[5, 6]]), [answer_tokens(["bees"])], found).tolist() == [1]


def test_a_run_that_was_ended_goes_on_where_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tokenize_documents(Documents(TEXTS, readable=6), tmp_path)
    rest, told = Documents(TEXTS), []
    found = tokenize_documents(rest, tmp_path, lambda done, of: told.append((done, of)))
    assert rest.read == [(6, 7)] and told == [(7, 7)]
    assert (
        found.take(np.arange(7))[0].tolist()
        == tokenize_documents(Documents(TEXTS), tmp_path / "other").take(np.arange(7))[0].tolist()
    )


@pytest.mark.parametrize("damage", ["cut", "empty", "lengths", "text"])
def test_a_damaged_block_is_made_again(tmp_path, damage):
    expected = tokenize_documents(Documents(TEXTS), tmp_path).take(np.arange(7))[0].tolist()
    file = sorted(tmp_path.glob("words/*/*.npy"))[1]
    content = file.read_bytes()
    changed = {
        "cut": content[:-8],
        "empty": b"",
        "lengths": content[:128] + b"\xff" * 8 + content[136:],
        "text": b"no such file",
    }
    file.write_bytes(changed[damage])
    again = Documents(TEXTS)
    assert tokenize_documents(again, tmp_path).take(np.arange(7))[0].tolist() == expected
    assert again.read == [(3, 6)]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "words").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="tokens cannot be kept"):
        tokenize_documents(Documents(TEXTS), tmp_path)
