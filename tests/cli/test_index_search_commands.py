"""`tdro index` and `tdro search`: what they write, print and refuse."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import SENTENCES, make_tiny_model

from tdro.cli import index, search
from tdro.cli.main import main
from tdro.cli.search import snippet
from tdro.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, a model and an index."""
    root = tmp_path_factory.mktemp("made")
    make_tiny_model("static", root / "model")
    rows = [{"_id": f"d{i}", "title": f"Title {i}", "text": text} for i, text in enumerate(SENTENCES)]
    (root / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert index.command(options(root, "index")) == 0
    return root


def options(root: Path, out: str, *more: str) -> list[str]:
    """A complete command."""
    return [str(root / "corpus.jsonl"), "--encoder", str(root / "model"), "--out", str(root / out), *more]


class Terminal(io.StringIO):
    """Standard input at which a person sits."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def test_index_says_what_it_made_and_search_prints_rank_score_title_snippet_and_id(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", *options(made, "index")]) == 0
    printed = capsys.readouterr().out
    assert "8 passages ->" in printed and "(32 dimensions, float16)" in printed and "tdro search" in printed
    assert main(["search", str(made / "index"), "bread rises", "iron rusts", "--k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "bread rises" and lines[6] == "iron rusts"
    assert lines[1].startswith("  1   ") and lines[1].endswith("Title 2  [d2]")
    assert lines[2] == f"     {SENTENCES[2]}"
    assert lines[3].startswith("  2   ") and lines[7].endswith("Title 6  [d6]")
    assert float(lines[1].split()[1]) >= float(lines[3].split()[1])


def test_json_has_a_line_per_query_with_whole_texts(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "queries.txt").write_text("bread\n\n  iron \n", encoding="utf-8")
    asked = [str(made / "index"), "b\u00e9e", "--file", str(tmp_path / "queries.txt"), "--k", "3", "--json"]
    assert search.command(asked) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["query"] for one in found] == ["b\u00e9e", "bread", "iron"]
    for one in found:
        assert [hit["rank"] for hit in one["hits"]] == [1, 2, 3]
        assert all(hit["text"] == SENTENCES[int(hit["id"][1:])] for hit in one["hits"])
        assert set(one["hits"][0]) == {"rank", "id", "score", "title", "text"}


def test_recall_of_an_approximate_search_stands_beside_its_results(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    asked = [str(made / "index"), "bread rises", "iron rusts", "--k", "3"]
    printed = {}
    for kind in ("exact", "flat"):
        assert search.command([*asked, "--search", kind]) == 0
        printed[kind] = capsys.readouterr().out.splitlines()
    note = "approximate search: finds 100.0 % of the exact top 3 (measured on 2 queries)"
    assert [line for line in printed["flat"] if line != note] == printed["exact"]
    assert printed["flat"].count(note) == 2 and printed["flat"][1] == note
    assert search.command([*asked, "--search", "flat", "--json"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert json.loads(line)["search"] == {"kind": "flat", "recall": 1.0, "measured_on": 2}
    assert main(["search", *asked, "--search", "ivf-pq"]) == 2
    assert "needs at least 256 passages" in capsys.readouterr().err


def test_a_person_is_asked_until_an_empty_line_or_the_end(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for typed in ("bread\niron\n\nclock\n", "bread\niron"):
        monkeypatch.setattr(sys, "stdin", Terminal(typed))
        assert search.command([str(made / "index"), "--k", "1"]) == 0
        printed = capsys.readouterr().out
        assert printed.count("query>") == 3
        assert "[d2]" in printed and "[d6]" in printed and "[d5]" not in printed
    monkeypatch.setattr(sys, "stdin", io.StringIO("bread\n"))
    with pytest.raises(ConfigError, match="no query is given"):
        search.command([str(made / "index")])


def test_the_options_of_index_reach_the_index(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [
        "--precision",
        "float32",
        "--instruction",
        "find the river",
        "--instruction-template",
        "{instruction} {query}",
    ]
    lengths = ["--query-max-length", "9", "--passage-max-length", "4", "--max-tokens", "64"]
    assert index.command(options(made, "all", *more, *lengths)) == 0
    settings = json.loads((made / "all" / "index.json").read_bytes())["settings"]
    assert settings == {
        "instruction": "find the river",
        "instruction_template": "{instruction} {query}",
        "query_max_length": 9,
        "passage_max_length": 4,
        "precision": "float32",
    }
    capsys.readouterr()
    found = []
    for folder, query in (("all", "bread"), ("index", "find the river bread")):
        search.command([str(made / folder), query, "--json", "--device", "cpu"])
        found.append(json.loads(capsys.readouterr().out)["hits"][0]["score"])
    assert found[0] != found[1]  # passages were cut at 4 tokens


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--encoder", "x"], "corpus comes first"),
        (["c.jsonl", "--encoder", "x"], "--out is missing"),
        (["c.jsonl", "--out", "x"], "--encoder is missing"),
        (["c.jsonl", "--out", "x", "--encoder", "y", "--max-tokens", "0"], "forward pass needs tokens"),
        (
            ["c.jsonl", "--out", "x", "--encoder", "y", "--instruction", "z", "--instruction-template", "{query}"],
            "template lacks {instruction}",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(arguments: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        index.command(arguments)


def test_search_refuses_bad_questions(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="k must be at least 1"):
        search.command([str(made / "index"), "bread", "--k", "0"])
    with pytest.raises(DataError, match="queries cannot be read"):
        search.command([str(made / "index"), "--file", str(tmp_path / "none.txt")])
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match="file has no query"):
        search.command([str(made / "index"), "--file", str(tmp_path / "blank.txt")])
    assert main(["search", str(tmp_path), "bread"]) == 2
    assert "there is no index in this folder" in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (index, search):
        assert verb.command([]) == verb.command(["--help"]) == 0
        assert "examples:" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_make_the_index_that_one_makes(made: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"_id": f"d{i}", "text": f"{SENTENCES[i % 8]} {i}"} for i in range(8192 + 50)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29641"]
    printed = []
    for out, launcher in (("one", [sys.executable]), ("two", torchrun)):
        asked = ["-m", "tdro", "index", str(corpus), "--encoder", str(made / "model"), "--out", str(tmp_path / out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*launcher, *asked], env=environment, capture_output=True, text=True, check=True)
        printed.append(done.stdout)
    assert [out.count("8,242 passages") for out in printed] == [1, 1]
    shards = [sorted((tmp_path / out / "embeddings").glob("shard-*.npy")) for out in ("one", "two")]
    assert len(shards[0]) == 2
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]


FILLER = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore "


@pytest.mark.parametrize(
    ("text", "query", "inside"),
    [
        (
            FILLER * 3 + "the yeast turns sugar into gas. " + FILLER * 3,
            "what does yeast do with sugar",
            "yeast turns sugar",
        ),
        ("yeast " + FILLER * 3 + "YEAST and Sugar " + FILLER, "yeast sugar", "YEAST and Sugar"),
        (FILLER * 3 + "gas", "gas", "gas"),
        ("\u4e00" * 300 + "\u8702\u871c\u7684\u6765\u6e90" + "\u4e00" * 300, "\u8702\u871c", "\u8702\u871c"),
        ("x" * 500 + " gas", "gas", "gas"),
        ("start " + FILLER * 9, "nothing of it", "start "),
        ("a" * 450 + "b" * 450, "a" * 450 + "b" * 450, "aaa"),
        ("a the of in " + FILLER * 3 + " photosynthesis " + FILLER * 3, "photosynthesis the in", "photosynthesis"),
    ],
)
def test_a_snippet_shows_the_part_with_most_of_the_querys_words(text: str, query: str, inside: str) -> None:
    found = snippet(text, query, 120)
    assert inside in found and len(found) <= 122
    plain, kept = " ".join(text.split()), found.strip("\u2026")
    assert kept in plain
    assert found.startswith("\u2026") == (not plain.startswith(kept))
    assert found.endswith("\u2026") == (not plain.endswith(kept))


def test_a_short_text_is_its_own_snippet() -> None:
    assert snippet(" one\n two ", "two", 7) == "one two"
