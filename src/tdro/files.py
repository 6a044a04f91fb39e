"""Writing files so that a crash at any moment leaves the old content or the new, never a mixture.

What a killed process left behind is cleared away when a process of the same host first writes to the same folder: of
processes on other hosts, which may write to the same file system, nobody here knows whether they live.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_LEFT = re.compile(r"\.(?P<target>.+)\.[A-Za-z0-9_]+-(?P<process>\d+)\.(?P<kind>tmp|old)")
_cleared: set[Path] = set()  # folders in which this process has looked for what killed ones left


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary sibling folder that takes the place of `target` when the block ends without an error."""
    temporary = temporary_name(target)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        if target.exists():
            old = temporary.with_suffix(".old")
            os.replace(target, old)
            os.replace(temporary, target)
            shutil.rmtree(old)
        else:
            os.replace(temporary, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Write to a temporary sibling file that takes the place of `target` when the block ends without an error."""
    temporary = temporary_name(target)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: Path, content: object) -> None:
    """Write a JSON file atomically."""
    write_text(target, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(source: Path) -> Any:
    """Read a JSON file that somebody may have damaged.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not JSON, or nested more deeply than can be read.
    """
    try:
        return json.loads(source.read_bytes())
    except RecursionError:
        raise ValueError(f"{source.name} is nested too deeply") from None


def temporary_name(target: Path) -> Path:
    """Choose the temporary name of this process beside a target; the first time, clear away what killed ones left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    host = re.sub(r"[^A-Za-z0-9]", "_", os.uname().nodename)
    folder = target.parent.resolve()
    if folder not in _cleared:
        _cleared.add(folder)
        for left in folder.glob(f".*.{host}-*"):
            _clear(left)
    return target.with_name(f".{target.name}.{host}-{os.getpid()}.tmp")


def _clear(left: Path) -> None:
    """Clear away a temporary name if its process is gone; one that was to be replaced comes back."""
    found = _LEFT.fullmatch(left.name)
    if found is None or (int(found["process"]) != os.getpid() and _is_alive(int(found["process"]))):
        return
    with suppress(OSError):  # another process clears, too
        if found["kind"] == "old" and not left.with_name(found["target"]).exists():
            os.replace(left, left.with_name(found["target"]))  # killed between the two renames
        elif left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def cache_folder() -> Path:
    """Return the folder of what can be rebuilt at any time: TDRO_CACHE, or tdro in the user's cache folder."""
    given = os.environ.get("TDRO_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tdro")
    return Path(given).expanduser()


def _sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
