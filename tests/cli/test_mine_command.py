"""`tdro mine FILE`: what it writes, prints and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from studies import write_study_data
from tiny_models import make_tiny_model

from tdro.cli.mine import command
from tdro.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset without negatives, and an encoder."""
    root = tmp_path_factory.mktemp("mine")
    write_study_data(root, negatives=0)
    make_tiny_model("static", root / "model")
    return root


def mined(path: Path) -> list[dict[str, Any]]:
    """The rows that were written."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def options(folder: Path, out: Path, *more: str) -> list[str]:
    """A complete command."""
    given = ["--encoder", str(folder / "model"), "--out", str(out), "--ranks", "0", "9", "--negatives", "4"]
    return [str(folder / "train" / "one.jsonl"), *given, *more]


def test_every_row_gets_negatives_and_the_report_is_printed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mined.jsonl"
    assert command(options(folder, out)) == 0
    assert [len(row["negative_passages"]) for row in mined(out)] == [4] * 24
    printed = capsys.readouterr().out
    for said in ("tevatron, 24 rows, 24 without negatives", "96 negatives for 24 of 24 rows", "positives", "encode"):
        assert said in printed


def test_the_seed_decides_and_margins_are_reported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, more in (("a", ()), ("b", ()), ("c", ("--seed", "7")), ("d", ("--max-score", "-0.9"))):
        assert command(options(folder, tmp_path / f"{name}.jsonl", *more)) == 0
    found = [(tmp_path / f"{name}.jsonl").read_bytes() for name in "abc"]
    assert found[0] == found[1] != found[2]
    printed = capsys.readouterr().out
    assert "candidates refused" in printed and "WARNING" in printed


def test_an_instruction_changes_the_scores_of_the_queries(folder: Path, tmp_path: Path) -> None:
    command(options(folder, tmp_path / "plain.jsonl"))
    command(options(folder, tmp_path / "asked.jsonl", "--instruction", "bee hive"))
    plain, asked = mined(tmp_path / "plain.jsonl"), mined(tmp_path / "asked.jsonl")
    assert plain[0]["negative_passages"][0]["score"] != asked[0]["negative_passages"][0]["score"]


def test_bm25_over_a_corpus_needs_no_encoder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mined.jsonl"
    corpus = ["--corpus", str(folder / "eval" / "words" / "corpus.jsonl")]
    assert command([str(folder / "train" / "one.jsonl"), "--source", "bm25", "--out", str(out), *corpus]) == 0
    passages = [passage for row in mined(out) for passage in row["negative_passages"]]
    assert passages and {passage["model"] for passage in passages} == {"bm25"}
    assert all(passage["docid"].startswith("d") for passage in passages)


def test_rows_that_have_negatives_stay_unless_always(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(options(folder, tmp_path / "once.jsonl"))
    again = options(folder, tmp_path / "twice.jsonl")
    again[0] = str(tmp_path / "once.jsonl")
    capsys.readouterr()
    assert command(again) == 0
    assert "every row has negatives and stays as it is" in capsys.readouterr().out
    assert command([*again, "--when", "always", "--sampling", "top"]) == 0
    assert all([p["rank"] for p in row["negative_passages"]] == [0, 1, 2, 3] for row in mined(tmp_path / "twice.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--encoder", "x"], "dataset comes first"),
        (["FILE", "--encoder", "x"], "nowhere to write"),
        (["FILE", "--encoder", "x", "--out", "FILE"], "would be replaced"),
        (["FILE", "--encoder", "x", "--out", "a.csv"], "cannot write this kind"),
        (["FILE", "--out", "a.jsonl"], "no encoder to rank with"),
        (["FILE", "--encoder", "x", "--out", "a.jsonl", "--when", "never"], "switched off"),
        (["FILE", "--source", "bm25", "--out", "a.jsonl", "--instruction", "x"], "only an encoder reads"),
        (["FILE", "--encoder", "x", "--out", "a.jsonl", "--instruction-template", "{query}"], "template lacks"),
        (
            ["FILE", "--source", "bm25", "--encoder", "x", "--cross-encoder", "y", "--out", "a.jsonl"],
            "cannot both score",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(folder: Path, arguments: list[str], complaint: str) -> None:
    file = str(folder / "train" / "one.jsonl")
    with pytest.raises(ConfigError, match=complaint):
        command([file if argument == "FILE" else argument for argument in arguments])


def test_help_names_both_uses(capsys: pytest.CaptureFixture[str]) -> None:
    assert command([]) == command(["--help"]) == 0
    assert "tdro mine STUDY.yaml" in capsys.readouterr().out
