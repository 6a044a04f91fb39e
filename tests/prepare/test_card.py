"""The data card says what the check found, and its tables survive any text."""

import json
from pathlib import Path

import pytest

from tdro.config import Study
from tdro.prepare.card import card_of, languages_in_words
from tdro.prepare.check import CheckResult, check

NASTY = "a | b <script>alert(1)</script> # c *d* [e](f)\n\nnew \\ line"


@pytest.fixture
def result(tmp_path: Path) -> CheckResult:
    """A study of two datasets that share rows; one has a license and an instruction."""
    for name, numbers in (("bees", range(12)), ("nq", range(8, 12))):
        rows = [{"query": f"{NASTY} {i}", "pos": [f"Bee {i} dances."], "neg": [f"Tree {i} stands."]} for i in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bees = {"path": "bees.jsonl", "license": "CC0 | public", "instruction": "Find the bee"}
    data = {"root": str(tmp_path), "datasets": {"bees": bees, "nq": "nq.jsonl"}}
    return check(Study.model_validate({"name": "hive", "data": data, "model": {"base": "none"}}), processes=1)


def test_it_has_every_part_and_its_numbers(result):
    card = card_of(result)
    parts = ["Sources", "Sizes", "Languages", "Lengths", "Instructions", "Overlap", "Findings", "Sample rows"]
    assert [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")] == parts
    assert "2 datasets, 16 rows with 16 positives and 16 negatives" in card
    assert "| bees | 12 | 12 | 1.00 | 1.00 (1 to 1) | 75.0 % |" in card
    assert "| bees | nq | 4 | 4 | 8 |" in card
    assert "| bees | Find the bee |" in card and "| nq | none (known for it: For a question about the world" in card
    assert f"`{result.datasets[0].content}`" in card and "CC0 \\| public" in card and "not given" in card
    assert "| warning | nq | query and positives are also in another dataset | 4 |" in card
    assert card.rstrip().endswith(f"Written by `tdro check` {result.version} on {result.date}.")


def test_texts_break_neither_tables_nor_lines(result):
    card = card_of(result)
    assert "<script" not in card
    for line in card.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    assert card.count("  - positive: Bee") == 6
    tables = [block.splitlines() for block in card.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_the_content_is_that_of_the_bytes(result, tmp_path):
    again = {report.name: report.content for report in result.datasets}
    file = tmp_path / "nq.jsonl"
    file.write_bytes(file.read_bytes().replace(b"Bee 9", b"Bea 9"))
    data = {"root": str(tmp_path), "datasets": {"bees": "bees.jsonl", "nq": "nq.jsonl"}}
    changed = check(Study.model_validate({"name": "hive", "data": data, "model": {"base": "none"}}), processes=1)
    assert {report.name: report.content != again[report.name] for report in changed.datasets} == {
        "bees": False,
        "nq": True,
    }


def test_few_languages_are_named():
    assert languages_in_words({"en": 0.5, "de": 0.25, "fr": 0.125, "?": 0.125}, 2) == "en 50 %, de 25 %"
