"""The gate of a study: what it lets through, what it writes, and that it does not look twice."""

import json

import pytest
from studies import tiny_study

from tdro.errors import DataError
from tdro.training import leakage_gate as gate_module
from tdro.training.leakage_gate import leakage_gate
from tdro.training.run import Run

LEAKS = {"one": ["Why do stars fall?", "What is MOSS"], "two": [], "three": ["what is moss"]}


def make_run(folder, gate, **leakage):
    """A run over data in which three rows ask what the evaluation sets ask."""
    study = tiny_study(folder, "static", leakage={"gate": gate, **leakage})
    root = folder / "root"
    own = root / "eval" / "own.txt"
    if not own.exists():
        own.write_text("what is moss\nwho dances in the dark\n")
        (root / "eval" / "words" / "queries.jsonl").write_text('{"_id": "q0", "text": "why do stars fall"}\n')
        for name, queries in LEAKS.items():
            rows = [json.loads(line) for line in (root / "train" / f"{name}.jsonl").read_text().splitlines()]
            for i, query in enumerate(queries):
                rows[3 + i]["query"] = query
            (root / "train" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Run(study)


def notes(run):
    """What the journal says about leakage."""
    return [event["text"] for event in run.journal.read("note", "leakage")]


def test_warn_says_it_and_keeps_all_rows(tmp_path):
    run = make_run(tmp_path, "warn", against=("eval/own.txt",))
    assert leakage_gate(run, run.source_rows) == run.source_rows
    assert [text.split(";")[0] for text in notes(run)] == [
        "one: 2 rows ask what own, words will ask (8.33%)",
        "three: 1 row asks what own will ask (1.67%)",
    ]
    report = json.loads((run.folder / "data" / "leakage.json").read_text())
    assert report["leaking_rows"] == {"one": 2, "two": 0, "three": 1} and report["tests"] == {"words": 1, "own": 2}
    assert {(line["train"], line["test"]): line["exact"] for line in report["table"] if line["exact"]} == {
        ("one", "words"): 1, ("one", "own"): 1, ("three", "own"): 1,
    }  # fmt: skip
    assert not (run.folder / "data" / "removed").exists()


def test_remove_leaves_leaking_rows_out_and_writes_them_down(tmp_path):
    run = make_run(tmp_path, "remove", against=("eval/own.txt",))
    rows = leakage_gate(run, run.source_rows)
    assert {name: len(kept) for name, kept in rows.items()} == {"one": 22, "two": 40, "three": 59}
    assert rows["two"] is run.source_rows["two"]
    assert not {"Why do stars fall?", "What is MOSS"} & {row.query for row in rows["one"]}
    removed = [json.loads(line) for line in (run.folder / "data" / "removed" / "one.jsonl").read_text().splitlines()]
    assert [(row["query"], row["removed"]["test_query_id"]) for row in removed] == [
        ("Why do stars fall?", "q0"),
        ("What is MOSS", "1"),
    ]
    assert not (run.folder / "data" / "removed" / "two.jsonl").exists()


def test_stop_names_datasets_and_remedies(tmp_path):
    run = make_run(tmp_path, "stop", against=("eval/own.txt",))
    with pytest.raises(DataError, match="one 2, three 1") as error:
        leakage_gate(run, run.source_rows)
    assert "leakage.gate" in str(error.value) and "leakage.json" in str(error.value)
    clean = make_run(tmp_path, "stop", level="exact")
    words = clean.source_rows["two"]
    assert leakage_gate(clean, {"two": words}) == {"two": words}


def test_off_reads_nothing(tmp_path, monkeypatch):
    run = make_run(tmp_path, "off", against=("eval/nothing.txt",))
    monkeypatch.setattr(gate_module, "query_sources", None)
    assert leakage_gate(run, run.source_rows) == run.source_rows and notes(run) == []


def test_a_missing_evaluation_set_is_noted_or_refused(tmp_path):
    run = make_run(tmp_path, "warn", against=("eval/nothing.txt",))
    leakage_gate(run, run.source_rows)
    assert "nothing.txt is not there" in notes(run)[0]
    run = make_run(tmp_path, "remove", against=("eval/nothing.txt",))
    with pytest.raises(DataError, match="no such file"):
        leakage_gate(run, run.source_rows)


def test_the_same_is_not_looked_for_twice_and_a_change_is(tmp_path, monkeypatch):
    looked = []
    find = gate_module.find_leaks
    monkeypatch.setattr(
        gate_module, "find_leaks", lambda rows, index: looked.append(rows.info.name) or find(rows, index)
    )

    def run_gate(gate="warn", **leakage):
        looked.clear()
        run = make_run(tmp_path, gate, **leakage)
        rows = leakage_gate(run, run.source_rows)
        return list(looked), {name: len(kept) for name, kept in rows.items()}

    everything = ["one", "two", "three"]
    assert run_gate(against=("eval/own.txt",)) == (everything, {"one": 24, "two": 40, "three": 60})
    assert run_gate("remove", against=("eval/own.txt",)) == ([], {"one": 22, "two": 40, "three": 59})
    assert run_gate("remove", against=("eval/own.txt",), level="exact")[0] == everything
    assert run_gate("remove", against=("eval/own.txt",), similarity=0.9)[0] == everything
    assert run_gate("remove")[0] == everything
    path = tmp_path / "root" / "train" / "two.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0].replace('"query": "', '"query": "new ') + "\n")
    assert run_gate("remove") == (["two"], {"one": 23, "two": 41, "three": 60})


def test_a_dataset_that_leaks_as_a_whole_is_refused(tmp_path):
    run = make_run(tmp_path, "remove", against=("train/three.jsonl",))
    with pytest.raises(DataError, match="all rows of a dataset"):
        leakage_gate(run, run.source_rows)
