"""Writing files so that a crash at any moment leaves the old content or the new, never a mixture.

What a killed process left behind is cleared away when the same name is written again on the same host: of processes
on other hosts, which may write to the same file system, nobody here knows whether they live.
"""

import glob
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary sibling folder that takes the place of `target` when the block ends without an error."""
    temporary = _temporary(target)
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
    temporary = _temporary(target)
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


def _temporary(target: Path) -> Path:
    """Choose the temporary name of this process beside a target, and clear away what killed ones of this host left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{target.name}.{re.sub(r'[^A-Za-z0-9]', '_', os.uname().nodename)}-"
    for left in target.parent.glob(f"{glob.escape(stem)}*"):
        owner, _, kind = left.name.removeprefix(stem).partition(".")
        if kind not in ("tmp", "old") or not owner.isdigit() or (int(owner) != os.getpid() and _is_alive(int(owner))):
            continue
        if kind == "old" and not target.exists():
            os.replace(left, target)  # killed between the two renames
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    return target.with_name(f"{stem}{os.getpid()}.tmp")


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
