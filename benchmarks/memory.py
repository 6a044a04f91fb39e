"""A meter for the peak memory of a benchmark; imports nothing heavy, for imports would count."""

import ctypes
import multiprocessing
import threading
from pathlib import Path

SAMPLE_SECONDS = 0.005


class PeakMemory:
    """Highest anonymous resident memory of this process and its workers within a block, in MB (1e6 bytes); Linux only.

    A thread samples it every 5 ms. Freed memory that the allocator still holds is given back before the block, so
    `above_start` is what the block itself needed. Files mapped into memory, such as datasets and weights, do not count.

    Attributes:
        start: Before the block.
        peak: Highest value within the block.
    """

    def __enter__(self) -> "PeakMemory":
        ctypes.CDLL(None).malloc_trim(0)
        self.start = self.peak = anonymous_mb()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous_mb())

    @property
    def above_start(self) -> float:
        """What the block needed."""
        return self.peak - self.start

    def _sample(self) -> None:
        """Look again and again."""
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, anonymous_mb())


def anonymous_mb() -> float:
    """Return the anonymous resident memory of this process and its worker processes, in MB."""
    workers = (str(child.pid) for child in multiprocessing.active_children())
    return sum(map(_anonymous_kb, ("self", *workers))) * 1024 / 1e6


def _anonymous_kb(process: str) -> int:
    """Return the anonymous resident memory of one process in units of 1024 bytes; 0 when it has ended."""
    try:
        lines = Path("/proc", process, "status").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)
