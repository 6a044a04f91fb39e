"""The check finds every planted fault, counts exactly, compares datasets, and its repaired copy has no errors."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tdro.config import Study
from tdro.errors import ConfigError
from tdro.prepare import columns, findings, repeats
from tdro.prepare.check import CheckResult, check
from tdro.prepare.findings import KINDS
from tdro.prepare.odd_texts import oddities
from tdro.prepare.profile import Sample, languages, measure
from tdro.prepare.repeats import Passages, Places, find_first, hash_text, shared


def passage(text: str, identifier: str = "") -> dict[str, str]:
    """A passage; its id is made from its text unless given."""
    return {"docid": identifier or f"d {text}", "text": text}


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A faultless row."""
    return {
        "query_id": f"q{number}",
        "query": f"where is river {number}",
        "positive_passages": [passage(f"River {number} is in the north.")],
        "negative_passages": [passage(f"Mountain {number} is high."), passage(f"Lake {number} is deep.")],
        **changes,
    }


def write(path: Path, rows: list[Any]) -> Path:
    """Write rows; strings are written as they are."""
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def study(folder: Path, datasets: dict[str, Any], **sections: dict[str, Any]) -> Study:
    """A study of these datasets, whose batches are small."""
    training = {"batch_size": 2 * len(datasets), "passages_per_query": 2, "steps": 10}
    content = {
        "name": "rivers",
        "output": str(folder / "run"),
        "data": {"root": str(folder), "datasets": datasets, **sections.pop("data", {})},
        "model": {"base": "none"},
        "reference": training,
        "weights": training,
        **sections,
    }
    return Study.model_validate(content)


def check_one(folder: Path, rows: list[Any], **sections: dict[str, Any]) -> CheckResult:
    """Check one dataset in this process."""
    write(folder / "rivers.jsonl", rows)
    return check(study(folder, {"rivers": "rivers.jsonl"}, **sections), processes=1)


def found(result: CheckResult, code: str) -> list[str]:
    """Places of the findings of a code, from the file's name on."""
    return [finding.place.rpartition("/")[2] for finding in result.findings if finding.code == code]


def codes(result: CheckResult) -> dict[str, int]:
    """How often each code was found, but for the note that there is no instruction."""
    return {code: number for (_, code), number in result.counts.items() if code != "no-instruction"}


def test_nothing_is_found_in_faultless_rows(tmp_path):
    result = check_one(tmp_path, [row(i) for i in range(20)])
    assert codes(result) == {}
    (report,) = result.datasets
    assert (report.rows, report.distinct_queries, report.positives, report.negatives) == (20, 20, 20, 40)
    assert (report.fewest_negatives, report.most_negatives, report.without_negatives) == (2, 2, 0)
    assert report.lengths["query"].median == 4 and report.lengths["query"].cut is None
    assert report.epochs == {"reference": 1.0}  # 10 steps of 2 rows of 20
    assert report.characters["query"] == 10 * 16 + 10 * 17
    assert report.samples[1] == ("where is river 1", "River 1 is in the north.", "Mountain 1 is high.")


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "positive-among-negatives": (
        {"negative_passages": [passage("A sea."), passage("river 7  IS in the north.")]},
        "negative[1]",
    ),
    "query-among-negatives": ({"negative_passages": [passage("Where is river 7")]}, "negative[0]"),
    "repeated-negative": ({"negative_passages": [passage("A sea."), passage("a  sea.", "x")]}, "negative[1]"),
    "repeated-positive": ({"positive_passages": [passage("A sea."), passage("a  sea.", "x")]}, "positive[1]"),
    "query-is-positive": ({"positive_passages": [passage("Where is river 7 ")]}, "positive[0]"),
    "replacement-characters": ({"query": "where is the caf\ufffd"}, "query"),
    "mojibake": ({"query": "where is the caf\u00c3\u00a9"}, "query"),
    "control-characters": ({"query": "where is\x07 river seven"}, "query"),
    "html": ({"query": "where is <b>river</b> seven"}, "query"),
    "no-words": ({"query": "???!"}, "query"),
    "short-text": ({"positive_passages": [passage("No.")]}, "positive[0]"),
    "long-text": ({"query": "a b " * 2000}, "query"),
    "few-negatives": ({"negative_passages": [passage("The only one.")]}, "negative"),
    "bad-row": ({"query": ""}, "query"),
    "query-id-twice": ({"query_id": "q3"}, "query_id"),
    "passage-id-twice": (
        {"positive_passages": [passage("Another text.", "d River 3 is in the north.")]},
        "positive[0]",
    ),
}


@pytest.mark.parametrize("code", FAULTS)
def test_a_planted_fault_is_found_at_its_place_and_nothing_else(tmp_path, code):
    changes, field = FAULTS[code]
    sections = {"reference": {"passages_per_query": 3, "batch_size": 2, "steps": 10}} if code == "few-negatives" else {}
    result = check_one(tmp_path, [row(i) if i != 7 else row(7, **changes) for i in range(20)], **sections)
    assert codes(result) == {code: 1}
    assert found(result, code) == [f"rivers.jsonl:8:{field}"]
    assert result.total(KINDS[code].level) >= 1


def test_a_positive_is_known_among_the_negatives_by_its_id_too(tmp_path):
    twin = passage("Rather another text.", "d River 7 is in the north.")
    result = check_one(tmp_path, [row(i) if i != 7 else row(7, negative_passages=[twin]) for i in range(20)])
    assert codes(result) == {"positive-among-negatives": 1, "passage-id-twice": 1}


def test_each_repeat_is_counted_once_as_the_strongest_kind(tmp_path):
    rows = [row(i) for i in range(20)]
    rows += [row(3), {**row(4), "negative_passages": [passage("Fire.")]}, row(5, positive_passages=[passage("Earth.")])]
    result = check_one(tmp_path, rows)
    assert codes(result) == {"repeated-row": 1, "repeated-pair": 1, "repeated-query": 1}
    assert found(result, "repeated-row") == ["rivers.jsonl:21:query"]
    assert found(result, "repeated-pair") == ["rivers.jsonl:22:query"]
    assert found(result, "repeated-query") == ["rivers.jsonl:23:query"]
    saw = next(finding.saw for finding in result.findings if finding.code == "repeated-query")
    assert saw.endswith("rivers.jsonl:6")
    assert result.datasets[0].distinct_queries == 20


def test_bad_records_are_counted_and_what_follows_is_read(tmp_path):
    rows = [row(0), "{not json", row(1), "[1]", row(2, positive_passages=[]), row(3)]
    result = check_one(tmp_path, rows)
    (report,) = result.datasets
    assert (report.rows, report.bad_rows) == (3, 3)
    assert [place.split(":")[1] for place in found(result, "bad-row")] == ["2", "4", "5"]
    assert all(finding.do for finding in result.findings)


def test_missing_and_empty_datasets_are_errors_and_the_others_are_checked(tmp_path):
    write(tmp_path / "good.jsonl", [row(i) for i in range(20)])
    write(tmp_path / "bad.jsonl", ["no"])
    datasets = {"good": "good.jsonl", "gone": "gone.jsonl", "bad": "bad.jsonl"}
    result = check(study(tmp_path, datasets), processes=1)
    errors = {key: number for key, number in result.counts.items() if KINDS[key[1]].level == "error"}
    assert errors == {("gone", "unreadable"): 1, ("bad", "bad-row"): 1, ("bad", "no-rows"): 1}
    assert [finding.place for finding in result.findings if finding.code == "unreadable"] == [
        str(tmp_path / "gone.jsonl")
    ]
    assert [report.rows for report in result.datasets] == [20, 0, 0]


def test_a_file_that_is_cut_off_is_an_error_and_its_copy_has_none(tmp_path):
    whole = gzip.compress("".join(json.dumps(row(i)) + "\n" for i in range(2000)).encode())
    (tmp_path / "rivers.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    result = check(study(tmp_path, {"rivers": "rivers.jsonl.gz"}), processes=1, fix_copy=tmp_path / "clean")
    assert codes(result)["unreadable"] == 1 and "bad-row" not in codes(result)
    assert result.repaired[0].rows == result.datasets[0].rows > 100
    after = check(study(tmp_path, {"rivers": "clean/rivers.jsonl"}), processes=1)
    assert codes(after) == {} and after.datasets[0].rows == result.datasets[0].rows
    (listed,) = (json.loads(line) for line in (tmp_path / "clean" / "dropped.jsonl").read_text().splitlines())
    assert listed["action"] == "rest of the file dropped"


def test_the_layout_is_told_and_columns_that_are_not_read_are_noted(tmp_path):
    rows = [
        {"query": f"where is {i}", "pos": [f"River {i} is there."], "neg": [f"Hill {i}."], "topic": "x"}
        for i in range(20)
    ]
    result = check_one(tmp_path, rows)
    assert result.datasets[0].layouts == {str(tmp_path / "rivers.jsonl"): "flagembedding"}
    assert codes(result) == {"unread-column": 1} and result.findings[0].saw == "topic"


def test_counts_stay_exact_when_findings_are_no_longer_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "KEPT", 5)
    monkeypatch.setattr("tdro.prepare.check_dataset.KEPT", 5)
    result = check_one(tmp_path, [row(i, query="<br> where") for i in range(20)])
    assert codes(result) == {"html": 20, "repeated-query": 19}
    assert len(found(result, "html")) == 5 and len(found(result, "repeated-query")) == 5


@pytest.mark.parametrize(("when", "expected"), [("never", {"no-negatives": 1}), ("missing", {}), ("always", {})])
def test_rows_without_negatives_are_errors_where_nothing_mines_them(tmp_path, when, expected):
    rows = [row(i, negative_passages=[] if i == 4 else row(i)["negative_passages"]) for i in range(20)]
    write(tmp_path / "rivers.jsonl", rows)
    write(tmp_path / "lakes.jsonl", [row(i) for i in range(40, 60)])
    two = study(tmp_path, {name: f"{name}.jsonl" for name in ("rivers", "lakes")}, mining={"when": when})
    result = check(two, processes=1)
    assert codes(result) == expected
    assert not expected or found(result, "no-negatives") == ["rivers.jsonl:5:negative"]


def test_one_dataset_is_not_checked_for_weights_that_are_not_learned(tmp_path):
    greedy = {"batch_size": 100, "passages_per_query": 9, "steps": 1000}
    rows = [row(i, negative_passages=[] if i == 4 else row(i)["negative_passages"]) for i in range(20)]
    never = {"when": "never"}
    result = check_one(tmp_path, rows, weights=greedy, mining=never)
    assert codes(result) == {} and list(result.datasets[0].epochs) == ["reference"]
    own = {"datasets": {"rivers": {"path": "rivers.jsonl", "in_batch_negatives": False}}}
    assert codes(check_one(tmp_path, rows, data=own, mining=never)) == {"no-negatives": 1}
    write(tmp_path / "lakes.jsonl", [row(i) for i in range(40, 60)])
    two = check(study(tmp_path, {n: f"{n}.jsonl" for n in ("rivers", "lakes")}, weights=greedy), processes=1)
    for name, few in (("rivers", 19), ("lakes", 20)):
        here = {code: number for (dataset, code), number in two.counts.items() if dataset == name}
        assert here == {"small-dataset": 1, "many-epochs": 1, "few-negatives": few, "no-instruction": 1}
    assert {finding.place for finding in two.findings} > {"weights.batch_size", "weights.steps"}


def test_small_datasets_and_many_epochs(tmp_path):
    training = {"batch_size": 30, "passages_per_query": 2, "steps": 20}
    result = check_one(tmp_path, [row(i) for i in range(20)], reference=training)
    assert codes(result) == {"small-dataset": 1, "many-epochs": 1}
    assert result.datasets[0].epochs["reference"] == 30
    capped = check_one(tmp_path, [row(i) for i in range(40)], reference=training, data={"max_rows": 20})
    assert codes(capped) == {"small-dataset": 1, "many-epochs": 1}


def test_datasets_are_compared_and_processes_make_no_difference(tmp_path):
    write(tmp_path / "one.jsonl", [row(i) for i in range(30)])
    write(tmp_path / "two.jsonl", [row(i) for i in range(25, 45)])
    write(
        tmp_path / "three.jsonl", [row(i, query=f"so {i}?", positive_passages=[passage(f"Yes {i}.")]) for i in range(9)]
    )
    shared_study = study(tmp_path, {name: f"{name}.jsonl" for name in ("one", "two", "three")})
    result = check(shared_study, processes=1)
    overlaps = {(o.first, o.second): (o.queries, o.pairs, o.passages) for o in result.overlaps}
    assert overlaps == {("one", "two"): (5, 5, 15), ("one", "three"): (0, 0, 18)}
    assert {key: n for key, n in result.counts.items() if key[1].startswith("shared")} == {
        ("two", "shared-pairs"): 5,
        ("two", "shared-queries"): 5,
    }
    first = next(finding for finding in result.findings if finding.code == "shared-pairs")
    number = int(first.place.rpartition("/")[2].split(":")[1])
    assert number <= 5 and first.saw.endswith(f"one.jsonl:{number + 25}")

    shown: list[tuple[int, int, int]] = []
    parallel = check(shared_study, processes=2, progress=lambda *numbers: shown.append(numbers))
    assert {**parallel.as_dict(), "date": ""} == {**result.as_dict(), "date": ""}
    size = sum(file.stat().st_size for file in tmp_path.glob("*.jsonl"))
    assert shown[-1] == (size, size, 59)


def test_the_result_is_json(tmp_path):
    result = check_one(tmp_path, [row(i, query="<br> where") for i in range(20)])
    content = json.loads(json.dumps(result.as_dict()))
    assert content["totals"] == {"error": 0, "warning": 0, "note": 40}
    assert content["counts"][0] == {"level": "note", "code": "html", "dataset": "rivers", "count": 20}
    assert content["datasets"][0]["lengths"]["query"]["sampled"] == 20


def broken_rows() -> list[Any]:
    """Rows with every fault that can be repaired, and some that cannot."""
    return [
        row(0),
        row(0),
        row(
            1,
            negative_passages=[passage("River 1 is in the north."), passage("Sea."), passage("sea."), passage("Hill.")],
        ),
        row(2, negative_passages=[passage("where is river 2"), passage("Hill.")]),
        json.dumps(row(3)).replace("river 3", "river \\ud83d3"),
        row(4, negative_passages=[passage("Hill."), passage(" "), {"docid": "x", "text": None}]),
        row(5, positive_passages=[]),
        row(6, negative_passages=[passage("River 6 is in the north.")]),
        row(7, negative_passages=[]),
        row(8, positive_passages=[passage("Stream."), passage("stream.", "y")]),
        '{"query": "cut off", "positive_pass',
        row(9),
    ]


def test_the_repaired_copy_has_no_errors_and_nothing_is_dropped_silently(tmp_path):
    write(tmp_path / "rivers.jsonl", broken_rows())
    write(tmp_path / "hopeless.jsonl", ["no"])
    datasets = {
        "rivers": {"path": "rivers.jsonl", "license": "CC0"},
        "hopeless": "hopeless.jsonl",
        "gone": "gone.jsonl",
    }
    broken = study(tmp_path, datasets, mining={"when": "never"})
    before = check(broken, processes=1, fix_copy=tmp_path / "clean")
    assert before.total("error") > 5

    snippet = yaml.safe_load((tmp_path / "clean" / "datasets.yaml").read_text())["data"]["datasets"]
    assert list(snippet) == ["rivers"] and snippet["rivers"]["license"] == "CC0"
    after = check(study(tmp_path, snippet, mining={"when": "never"}), processes=1)
    assert after.total("error") == 0
    assert not {"repeated-row", "repeated-negative", "repeated-positive", "query-among-negatives"} & codes(after).keys()

    kept = [json.loads(line) for line in (tmp_path / "clean" / "rivers.jsonl").read_text().splitlines()]
    assert [row["query_id"] for row in kept] == ["q0", "q1", "q2", "q3", "q4", "q8", "q9"]
    assert [p["text"] for p in kept[1]["negative_passages"]] == ["Sea.", "Hill."]
    assert kept[3]["query"] == "where is river 3"
    assert [p["text"] for p in kept[4]["negative_passages"]] == ["Hill."]
    assert kept[0] == row(0) and kept[6] == row(9)

    listed = [json.loads(line) for line in (tmp_path / "clean" / "dropped.jsonl").read_text().splitlines()]
    mine = [
        (entry["place"].rpartition("/")[2].removeprefix("rivers.jsonl:"), entry["action"])
        for entry in listed
        if entry["dataset"] == "rivers"
    ]
    assert mine == [
        ("2", "row dropped"),
        ("3:negative[0]", "passage dropped"),
        ("3:negative[2]", "passage dropped"),
        ("4:negative[0]", "passage dropped"),
        ("5:query", "changed"),
        ("6:negative_passages[1].text", "changed"),
        ("7", "row dropped"),
        ("8:negative[0]", "passage dropped"),
        ("8", "row dropped"),
        ("9", "row dropped"),
        ("10:positive[1]", "passage dropped"),
        ("11", "row dropped"),
    ]
    assert all(entry["reason"] for entry in listed)
    (repaired, hopeless, gone) = before.repaired
    assert (repaired.rows, repaired.dropped_rows, repaired.dropped_passages, repaired.changed) == (7, 5, 5, 2)
    assert (hopeless.rows, gone.rows) == (0, 0) and not (tmp_path / "clean" / "hopeless.jsonl").exists()


def test_the_originals_are_never_written_over(tmp_path):
    write(tmp_path / "rivers.jsonl", [row(0)])
    with pytest.raises(ConfigError, match="among the originals"):
        check(study(tmp_path, {"rivers": "rivers.jsonl"}), processes=1, fix_copy=tmp_path)


def test_instructions_come_from_the_study_or_from_the_table(tmp_path):
    write(tmp_path / "rivers.jsonl", [row(i) for i in range(20)])
    datasets = {
        "nq": "rivers.jsonl",
        "own": {"path": "rivers.jsonl", "instruction": "Find rivers"},
        "else": "rivers.jsonl",
    }
    given = {report.name: report for report in check(study(tmp_path, datasets), processes=1).datasets}
    assert given["nq"].instruction == "" and "Wikipedia" in given["nq"].suggestion
    assert (given["own"].instruction, given["own"].suggestion) == ("Find rivers", "")
    assert (given["else"].instruction, given["else"].suggestion) == ("", "")
    auto = check(study(tmp_path, datasets, data={"instructions": "auto"}), processes=1)
    assert auto.datasets[0].instruction == given["nq"].suggestion
    assert [key for key in auto.counts if key[1] == "no-instruction"] == [("else", "no-instruction")]


def test_ctrl_c_ends_the_command_and_its_processes_within_moments(tmp_path):
    for name in ("one", "two"):
        file = write(tmp_path / f"{name}.jsonl", [row(i) for i in range(20)])
        file.write_text(file.read_text() * 5000)
    content = study(tmp_path, {"one": "one.jsonl", "two": "two.jsonl"}).model_dump(mode="json")
    (tmp_path / "study.yaml").write_text(json.dumps(content))
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-m", "tdro", "check", str(tmp_path / "study.yaml")]
    environment = os.environ | {"TMPDIR": str(tmp_path / "work")}
    process = subprocess.Popen(  # under nohup, for example, the interrupt would be ignored
        command,
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(lambda: any((tmp_path / "work").glob("tdro-check-*")))
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors.decode().strip() == "interrupted; there is no result"
    assert not any((tmp_path / "work").glob("tdro-check-*")) and not (tmp_path / "run").exists()
    wait_until(lambda: not group_exists(process.pid))


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def group_exists(group: int) -> bool:
    """Whether a process of this group is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        "SÃO PAULO É GRANDE",
        "« Voilà\xa0! », dit-il…",
        "l\u2019été\xa0» dernier",
        "Ñandú \u2013 «¿Qué?»",
        "Привет, мир!",
        "東京はどこ",
        "List<String> and a < b & c > d",
        "public <B extends Appendable> B of(B b)",
        "Tab\tand\nnewline",
        "दिन का खाना",
        "naïve Ærø Ålesund",
        "R&D; AT&T",
        "\u2018quoted\u2019 \u2013 “text”…",
    ],
)
def test_ordinary_texts_are_not_odd(text):
    assert list(oddities(text, "query")) == []


@pytest.mark.parametrize("text", ["café", "l\u2019été", "Größe", "日本語の文章", "русский язык", "你好世界"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_utf8_read_as_something_else_is_noticed(text, encoding):
    wrong = text.encode().decode(encoding, "ignore" if encoding == "cp1252" else "strict")
    assert next(code for code, _ in oddities(wrong, "passage")) == "mojibake"


@given(st.lists(st.integers(0, 20), max_size=60), st.sampled_from([4, 1 << 20]))
def test_repeats_are_those_of_a_plain_loop(values, together):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_PART", together)
        later, first = repeats.repeats(np.array(values, np.uint64) << np.uint64(59))
    expected = [(i, values.index(value)) for i, value in enumerate(values) if value in values[:i]]
    assert list(zip(later.tolist(), first.tolist(), strict=True)) == expected


@given(st.lists(st.sets(st.integers(0, 40).map(lambda n: n * 2**58 + n), max_size=30), min_size=1, max_size=5))
def test_shared_hashes_are_those_of_set_intersection(groups):
    tables = {str(i): np.array(sorted(group), np.uint64) for i, group in enumerate(groups)}
    expected = {
        (str(i), str(j)): groups[i] & groups[j] for j in range(len(groups)) for i in range(j) if groups[i] & groups[j]
    }
    result = shared(tables, examples=2)
    assert {pair: common.number for pair, common in result.items()} == {p: len(c) for p, c in expected.items()}
    assert all(set(c.examples) <= expected[p] and len(c.examples) == min(2, c.number) for p, c in result.items())


@pytest.mark.parametrize("together", [3, 1 << 20])
def test_passage_ids_are_compared_whatever_is_in_memory(monkeypatch, tmp_path, together):
    monkeypatch.setattr(columns, "_PART", together)
    monkeypatch.setattr(columns, "_BUFFER", 8 * together)
    passages = Passages(tmp_path / "passages")
    for place in range(50):
        text = "changed" if place == 40 else f"text {place % 10}"
        passages.add(hash_text(f"id {place % 10}"), hash_text(text), place)
    assert passages.id_conflicts() == [(40, 0)]
    assert len(passages.texts()) == 50
    columns.write_distinct(passages.texts(), tmp_path / "distinct.npy")
    assert np.load(tmp_path / "distinct.npy").tolist() == sorted(set(passages.texts().tolist()))


def test_places_and_first_positions(tmp_path):
    places = Places(tmp_path / "places")
    for place in ("a.jsonl:1", "a.jsonl:7", "b.parquet:row 3"):
        places.add(place)
    assert [places[i] for i in range(3)] == ["a.jsonl:1", "a.jsonl:7", "b.parquet:row 3"]
    assert find_first(np.array([5, 6, 5], np.uint64), [5, 9]) == {5: 0}


def test_the_sample_is_uniform_and_seeded():
    taken = np.zeros(40)
    for seed in range(2000):
        sample = Sample(10, seed)
        for number in range(40):
            sample.add(str(number))
        taken[[int(text) for text in sample.texts]] += 1
    assert sample.seen == 40 and len(sample.texts) == len(set(sample.texts)) == 10
    assert np.abs(taken - 500).max() < 5 * (2000 * 0.25 * 0.75) ** 0.5  # five standard deviations
    again = Sample(10, 1999)
    for number in range(40):
        again.add(str(number))
    assert again.texts == sample.texts


def test_lengths_are_those_of_the_tokenizer_and_cut_is_counted(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "bee": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    lengths = measure(["bee", "a bee dances", "a bee dances for its hive", "bee bee"], tmp_path, 3)
    assert lengths is not None
    assert (lengths.sampled, lengths.median, lengths.longest, lengths.cut) == (4, 2.5, 6, 0.25)


def test_languages_add_up_to_one():
    texts = (
        ["The bees dance to show where the flowers are."] * 6
        + ["これは日本語の文章です。花はどこにありますか。"] * 3
        + ["?!"]
    )
    shares = languages(texts)
    assert sum(shares.values()) == pytest.approx(1) and max(shares.values()) == pytest.approx(0.6)
    assert len(shares) == 3
