"""Writes what a benchmark has found as `benchmarks/results/NAME.json`, with everything needed to judge it.

Import this module at the top of a benchmark: the load of the machine is noted at that moment, before the run.
"""

import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from tdro.files import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tdro", "torch", "transformers", "sentence-transformers", "tokenizers", "numpy", "pyarrow")
LOAD_BEFORE = os.getloadavg()


def write_result(
    name: str,
    figures: Mapping[str, float],
    settings: Mapping[str, object],
    details: Mapping[str, object] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Write one result file.

    Args:
        name: Name of the file, without ending.
        figures: The numbers that are compared from run to run; finite.
        settings: What was asked for.
        details: Everything else that was measured.
        folder: Where the file goes.

    Returns:
        The file.

    Raises:
        ValueError: A figure is not a finite number.
    """
    unusable = {key: value for key, value in figures.items() if not math.isfinite(value)}
    if unusable:
        raise ValueError(f"figures must be finite numbers: {unusable}")
    target = folder / f"{name}.json"
    result = {
        "figures": {key: float(f"{value:.6g}") for key, value in figures.items()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions()},
        "settings": dict(settings),
    }
    write_json(target, {**result, "details": details} if details is not None else result)
    return target


def commit() -> str:
    """Return the commit of the repository and whether its files are as committed, "unknown" outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return f"{git('rev-parse', 'HEAD')} {'changed' if git('status', '--porcelain') else 'clean'}"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def machine() -> dict[str, object]:
    """Describe the machine, and how busy it was before the benchmark began."""
    found: dict[str, object] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_before": [round(load, 2) for load in LOAD_BEFORE],
        "system": platform.platform(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Return the versions of the packages that matter, as far as they are there."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
