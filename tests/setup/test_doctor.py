"""The doctor's findings: what is sound is OK, what is broken fails with what mends it."""

import json
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from studies import tiny_study

from tdro.setup import doctor_machine, doctor_packages, doctor_study
from tdro.setup.doctor import Finding, examine
from tdro.study_file import save_study


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    """Findings by their names."""
    return {finding.name: finding for finding in findings}


def test_nothing_fails_on_the_machine_that_runs_the_tests(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(save_study(tiny_study(tmp_path)), encoding="utf-8")
    findings = examine(path)
    assert [finding for finding in findings if finding.status == "FAIL"] == []
    topics = {finding.topic for finding in findings}
    assert topics == {
        "versions", "extras", "devices", "precision", "attention", "memory", "places", "launcher", "study",
    }  # fmt: skip
    found = by_name(findings)
    assert found["torch"].text == metadata.version("torch")
    assert "'[SEP]'" in found["tokenizer"].text and "3 datasets and 1" in found["files"].text
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_too_old_or_missing_fails_with_the_command_that_mends_it():
    old = doctor_packages._required(Requirement("torch>=99"))
    assert old.status == "FAIL" and old.fix == "pip install 'torch>=99'"
    absent = doctor_packages._required(Requirement("no-such-package-anywhere>=1"))
    assert absent.status == "FAIL" and "not installed" in absent.text


def test_an_extra_that_the_study_needs_fails_where_it_is_missing(tmp_path, monkeypatch):
    real = doctor_packages._version
    monkeypatch.setattr(doctor_packages, "_version", lambda name: None if name in ("peft", "bm25s") else real(name))
    plain = by_name(list(doctor_packages.extras(tiny_study(tmp_path))))
    assert plain["lora"].status == "OK" and plain["lora"].fix == "pip install 'tdro[lora]'"
    asking = tiny_study(tmp_path, model={"lora_rank": 4}, mining={"source": "bm25"})
    found = by_name(list(doctor_packages.extras(asking)))
    assert found["lora"].status == found["mine"].status == "FAIL" and "model.lora_rank" in found["lora"].text


@pytest.mark.parametrize(
    ("family", "pooling", "status", "part"),
    [
        ("bert", "auto", "OK", "ends every text with"),
        ("static", "auto", "OK", "static"),
        ("qwen2", "auto", "OK", "tdro appends '<|endoftext|>'"),
        ("qwen2", "mean", "OK", "does not need one"),
    ],
)
def test_the_end_of_text_token_is_looked_for_where_the_pooling_needs_it(tmp_path, family, pooling, status, part):
    study = tiny_study(tmp_path, family, model={"pooling": pooling})
    found = doctor_study._end_of_text(study, Path(study.fill_root(study.model.base)))
    assert found.status == status and part in found.text


def test_a_saved_encoder_that_pools_a_last_token_that_nobody_appends_fails(tmp_path):
    study = tiny_study(tmp_path, "qwen2")
    folder = Path(study.fill_root(study.model.base))
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": ""}]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    found = doctor_study._end_of_text(study, folder)
    assert found.status == "FAIL" and "--model.pooling last" in found.fix


def test_missing_base_dataset_and_task_each_fail_with_their_name(tmp_path):
    study = tiny_study(tmp_path, data={"datasets": {"one": "train/gone.jsonl", "two": "train/two.jsonl"}})
    model = study.model.model_copy(update={"base": "{root}/no-model"})
    tasks = {"words": study.evaluation.tasks["words"].model_copy(update={"path": "eval/gone"})}
    evaluation = study.evaluation.model_copy(update={"tasks": tasks})
    study = study.model_copy(update={"model": model, "evaluation": evaluation})
    found = by_name(list(doctor_study.study_findings(study)))
    assert {name for name, finding in found.items() if finding.status == "FAIL"} == {
        "base",
        "dataset one",
        "task words",
    }
    assert all(finding.fix for finding in found.values() if finding.status == "FAIL")


def test_a_study_that_cannot_be_read_is_one_failed_finding(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("name: x\n", encoding="utf-8")
    failed = [finding for finding in examine(path) if finding.status == "FAIL"]
    assert [finding.topic for finding in failed] == ["study"] and "key is missing" in failed[0].text


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(monkeypatch):
    def broken():
        raise RuntimeError("no such symbol")

    monkeypatch.setattr(doctor_machine, "devices", broken)
    findings = examine()
    devices = [finding for finding in findings if finding.topic == "devices"]
    assert len(devices) == 1 and devices[0].status == "FAIL" and "no such symbol" in devices[0].text
    assert any(finding.topic == "memory" for finding in findings)


def test_places_that_cannot_be_written_to_or_are_full_fail(tmp_path, monkeypatch):
    study = tiny_study(tmp_path)
    monkeypatch.setattr(doctor_machine, "_writable", lambda folder: False)
    assert {finding.status for finding in doctor_machine.places(study)} == {"FAIL"}
    monkeypatch.setattr(doctor_machine, "_writable", lambda folder: True)
    full = type("Usage", (), {"free": 0.5e9})
    monkeypatch.setattr(doctor_machine.shutil, "disk_usage", lambda folder: full)
    assert [(f.status, bool(f.fix)) for f in doctor_machine.places(study)] == [("FAIL", True)] * 2


def test_launcher_settings_that_cannot_be_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "4000")
    settings = tmp_path / "accelerate.yaml"
    settings.write_text("distributed_type: DEEPSPEED\n")
    monkeypatch.setenv("ACCELERATE_CONFIG_FILE", str(settings))
    found = by_name(list(doctor_machine.launcher(tiny_study(tmp_path))))
    assert found["ranks"].status == "FAIL" and "no RANK" in found["ranks"].text
    assert found["accelerate"].status == "WARN" and "tdro refuses" in found["accelerate"].text
    if not doctor_machine.torch.cuda.is_available():
        assert found["OMP_NUM_THREADS"].fix.startswith("export OMP_NUM_THREADS=")


@pytest.mark.parametrize(("load", "warned"), [(0.5, False), (4000.0, True)])
def test_a_busy_machine_is_told_with_a_way_out(monkeypatch, load, warned):
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    found = by_name(list(doctor_machine.devices()))
    assert ("load" in found) == warned
    assert not warned or "OMP_NUM_THREADS=1" in found["load"].fix


def test_flash_attention_on_a_cpu_fails(tmp_path):
    if doctor_machine.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    study = tiny_study(tmp_path, model={"attention": "flash_attention_2"})
    found = by_name(list(doctor_machine.attention(study)))
    assert found["model.attention"].status == "FAIL" and found["model.attention"].fix
