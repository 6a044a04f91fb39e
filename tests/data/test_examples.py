"""Which texts a row shows."""

from tdro.data.examples import choose, draw_wording, whole, with_instruction


def test_first_passage_is_a_positive_and_the_others_are_different_negatives():
    for visit in range(20):
        places, _ = choose(3, 10, 5, 42, "nq", 0, visit)
        assert places[0] in range(3)
        assert len(set(places[1:])) == 4
        assert set(places[1:]) <= set(range(3, 13))


def test_positives_that_were_not_chosen_are_named():
    places, others = choose(3, 2, 2, 42, "nq", 0, 0)
    assert sorted([places[0], *others]) == [0, 1, 2]


def test_short_lists_give_what_they_have_and_repeat_nothing():
    assert sorted(choose(1, 2, 8, 42, "nq", 0, 0)[0][1:]) == [1, 2]
    assert choose(1, 0, 8, 42, "nq", 0, 0) == ([0], [])


def test_a_positive_alone_can_be_asked_for():
    assert choose(1, 5, 1, 42, "nq", 0, 0) == ([0], [])


def test_the_choice_depends_on_the_key_alone():
    assert choose(3, 10, 5, 42, "nq", 7, 0) == choose(3, 10, 5, 42, "nq", 7, 0)
    choices = {str(choose(3, 10, 5, *key)) for key in [(42, "nq", 7, v) for v in range(10)] + [(43, "nq", 7, 0)]}
    assert len(choices) > 8


def test_the_choice_is_that_of_earlier_versions():
    # Recorded before texts had places: a study begun then goes on with the same passages.
    assert choose(3, 10, 5, 42, "nq", 7, 0) == ([2, 8, 4, 3, 5], [0, 1])


def test_every_positive_and_negative_comes_up_about_equally_often():
    counts = [0] * 6
    for visit in range(2000):
        for place in choose(2, 4, 2, 0, "nq", 0, visit)[0]:
            counts[place] += 1
    assert all(900 < count < 1100 for count in counts[:2])
    assert all(430 < count < 570 for count in counts[2:])


def test_first_passages_are_the_rows_first_ones_and_the_other_side_is_drawn_as_ever():
    for visit in range(20):
        places, others = choose(3, 10, 5, 0, "nq", 0, visit, first_positive=True)
        assert places[0] == 0 and others == [1, 2] and len(set(places[1:])) == 4
        assert choose(3, 10, 5, 0, "nq", 0, visit, first_negatives=True)[0][1:] == [3, 4, 5, 6]
    assert len({choose(3, 10, 5, 0, "nq", 0, v, first_positive=True)[0][1] for v in range(50)}) > 5
    assert len({choose(3, 10, 5, 0, "nq", 0, v, first_negatives=True)[0][0] for v in range(50)}) == 3
    assert choose(1, 2, 5, 0, "nq", 0, 0, first_positive=True, first_negatives=True) == ([0, 1, 2], [])


def test_every_wording_comes_up_in_its_share_and_depends_on_the_key_alone():
    drawn = [draw_wording(3, 0.75, 0, "nq", row, visit) for row in range(40) for visit in range(100)]
    assert drawn[7] == draw_wording(3, 0.75, 0, "nq", 0, 7)
    assert all(900 < drawn.count(wording) < 1100 for wording in range(4))  # 3 wordings and none, a quarter each
    assert {draw_wording(3, 1.0, 0, "nq", 0, visit) for visit in range(200)} == {0, 1, 2}
    assert {draw_wording(3, 0.0, 0, "nq", 0, visit) for visit in range(200)} == {3}


def test_everything_means_positives_then_negatives():
    assert whole(2, 3) == ([0, 1, 2, 3, 4], [])


def test_braces_in_texts_are_left_alone():
    assert with_instruction("f{x}", "say {y}", "{instruction}: {query}") == "say {y}: f{x}"
    assert with_instruction("f{x}", "", "{instruction}: {query}") == "f{x}"
