"""Keeping other processes out: locks that vanish with the process that holds them, whatever ends it.

A lock is `flock` on a small file, which stays behind and means nothing by itself. Where a file system has no locks,
nobody is kept out, and `Lock.guards` says so.
"""

import errno
import fcntl
import hashlib
import json
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tdro.errors import EnvironmentProblem
from tdro.files import cache_folder

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class Lock:
    """A lock that this process holds for as long as the object lives.

    Attributes:
        guards: Whether it keeps others out: False where the file system has no locks.
    """

    def __init__(self, handle: int, guards: bool) -> None:
        self.guards = guards
        weakref.finalize(self, _close, handle)


_held: weakref.WeakValueDictionary[str, Lock] = weakref.WeakValueDictionary()
_handles: set[int] = set()


def hold(path: Path, what: str, instead: str) -> Lock:
    """Hold a lock, or say who does.

    Within a process it may be held several times: it ends with the last.

    Args:
        path: Of the lock's file; made if absent.
        what: What the lock keeps others from, for the error: "run folder".
        instead: What a user can do who does not want to wait: "choose another folder with --output".

    Returns:
        The lock: it is let go with the last reference to it.

    Raises:
        EnvironmentProblem: Another process holds it.
        OSError: The file cannot be written.
    """
    name = os.path.realpath(path)
    if (lock := _held.get(name)) is None:
        handle = _open(path)
        try:
            lock = Lock(handle, _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except OSError as error:
            holder = _holder(handle)
            _close(handle)
            if not isinstance(error, BlockingIOError):
                raise
            do = f"wait until it has ended, or {instead}"
            raise EnvironmentProblem(f"{what} is in use by {holder}", where=path.parent, do=do) from None
        _sign(handle)
        _held[name] = lock
    return lock


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process or thread is in a block of this path, and keep them out of this one.

    Where the file system has no locks nothing is waited for: what is written inside must be written atomically.

    Args:
        path: Of the lock's file; made if absent.

    Raises:
        OSError: The file cannot be written.
    """
    handle = _open(path)
    try:
        _flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        _close(handle)


def lock_for(place: Path) -> Path:
    """Name the lock of a place in a user's own folder: it is in the cache, so that no lock is left beside the place."""
    name = hashlib.blake2b(os.path.realpath(place).encode(), digest_size=8).hexdigest()
    return cache_folder() / "locks" / f"{name}.lock"


def _open(path: Path) -> int:
    """Open the file of a lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _handles.add(handle)
    return handle


def _close(handle: int) -> None:
    """Close the file of a lock, unless this process has inherited it and closed it already."""
    if handle in _handles:
        _handles.remove(handle)
        os.close(handle)


def _flock(handle: int, how: int) -> bool:
    """Lock a file; tell whether the file system can."""
    try:
        fcntl.flock(handle, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _sign(handle: int) -> None:
    """Write into a lock's file who holds it."""
    since = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"
    about = {"process": os.getpid(), "host": os.uname().nodename, "since": since}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(about).encode(), 0)


def _holder(handle: int) -> str:
    """Say who holds a lock."""
    try:
        about = json.loads(os.pread(handle, 4096, 0))
        return f"process {about['process']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is about to sign
        return "another process"


def _forget() -> None:
    """Leave the locks to the parent: a forked child that lives longer would keep them."""
    for handle in _handles:
        os.close(handle)
    _handles.clear()
    _held.clear()


os.register_at_fork(after_in_child=_forget)
