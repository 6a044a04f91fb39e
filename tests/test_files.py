"""Files and folders appear whole or not at all."""

import pytest

from tdro.files import atomic_folder, atomic_path, cache_folder, write_json


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


def test_cache_folder_is_what_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TDRO_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TDRO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tdro"
