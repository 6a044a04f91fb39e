"""Weights files, ours, the released ones and broken ones."""

import json

import pytest

from tdro.data.weights_file import match_weights, read_weights, released_format
from tdro.errors import ConfigError


def test_plain_and_released_format_give_the_same_weights(tmp_path):
    weights, sizes = {"a": 0.25, "b": 0.75}, {"a": 10, "b": 90}
    (tmp_path / "plain.json").write_text(json.dumps(weights))
    (tmp_path / "released.json").write_text(json.dumps(released_format(weights, sizes)))
    assert read_weights(tmp_path / "plain.json") == read_weights(tmp_path / "released.json") == weights


def test_released_format_has_ids_in_descending_order_and_the_papers_epochs():
    content = released_format({"a": 0.25, "b": 0.75}, {"a": 10, "b": 90})
    assert content["domain_ids"] == {"b": 0, "a": 1}
    assert content["epoch"] == {"b": 0.75 * 100 / 90, "a": 0.25 * 100 / 10}


def test_preset_holds_the_published_weights():
    weights = read_weights("paper-2408.10613")
    assert len(weights) == 25 and sum(weights.values()) == pytest.approx(1, abs=1e-6)
    assert [round(weights[name], 4) for name in ("miracl", "medmcqa", "t2ranking", "AllNLI")] == [
        0.1314, 0.0940, 0.0885, 0.0005
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "holds no weights"),
        ("{}", "holds no weights"),
        ('{"a": "x"}', "not a number"),
        ('{"a": -1}', "not a number"),
        ('{"a": NaN}', "not a number"),
        ('{"a": true}', "not a number"),
        ('{"a": 1' + "0" * 400 + "}", "not a number"),
        ('{"a": 0, "b": 0.0}', "all weights are 0"),
        ('{"domain_weights": {"a": null}}', "not a number"),
    ],
)
def test_broken_files_are_refused(tmp_path, text, what):
    path = tmp_path / "weights.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=what):
        read_weights(path)


def test_missing_file_is_refused_with_the_presets_named(tmp_path):
    with pytest.raises(ConfigError, match=r"paper-2408\.10613"):
        read_weights(tmp_path / "nothing.json")


def test_weight_for_an_unknown_dataset_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'msmarco'"):
        match_weights({"msmarc0": 1.0}, ["nq", "msmarco"], "w.json")


def test_dataset_without_a_weight_gets_none():
    assert match_weights({"nq": 1.0}, ["nq", "msmarco"], "w.json") == {"nq": 1.0, "msmarco": 0.0}
