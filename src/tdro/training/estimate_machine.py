"""How fast this machine searches and writes, whatever the model."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tdro.devices import Device
from tdro.files import temporary_name
from tdro.retrieval.search import search

_DISK = 1 << 25  # bytes
_SEARCH = (64, 16384)  # queries and passages


def time_search(dimension: int, device: Device, clock: Callable[[], float]) -> float:
    """Time exact search; seconds per pair."""
    queries, passages = _SEARCH
    random = np.random.Generator(np.random.Philox(0))
    query_QD, passage_PD = (random.standard_normal((n, dimension), np.float32) for n in (queries, passages))
    places_P = np.arange(passages)
    search(query_QD[:1], passage_PD, places_P, 1000, device=device.name)
    began = clock()
    search(query_QD, passage_PD, places_P, 1000, device=device.name)
    return (clock() - began) / (queries * passages)


def time_disk(folder: Path, clock: Callable[[], float]) -> float:
    """Time writing; bytes per second. A folder that cannot be written to is no problem of this module's."""
    content = os.urandom(1 << 20) * (_DISK >> 20)
    target = temporary_name(folder / "estimate")
    began = clock()
    try:
        with target.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return _DISK / max(clock() - began, 1e-9)
    finally:
        target.unlink(missing_ok=True)
