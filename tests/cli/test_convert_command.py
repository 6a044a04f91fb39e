"""`tdro convert` as it is typed."""

import json

import pytest

from tdro.cli.main import main

FLAG = {"query": "q", "pos": ["p"], "neg": ["n"], "neg_scores": [0.5], "prompt": "find", "type": "normal"}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "nq.jsonl"
    path.write_text("\n".join(map(json.dumps, [FLAG, FLAG | {"neg": [], "neg_scores": None}])), encoding="utf-8")
    return path


def test_layout_rows_and_losses_are_printed(source, tmp_path, capsys):
    out = tmp_path / "nq.csv"
    assert main(["convert", str(source), "--to", "csv", "--out", str(out), "--negatives", "0"]) == 0
    printed = capsys.readouterr().out
    assert f"{source}: flagembedding" in printed
    assert f"2 rows -> 2 records in {out}" in printed
    assert "1 negatives" in printed
    assert "2 prompts" in printed
    assert "columns that were not read: type" in printed
    assert "query ids" not in printed
    assert out.read_text() == "anchor,positive\nq,p\nq,p\n"


def test_ids_that_are_made_start_with_the_name(source, tmp_path):
    out = tmp_path / "out.jsonl"
    assert main(["convert", str(source), "--to", "tevatron", "--out", str(out)]) == 0
    assert json.loads(out.read_text().splitlines()[1])["query_id"] == "nq-2"
    assert main(["convert", str(source), "--to", "tevatron", "--out", str(out), "--name", "x", "--max-rows", "1"]) == 0
    assert json.loads(out.read_text())["query_id"].startswith("x-")


def test_bad_rows_are_listed_when_left_out(source, tmp_path, capsys):
    source.write_text(json.dumps(FLAG) + "\n{}\n")
    command = ["convert", str(source), "--to", "tevatron", "--out", str(tmp_path / "b.jsonl")]
    assert main(command) == 2
    assert f"{source}:2" in capsys.readouterr().err
    assert main([*command, "--skip-bad"]) == 0
    printed = capsys.readouterr().out
    assert "1 bad rows were left out:" in printed
    assert f"{source}:2" in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.jsonl", "--to", "csv", "--out", "b.jsonl"],
        ["a.jsonl", "--to", "csv", "--out", "b.csv", "--negatives", "-1"],
        ["--to", "csv", "--out", "b.csv"],
        ["none.jsonl", "--to", "csv", "--out", "b.csv"],
    ],
)
def test_mistakes_end_with_code_two(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == 2
    assert "error:" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_read_of_a_beir_folder_is_said(source, tmp_path, capsys):
    assert main(["convert", str(source), "--to", "beir", "--out", str(tmp_path / "new")]) == 0
    assert "BEIR" not in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "new"), "--to", "tevatron", "--out", str(tmp_path / "b.jsonl")]) == 0
    assert "judged documents are read, others not" in capsys.readouterr().out


def test_help_names_every_layout(capsys):
    assert main(["convert", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"--to {layout}" in printed for layout in ("tevatron", "flagembedding", "beir", "csv", "tsv"))
