"""Downloading one file over HTTP, so that what has arrived is never asked for twice."""

import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tdro import __version__
from tdro.errors import EnvironmentProblem

TRIES = 5
"""Attempts in a row without a single byte."""
PAUSE = 1.0
"""Seconds before the second attempt; doubled before each further one."""
TIMEOUT = 60.0
"""Seconds that a server may be silent."""

_CHUNK = 1 << 20
_PASSING = {408, 425, 429, 500, 502, 503, 504}


def download(url: str, part: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Fill `part` with a file of a web server, going on behind the bytes that it has.

    A transfer that breaks off goes on by itself as long as bytes come. Proxies are those of the environment.

    Args:
        url: The file.
        part: Where the bytes go; what is there must have come from the same address. It stays when this fails.
        target: Where a user can put the file who fetches it by other means; for messages.
        progress: Called with (bytes there, bytes of the file, or 0 where the server does not say).

    Raises:
        EnvironmentProblem: The server cannot be reached, refuses, or breaks off again and again; the disk is full.
    """
    failures = 0
    while True:
        before = _size(part)
        try:
            if _transfer(url, part, progress):
                return
            problem = "the transfer ended early"
        except urllib.error.HTTPError as error:
            problem = f"{error.code} {error.reason}"
            if error.code not in _PASSING:
                do = f"look for the file elsewhere and put it at {target}"
                raise EnvironmentProblem("server refuses the file", where=url, saw=problem, do=do) from error
        except (OSError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        failures = failures + 1 if _size(part) <= before else 0
        if failures == TRIES:
            do = (
                "check the network (HTTPS_PROXY is read); the same command goes on where this one stopped. "
                f"Or fetch the file elsewhere and put it at {target}"
            )
            raise EnvironmentProblem("file cannot be downloaded", where=url, saw=problem, do=do)
        time.sleep(PAUSE * 2 ** max(failures - 1, 0))


def require_space(folder: Path, size: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        EnvironmentProblem: Fewer than `size` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        saw = f"{size / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        raise EnvironmentProblem("disk is too full", where=folder, saw=saw, do="free some space, or use another folder")


def _transfer(url: str, part: Path, progress: Callable[[int, int], None]) -> bool:
    """Ask once for what is missing and append it; say whether the file is whole now."""
    have = _size(part)
    headers = {"User-Agent": f"tdro/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        if error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
            return True
        part.unlink()  # longer than the file is now
        return False
    with response:
        start = re.match(rf"bytes {have}-", response.headers.get("Content-Range", ""))
        goes_on = response.status == 206 and start is not None
        if response.status == 206 and not goes_on:
            part.unlink(missing_ok=True)
            return False
        have = have if goes_on else 0  # a server that cannot go on sends the whole file
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else 0
        require_space(part.parent, total - have)
        with part.open("ab" if goes_on else "wb") as file:
            while chunk := response.read(_CHUNK):
                _write(file.write, chunk, part)
                have += len(chunk)
                progress(have, total)
    return not length or have == total


def _write(write: Callable[[bytes], object], chunk: bytes, part: Path) -> None:
    """Write, and tell a disk that refuses from a network that does."""
    try:
        write(chunk)
    except OSError as problem:
        do = "free some space, or use another folder"
        raise EnvironmentProblem("the disk refuses the file", where=part, saw=str(problem), do=do) from problem


def _size(file: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return file.stat().st_size if file.exists() else 0
