"""`tdro doctor` as a person and a script meet it."""

import json

from studies import tiny_study

from tdro.cli.main import main
from tdro.setup import doctor
from tdro.setup.doctor import Finding
from tdro.study_file import save_study


def test_doctor_prints_a_line_for_each_finding_and_is_0_where_nothing_fails(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(save_study(tiny_study(tmp_path, "static")), encoding="utf-8")
    assert main(["doctor", str(path)]) == 0
    output = capsys.readouterr().out
    for part in ("OK    python", "torch", "run folder", "tokenizer", "ready"):
        assert part in output
    assert main(["doctor", str(path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["ready"] and {"topic", "status", "name", "text", "fix"} == set(content["findings"][0])


def test_doctor_is_1_where_something_fails_and_says_what_mends_it(capsys, monkeypatch):
    finding = Finding("devices", "FAIL", "gpu", "has left", "plug it in")
    monkeypatch.setattr(
        doctor, "examine", lambda study: [finding, Finding("memory", "WARN", "memory", "is little", "")]
    )
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "FAIL  gpu" in output and "-> plug it in" in output and "not ready: 1 to mend first" in output
    assert main(["doctor", "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["ready"]
