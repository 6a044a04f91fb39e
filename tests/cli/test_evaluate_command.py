"""`tdro evaluate MODEL ... --tasks ... --out ...`: what it prints, refuses, skips and leaves behind."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from evaluation_sets import write_beir, write_lines
from rich.console import Console
from studies import sentence
from tiny_models import make_tiny_model

from tdro.cli.evaluate import Arguments, evaluate_models
from tdro.cli.main import main
from tdro.devices import Ranks
from tdro.errors import ConfigError

FILES = ["mteb.json", "run.trec.gz", "scores.parquet", "summary.json", "top.parquet"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDRO_CACHE", str(tmp_path / "cache"))


def words_set(folder: Path, documents: int = 120) -> Path:
    """An evaluation set of words that the tiny models know; query i is judged against document i."""
    return write_beir(
        folder,
        [{"_id": f"d{i}", "text": sentence(i, i + 1, i * 3)} for i in range(documents)],
        [{"_id": f"q{i}", "text": sentence(i, i * 3)} for i in range(8)],
        "".join(f"q{i}\td{i}\t1\n" for i in range(8)),
    )


def contents(folder: Path) -> dict[str, bytes]:
    """All files under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command and return what it printed."""
    assert main(["evaluate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_help_begins_with_two_examples(capsys):
    text = evaluate(capsys, "--help")
    assert text.index("examples:") < text.index("--tasks   folders")
    assert text.count("tdro evaluate ") >= 4


def test_models_are_evaluated_on_all_tasks_of_a_folder(tmp_path, capsys):
    pytest.importorskip("bm25s")
    make_tiny_model("static", tmp_path / "models" / "tiny")
    for name in ("words", "more"):
        words_set(tmp_path / "sets" / name)
    out = tmp_path / "out"
    text = evaluate(capsys, f"tiny={tmp_path}/models/tiny", "bm25", "--tasks", tmp_path / "sets", "--out", out)
    assert sorted(path.relative_to(out).as_posix() for path in out.glob("*/*")) == [
        "bm25/more", "bm25/words", "tiny/more", "tiny/words"
    ]  # fmt: skip
    assert sorted(path.name for path in (out / "bm25" / "words").iterdir()) == FILES
    means = [json.loads((out / model / "words" / "summary.json").read_text())["measures"] for model in ("tiny", "bm25")]
    lines = [line.split() for line in text.splitlines()]
    assert ["nDCG@10", "tiny", "bm25"] in lines
    row = ["words", *(f"{100 * mean['ndcg@10']:.2f}" for mean in means)]
    assert row in lines and ["more", *row[1:]] in lines and ["mean", *row[1:]] in lines
    assert f"-> {out}/bm25" in text


def test_name_of_a_model_is_made_into_a_folder_and_can_be_given(tmp_path, capsys):
    make_tiny_model("static", tmp_path / "tiny")
    task = words_set(tmp_path / "words")
    evaluate(capsys, tmp_path / "tiny", "--tasks", task, "--out", tmp_path / "out")
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name == str(tmp_path / "tiny").strip("/").replace("/", "__")
    assert json.loads((folder / "words" / "summary.json").read_text())["model"] == folder.name


def test_what_is_finished_is_skipped_and_what_has_changed_is_not(tmp_path, capsys):
    make_tiny_model("static", tmp_path / "tiny")
    task, out = words_set(tmp_path / "words"), tmp_path / "out"
    arguments = [f"tiny={tmp_path}/tiny", "--tasks", task, "--out", out]
    evaluate(capsys, *arguments)
    before, stamp = contents(out), (out / "tiny" / "words" / "summary.json").stat().st_mtime_ns
    assert "1 finished before" in evaluate(capsys, *arguments)
    assert (out / "tiny" / "words" / "summary.json").stat().st_mtime_ns == stamp
    for change in (["--instruction", "find words"], ["--query-max-length", "5"]):
        assert "finished before" not in evaluate(capsys, *arguments, *change)
    with (task / "qrels" / "test.tsv").open("a") as file:
        file.write("q1\td9\t1\n")
    assert "finished before" not in evaluate(capsys, *arguments)
    assert contents(out)["tiny/words/summary.json"] != before["tiny/words/summary.json"]


def test_approximate_search_shows_its_recall_and_is_not_taken_for_exact(tmp_path, capsys):
    pytest.importorskip("faiss")
    pytest.importorskip("bm25s")
    make_tiny_model("static", tmp_path / "tiny")
    task, out = words_set(tmp_path / "words", 3000), tmp_path / "out"
    arguments = [f"tiny={tmp_path}/tiny", "bm25", "--tasks", task, "--out", out]
    evaluate(capsys, *arguments)
    for kind in ("flat", "ivf-pq"):
        text = evaluate(capsys, *arguments, "--search", kind)
        assert text.count("finished before") == 1  # bm25
        summary = json.loads((out / "tiny" / "words" / "summary.json").read_text())
        search = summary["search"]
        assert (search["kind"], search["measured_on"]) == (kind, 8) and 0 < search["recall"] <= 1
        assert search["recall"] > 0.9 or kind == "ivf-pq"  # of equal scores at the end, any are chosen
        assert f"recall of tiny ({kind})" in text
        assert f" {100 * summary['measures']['ndcg@10']:.2f} " in text and f" {100 * search['recall']:.2f} " in text
        assert "recall of bm25" not in text
    assert json.loads((out / "bm25" / "words" / "summary.json").read_text())["search"] == {"kind": "exact"}
    assert "recall" not in evaluate(capsys, *arguments)


def test_approximate_search_is_refused_under_several_ranks(tmp_path):
    arguments = Arguments(("bm25",), (str(words_set(tmp_path / "words")),), str(tmp_path / "out"), search="flat")
    with pytest.raises(ConfigError, match=r"(?s)one process only.*2 processes"):
        evaluate_models(arguments, Console(quiet=True), Ranks(1, 2))


def test_oddities_are_shown_in_one_line(tmp_path, capsys):
    pytest.importorskip("bm25s")
    task = words_set(tmp_path / "words")
    with (task / "qrels" / "test.tsv").open("a") as file:
        file.write("q1\tgone\t1\n")
    text = evaluate(capsys, "bm25", "--tasks", task, "--out", tmp_path / "out")
    assert "words: 1 judged documents that the corpus lacks (gone)" in text


def test_cross_lingual_questions_are_compared_with_one_corpus_in_a_folder_with_parts(tmp_path, capsys):
    make_tiny_model("static", tmp_path / "tiny")
    answers = {"en": [{"type": "entity", "text": sentence(1), "aliases": []}]}
    queries = {"en": sentence(1), "de": sentence(1, 2), "fr": sentence(3)}
    write_lines(tmp_path / "mkqa" / "mkqa.jsonl", [{"example_id": 1, "queries": queries, "answers": answers}])
    words_set(tmp_path / "wiki")
    arguments = [f"tiny={tmp_path}/tiny", "--tasks", tmp_path / "mkqa", "--corpus", tmp_path / "wiki"]
    text = evaluate(capsys, *arguments, "--out", tmp_path / "out")
    assert "Acc@10" in text
    embeddings = list((tmp_path / "cache" / "embeddings").glob("*/manifest.json"))
    assert sorted(json.loads(path.read_text())["texts"] for path in embeddings) == [1, 1, 120]
    assert sorted(path.name for path in (tmp_path / "out" / "tiny" / "mkqa").iterdir()) == [
        "de", "fr", "mteb.json", "summary.json"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bm25", "--out", "{out}"], "no tasks"),
        (["bm25", "--tasks", "{task}"], "nowhere to write"),
        (["--tasks", "{task}"], "the models come first"),
        (["bm25", "--tasks", "{task}", "{task}", "--out", "{out}"], "two would have one name"),
        (["bm25", "bm25", "--tasks", "{task}", "--out", "{out}"], "two would have one name"),
        (["nowhere/model", "--tasks", "{task}", "--out", "{out}"], "nowhere/model"),
        (["bm25", "--tasks", "{out}/none", "--out", "{out}"], "evaluation set not found"),
        (["bm25", "--tasks", "{task}", "--languages", "sw", "--out", "{out}"], "languages does not go with"),
        (["bm25", "--tasks", "{task}", "--split", "dev", "--out", "{out}"], "without qrels"),
        (["bm25", "--tasks", "{task}", "--out", "{out}", "--instruction-template", "x"], "template lacks"),
    ],
)
def test_user_errors_end_with_exit_code_2_and_leave_nothing(tmp_path, capsys, arguments, message):
    pytest.importorskip("bm25s")
    names = {"task": words_set(tmp_path / "words"), "out": tmp_path / "out"}
    assert main(["evaluate", *(argument.format(**names) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def command(tmp_path: Path, out: str, *launcher: str) -> tuple[list[str], dict[str, str]]:
    """The command line that evaluates a tiny model in processes of their own, with a cache of their own."""
    task = [f"tiny={tmp_path}/tiny", "--tasks", str(tmp_path / "words"), "--out", str(tmp_path / out)]
    line = [sys.executable, *launcher, "-m", "tdro", "evaluate", *task]
    return line, {**os.environ, "TDRO_CACHE": str(tmp_path / f"cache-{out}"), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_two_ranks_write_the_bytes_of_one(tmp_path):
    make_tiny_model("bert", tmp_path / "tiny")
    words_set(tmp_path / "words", 9_000)  # two shards
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for out, launcher in (("one", []), ("two", torchrun)):
        line, environment = command(tmp_path, out, *launcher)
        subprocess.run(line, env=environment, check=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") != {}
    shards = [sorted((tmp_path / f"cache-{out}").rglob("*.npy")) for out in ("one", "two")]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]


@pytest.mark.slow
def test_kill_while_documents_are_encoded_changes_no_byte(tmp_path):
    make_tiny_model("bert", tmp_path / "tiny")
    words_set(tmp_path / "words", 17_000)  # three shards
    line, environment = command(tmp_path, "killed")
    process = subprocess.Popen(line, env=environment)
    while process.poll() is None and not list((tmp_path / "cache-killed").rglob("shard-000000.npy")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list((tmp_path / "cache-killed").rglob("shard-000002.npy"))
    for out in ("killed", "whole"):
        line, environment = command(tmp_path, out)
        subprocess.run(line, env=environment, check=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole") != {}
    run = gzip.decompress((tmp_path / "killed" / "tiny" / "words" / "run.trec.gz").read_bytes()).decode().splitlines()
    assert len(run) == 8 * 1000
    assert np.unique([line.split()[0] for line in run]).tolist() == [f"q{i}" for i in range(8)]
