"""Which texts a row shows."""

from tdro.data.examples import choose, with_instruction
from tdro.data.records import Passage, Row


def row(positives: int, negatives: int) -> Row:
    """A row with numbered passages."""
    return Row(
        "q", "query",
        tuple(Passage(f"p{i}", "", f"positive {i}") for i in range(positives)),
        tuple(Passage(f"n{i}", "", f"negative {i}") for i in range(negatives)),
    )  # fmt: skip


def test_first_passage_is_a_positive_and_the_others_are_different_negatives():
    for visit in range(20):
        example = choose(row(3, 10), 5, 42, "nq", 0, visit)
        assert example.passages[0].startswith("positive")
        assert len(set(example.passages[1:])) == 4
        assert all(text.startswith("negative") for text in example.passages[1:])


def test_positives_that_were_not_chosen_are_named():
    example = choose(row(3, 2), 2, 42, "nq", 0, 0)
    assert {example.passages[0], *example.other_positives} == {"positive 0", "positive 1", "positive 2"}


def test_short_lists_give_what_they_have_and_repeat_nothing():
    example = choose(row(1, 2), 8, 42, "nq", 0, 0)
    assert sorted(example.passages[1:]) == ["negative 0", "negative 1"]
    assert choose(row(1, 0), 8, 42, "nq", 0, 0).passages == ("positive 0",)


def test_the_choice_depends_on_the_key_alone():
    assert choose(row(3, 10), 5, 42, "nq", 7, 0) == choose(row(3, 10), 5, 42, "nq", 7, 0)
    choices = {choose(row(3, 10), 5, *key) for key in [(42, "nq", 7, v) for v in range(10)] + [(43, "nq", 7, 0)]}
    assert len(choices) > 8


def test_every_positive_and_negative_comes_up_about_equally_often():
    counts: dict[str, int] = {}
    for visit in range(2000):
        for text in choose(row(2, 4), 2, 0, "nq", 0, visit).passages:
            counts[text] = counts.get(text, 0) + 1
    assert all(900 < counts[f"positive {i}"] < 1100 for i in range(2))
    assert all(430 < counts[f"negative {i}"] < 570 for i in range(4))


def test_braces_in_texts_are_left_alone():
    assert with_instruction("f{x}", "say {y}", "{instruction}: {query}") == "say {y}: f{x}"
    assert with_instruction("f{x}", "", "{instruction}: {query}") == "f{x}"
