"""`tdro dedup`: files and studies in, a table and cleaned files out."""

import json

import numpy as np
import pytest
import torch
from studies import tiny_study
from tiny_models import make_tiny_model

from tdro.cli.dedup import command
from tdro.errors import ConfigError, DataError
from tdro.models.encoder import load_encoder
from tdro.models.sides import side_of
from tdro.study_file import save_study


@pytest.fixture
def data(tmp_path):
    """Two datasets and a file of test queries; two rows of `one` leak, one of `two` repeats a row of `one`."""
    sets = {
        "one": ["who won the world cup", "who won teh world cup", "what is rust", "why is the sky blue at noon"],
        "two": ["what is rust", "how is bread made at home", "why is the sky blue at dawn"],
    }
    for name, queries in sets.items():
        rows = [{"query": query, "positive_passages": [{"docid": "d", "text": f"about {query}"}]} for query in queries]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.txt").write_text("Who won the World Cup?\nhow deep is the sea at night\n")
    return tmp_path


def queries(path):
    """The queries of a file that was written."""
    return [json.loads(line)["query"] for line in path.read_text().splitlines()]


def test_leaks_are_shown_left_out_and_kept_apart(data, capsys):
    out = data / "clean"
    arguments = [str(data / "one.jsonl"), str(data / "two.jsonl"), "--against", str(data / "test.txt")]
    assert command([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "2 of 7 rows leak into 1 evaluation sets" in printed and "2 rows left out" in printed
    assert "self-test, recall of 2 planted leaks" in printed and "'who won teh world cup'" in printed
    assert queries(out / "one.jsonl") == ["what is rust", "why is the sky blue at noon"]
    assert queries(out / "removed" / "one.jsonl") == ["who won the world cup", "who won teh world cup"]
    assert queries(out / "two.jsonl") == queries(data / "two.jsonl") and queries(out / "removed" / "two.jsonl") == []
    report = json.loads((out / "leakage.json").read_text())
    assert report["removed"] == {"one": 2, "two": 0} and report["self_test"]["false_hits"] == 0
    (line,) = report["table"]
    assert (line["train"], line["test"], line["exact"], line["near"], line["queries"]) == ("one", "test", 1, 1, 1)


def test_without_out_it_is_a_check(data, capsys):
    arguments = ["--against", str(data / "test.txt")]
    assert command([str(data / "one.jsonl"), *arguments]) == 1
    assert command([str(data / "two.jsonl"), *arguments]) == 0
    assert "0 of 3 rows leak" in capsys.readouterr().out
    assert sorted(path.name for path in data.iterdir()) == ["one.jsonl", "test.txt", "two.jsonl"]


def test_duplicates_are_reported_and_left_out_only_when_asked(data, capsys):
    arguments = [str(data / "one.jsonl"), str(data / "two.jsonl"), "--against", str(data / "test.txt"), "--self"]
    assert command([*arguments, "--out", str(data / "a")]) == 0
    assert "self: 1 rows of two stand earlier in one" in capsys.readouterr().out
    assert len(queries(data / "a" / "two.jsonl")) == 3
    assert command([*arguments, "--remove-self", "--out", str(data / "b")]) == 0
    assert queries(data / "b" / "removed" / "two.jsonl") == ["what is rust"]
    record = json.loads((data / "b" / "removed" / "two.jsonl").read_text())
    assert record["removed"] == {"reason": "duplicate", "first": "one", "first_row": 2}


def test_a_study_brings_its_datasets_and_tasks(tmp_path, capsys):
    study = tiny_study(tmp_path, "static")
    (tmp_path / "study.yaml").write_text(save_study(study))
    (tmp_path / "root" / "eval" / "words" / "queries.jsonl").write_text('{"_id": "q0", "text": "no such words here"}\n')
    assert command([str(tmp_path / "study.yaml")]) == 0
    assert "0 of 124 rows leak into 1 evaluation sets" in capsys.readouterr().out


def test_an_encoder_finds_other_words_and_only_reports_them(data, capsys, monkeypatch):
    class Encoder:
        """Puts everything about the sky, and the second test query, at one place."""

        def __getitem__(self, place):
            return self

        def encode(self, texts, **options):
            return np.array([[1.0, 0.0] if "sky" in text or "sea" in text else [0.0, 1.0] for text in texts])

    monkeypatch.setattr("tdro.models.encoder.load_encoder", lambda name: Encoder())
    arguments = [str(data / "two.jsonl"), "--against", str(data / "test.txt"), "--semantic", "any"]
    assert command([*arguments, "--out", str(data / "a")]) == 0
    assert "semantic 1.00  two:2" in capsys.readouterr().out
    assert len(queries(data / "a" / "two.jsonl")) == 3
    found = json.loads((data / "a" / "leakage.json").read_text())["semantic"]
    assert {item["row"] for item in found} == {0, 1, 2}


def test_of_separate_encoders_the_one_of_queries_looks(data, monkeypatch):
    base = make_tiny_model("static", data / "base")
    model = load_encoder(str(base), query_encoder="copy")
    with torch.no_grad():
        for weight in side_of(model, "queries").parameters():
            weight.copy_(weight[:1].clone())  # to this side all texts are the same
    monkeypatch.setattr("tdro.models.encoder.load_encoder", lambda name: model)
    arguments = [str(data / "two.jsonl"), "--against", str(data / "test.txt"), "--semantic", "any"]
    assert command([*arguments, "--out", str(data / "a")]) == 0
    found = json.loads((data / "a" / "leakage.json").read_text())["semantic"]
    assert {item["row"] for item in found} == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["one.jsonl"], "nothing to compare with"),
        (["one.jsonl", "--against", "test.txt", "--similarity", "1.5"], "above 0 and at most 1"),
        (["one.jsonl", "--against", "test.txt", "--remove-self"], "nothing would be removed"),
        (["one.jsonl", "study.yaml", "--against", "test.txt"], "a study comes alone"),
        (["one.jsonl", "--against", "test.txt", "--out", "."], "folder of their own"),
        (["one.jsonl", "one.jsonl", "--against", "test.txt"], "the same name"),
    ],
)
def test_what_cannot_be_is_refused(data, monkeypatch, arguments, expected):
    monkeypatch.chdir(data)
    with pytest.raises(ConfigError, match=expected):
        command(arguments)


def test_missing_files_are_data_errors(data):
    with pytest.raises(DataError, match="no such file"):
        command([str(data / "one.jsonl"), "--against", str(data / "tset.txt")])


def test_help_explains_the_verb_and_its_options(capsys):
    assert command([]) == 0 and "usage: tdro dedup TRAIN" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        command(["x.jsonl", "--help"])
    assert end.value.code == 0 and "--similarity" in capsys.readouterr().out
