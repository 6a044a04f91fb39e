"""Packing: every text once, within the budget, similar lengths together."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdro.errors import ConfigError
from tdro.models.packing import pack


def groups(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Pack and return plain lists."""
    return [group.tolist() for group in pack(np.array(lengths, dtype=np.int64), max_tokens)]


def test_a_group_grows_while_its_padded_size_fits() -> None:
    # sorted lengths 2 2 3 5 9: 3 texts of 3 tokens are 9 <= 12, a fourth of 5 would make 20
    assert groups([5, 2, 9, 3, 2], 12) == [[1, 4, 3], [0], [2]]


def test_a_text_longer_than_the_budget_runs_alone() -> None:
    assert groups([3, 50, 3, 60], 6) == [[0, 2], [1], [3]]


def test_equal_lengths_keep_the_order_of_the_texts() -> None:
    assert groups([4, 4, 4, 4], 8) == [[0, 1], [2, 3]]


def test_a_text_without_tokens_counts_as_one() -> None:
    assert groups([0, 0, 0], 2) == [[0, 1], [2]]


def test_no_texts_make_no_groups() -> None:
    assert groups([], 10) == []


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one token"):
        pack(np.array([1]), 0)


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 100))
def test_groups_are_a_sorted_partition_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    packed = groups(lengths, max_tokens)
    order = [index for group in packed for index in group]
    assert order == sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= max_tokens for group in packed)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=60), st.integers(1, 100))
def test_no_group_had_room_for_the_next_text(lengths: list[int], max_tokens: int) -> None:
    packed = groups(lengths, max_tokens)
    for group, following in pairwise(packed):
        assert (len(group) + 1) * lengths[following[0]] > max_tokens
