"""Starts the ranks of a test as a launcher does: processes that find each other through their environment."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def start_ranks(command: list[str], count: int) -> list[subprocess.Popen[str]]:
    """Start a Python command line as so many ranks, each with one thread and no GPU; gloo joins them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tests = str(Path(__file__).parent)
    found = []
    for number in range(count):
        launched = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in launched.items()}
        environment |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = os.pathsep.join([tests, environment.get("PYTHONPATH", "")])
        found.append(
            subprocess.Popen(
                [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return found


def run_ranks(command: list[str], count: int, timeout: float = 240) -> None:
    """Start ranks and wait until all have ended well.

    Raises:
        AssertionError: One has not; with what it has printed.
    """
    ranks = start_ranks(command, count)
    try:
        printed = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(printed)
