"""Normalised texts: what counts and what does not, in several scripts; the array code against a plain one."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdro.prepare.normalise import normalise, units

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "BOPOMOFO")


def plainly(text: str) -> str:
    """The same rules, one character after the other, for the scripts of the test's alphabet."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i").replace("\u0131", "i")
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()
    result = words[0] if words else ""
    for word in words[1:]:
        alone = any(unicodedata.name(c, "").startswith(UNSPACED) for c in (result[-1], word[0]))
        result += word if alone else f" {word}"
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  What's  the\tTIME?! ", "what s the time"),
        ("ﬁve ½ \uff26ull", "five 1 2 full"),
        ("Straße", "strasse"),
        ("co\u00adoperate, zero\u200bwidth", "cooperate zerowidth"),
        ("दिन का", "दिन का"),
        ("กี่ โมง", "กี่โมง"),
        ("東京 大学 2020", "東京大学2020"),
        ("python 教程", "python教程"),
        ("한국 사람", "한국 사람"),
        ("?!", ""),
        ("", ""),
        ("a\x00b", "a b"),
        ("now here", "now here"),
        ("İSTANBUL'DA KIŞ", "istanbul da kiş"),
        ("İstanbul'da k\u0131ş", "istanbul da kiş"),
    ],
)
def test_what_counts(text, expected):
    assert normalise([text]) == [expected]


def test_marks_tell_words_apart():
    day, poor = normalise(["दिन", "दीन"])
    assert day != poor


@given(st.lists(st.text("aBßİé ½ﬁ.?\t\x00\u00ad\u200d²東京カタのกี่दिन한_́1"), max_size=6))
def test_many_texts_at_once_are_as_each_alone(texts):
    assert normalise(texts) == [plainly(text) for text in texts]


@given(st.text("aB東 กé.1"))
def test_normalising_again_changes_nothing(text):
    once = normalise([text])
    assert normalise(once) == once


def test_units_are_words_or_characters():
    assert units("who dances") == ["who", "dances"]
    assert units("東京2020 olympics") == ["東", "京", "2020", "olympics"]
    assert units("") == []


def test_any_code_point_can_be_normalised():
    every = [chr(code) for code in np.linspace(1, 0x10FFFF, 3000).astype(int)]
    assert len(normalise(every)) == len(every)
