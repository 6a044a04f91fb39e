"""SimHash against a slow version that follows its definition bit by bit."""

import re
from hashlib import md5

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tdro.prepare.simhash import DISTANCE, SimhashIndex, content


def slow_simhash(text: str) -> int:
    """The definition: bit i is set if more than half of the shingles have it in the last 8 bytes of their MD5."""
    shingles = [text[i : i + 4] for i in range(max(len(text) - 3, 1))]
    values = [int.from_bytes(md5(shingle.encode()).digest()[-8:], "big") for shingle in shingles]
    return sum(1 << bit for bit in range(64) if sum(value >> bit & 1 for value in values) > len(values) / 2)


@settings(max_examples=50)
@given(st.lists(st.text("abcdé東京1", min_size=1, max_size=20), min_size=1, max_size=8))
def test_hashes_are_those_of_the_definition(texts):
    assert SimhashIndex(texts).hashes(texts).tolist() == [slow_simhash(text) for text in texts]


def test_content_is_what_the_paper_s_filter_looks_at():
    assert content("Now here_ü, 東京!") == "nowhereü東京"
    assert content("दिन का") == "".join(re.findall(r"\w+", "दिन का"))
    assert content("?!") == ""


def test_find_sees_every_pair_within_the_distance():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh"), 60)) for _ in range(200)]
    changed = [text[:-1] + "x" for text in texts]
    index = SimhashIndex(texts)
    mine, theirs = [slow_simhash(text) for text in changed], [slow_simhash(text) for text in texts]
    expected = {
        (i, j, (a ^ b).bit_count())
        for i, a in enumerate(mine)
        for j, b in enumerate(theirs)
        if (a ^ b).bit_count() <= DISTANCE
    }
    found = set(zip(*(side.tolist() for side in index.find(changed)), strict=True))
    assert found == expected and {bits for _, _, bits in found} >= {0, 1, 2}
