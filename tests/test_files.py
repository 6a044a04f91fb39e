"""Files and folders appear whole or not at all."""

import os
import re
import subprocess
import sys

import pytest

from tdro.files import atomic_folder, atomic_path, cache_folder, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.json") as path:
        path.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.json").read_text() == '{\n "x": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_folder_leaves_the_old_one_and_a_good_one_replaces_it(tmp_path):
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "model") as folder:
            (folder / "w").write_text(content)
        if content == "old":
            with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model") as folder:
                (folder / "w").write_text("half")
                raise RuntimeError
            assert (tmp_path / "model" / "w").read_text() == "old"
    assert (tmp_path / "model" / "w").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def temporary(name: str, process: int, kind: str = "tmp", host: str | None = None) -> str:
    """Name that a process of this number, on this or another host, writes `name` under."""
    return f".{name}.{re.sub('[^A-Za-z0-9]', '_', host or os.uname().nodename)}-{process}.{kind}"


def dead_process() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_killed_processes_left_is_cleared_away_and_what_live_ones_write_is_not(tmp_path):
    for owner in (dead_process(), os.getppid()):
        (tmp_path / temporary("model", owner)).mkdir()
        (tmp_path / temporary("a.json", owner)).write_text("half")
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "w").write_text("new")
    write_json(tmp_path / "a.json", {})
    alive = {temporary("model", os.getppid()), temporary("a.json", os.getppid())}
    assert {p.name for p in tmp_path.iterdir()} == {"model", "a.json"} | alive


def test_what_processes_of_other_hosts_write_stays(tmp_path):
    others = {temporary("a.json", dead_process(), kind, f"x{os.uname().nodename}") for kind in ("tmp", "old")}
    for name in others:
        (tmp_path / name).write_text("half")
    with atomic_path(tmp_path / "a.json") as path:
        assert path.name == temporary("a.json", os.getpid())
        path.touch()
    assert {p.name for p in tmp_path.iterdir()} == {"a.json"} | others


def test_two_hosts_whose_processes_have_one_number_write_apart(tmp_path, monkeypatch):
    here = os.uname()
    with atomic_path(tmp_path / "a.json") as first:
        first.write_text("1")
        monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", f"{here.nodename}.b", *here[2:])))
        write_text(tmp_path / "a.json", "2")
        assert first.read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_was_moved_aside_by_a_killed_process_comes_back(tmp_path):
    aside = tmp_path / temporary("model", dead_process(), "old")
    aside.mkdir()
    (aside / "w").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model"):
        raise RuntimeError
    assert (tmp_path / "model" / "w").read_text() == "old"


def test_cache_folder_is_what_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TDRO_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TDRO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tdro"
