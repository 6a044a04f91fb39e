"""Disks that are full or read-only in the middle of a study: a clear end, and nothing lost once there is room.

A limit of the process on the size of files (EFBIG) stands for a full disk anywhere; a small tmpfs that is filled up
(ENOSPC) is one. tmpfs and read-only folders need root, who ignores permissions and therefore mounts: in a table of
mounts that this process does not share, so that nothing stays behind.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from torture_outcome import differences, outcome, strays
from torture_starts import Act, Moment, Start, all_ended, no_room

WRITING = {
    "dataset": r"write cache/datasets/.*rows\.arrow",
    "token cache": r"write cache/tokens/.*tokens\.json",
    "embeddings": r"write cache/embeddings/.*shard-000000\.npy",
    "similarities": r"write cache/similarities/.*similarities\.float32",
    "corpus of mining": r"os\.mkdir run/data/negatives/\.two\.jsonl\.mining-0/\.corpus",
    "journal": r"write run/events\.jsonl #10",
    "checkpoint": r"os\.mkdir run/weights/checkpoints/\.step-00000004",
    "model": r"os\.mkdir run/proxy/\.model",
    "weights": r"write run/weights/\.weights\.json",
    "marker": r"write run/robust/\.done\.json",
    "ranking": r"write run/evaluation/proxy/words/\.run\.trec\.gz",
}
"""What is being written when the disk gets full."""

ON_TMPFS = ("similarities", "embeddings", "checkpoint", "model", "journal")
QUICK = ("checkpoint", "journal")
TMPFS = "size=16m"
FILLER = "filler"


def disk_cases(
    work: Path, expected: dict[str, object], moments: Sequence[Moment], quick: bool = False
) -> dict[str, str]:
    """Run all cases.

    Args:
        work: Folder of the places; `study.yaml` is above it.
        expected: Outcome of the undisturbed run.
        moments: Its calls on the file system.
        quick: Only a few cases.

    Returns:
        Case -> "ok", "skipped", or what was wrong.
    """
    work.mkdir(exist_ok=True)
    shutil.copy(work.parent / "study.yaml", work)
    when = {name: next(m for m in moments if re.match(pattern, str(m))) for name, pattern in WRITING.items()}
    found = {}
    for number, name in enumerate(QUICK if quick else WRITING):
        place = work / f"limit-{number}"
        said = _full(place, when[name], no_room)
        found[f"limit, {name}"] = _goes_on(place, expected) if said == "ok" else said
    mounts = _own_mounts()
    for number, name in enumerate(QUICK[:1] if quick else ON_TMPFS):
        found[f"tmpfs, {name}"] = _on_tmpfs(work / f"tmpfs-{number}", when[name], expected) if mounts else "skipped"
    for part in ("run",) if quick else ("run", "cache"):
        found[f"read-only {part}"] = _read_only(work / f"read-only-{part}", part, expected) if mounts else "skipped"
    for name, said in found.items():
        print(f"disk: {name}: {said}", flush=True)
    return found


def _full(place: Path, moment: Moment, act: Act) -> str:
    """Start the study, and let the disk be full from a moment on."""
    with all_ended(Start(place, moment=moment, act=act)) as start:
        codes, printed = start.end()
    if codes == [0]:
        return f"{moment} never came"
    checkpoints = list((place / "run").glob("*/checkpoints/step-*"))
    if "/.step-" in moment.path and [path.name for path in checkpoints] != ["step-00000002"]:
        return f"the checkpoint before is lost: {checkpoints}"
    return _clear_end(codes, printed)


def _clear_end(codes: list[int], printed: str) -> str:
    """Say whether a start has ended with one block of text and the exit code of a user's or the machine's problem."""
    blocks = re.findall(r"^error: ", printed, flags=re.MULTILINE)
    if codes[0] not in (2, 3) or len(blocks) != 1 or "Traceback" in printed or "Exception ignored" in printed:
        return f"ended with {codes[0]} and printed {printed[-800:]!r}"
    return "ok"


def _goes_on(place: Path, expected: dict[str, object]) -> str:
    """Start the study again, with room."""
    with all_ended(Start(place)) as start:
        codes, printed = start.end()
    if codes != [0]:
        return f"started again, it ended with {codes[0]} and printed {printed[-800:]!r}"
    wrong = differences(expected, outcome(place / "run")) + [f"left {name}" for name in strays(place)]
    if not wrong:
        shutil.rmtree(place, ignore_errors=True)  # a mount itself stays
    return "; ".join(wrong) or "ok"


def _on_tmpfs(place: Path, moment: Moment, expected: dict[str, object]) -> str:
    """Fill up a tmpfs at a moment, and go on after the room is there again."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", TMPFS, "tmpfs", place], check=True)

    def fill(_: str) -> None:
        with open(place / FILLER, "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    try:
        said = _full(place, moment, fill)
        (place / FILLER).unlink(missing_ok=True)
        return _goes_on(place, expected) if said == "ok" else said
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def _read_only(place: Path, part: str, expected: dict[str, object]) -> str:
    """Start the study with a run folder or a cache that cannot be written; after a stop, go on once it can be."""
    folder = place / part
    folder.mkdir(parents=True)
    with all_ended(Start(place)) as start:
        start.wait(2)
        start.signal(signal.SIGKILL)
        start.end()
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    with all_ended(Start(place)) as start:
        said = _clear_end(*start.end())
    subprocess.run(["umount", folder], check=True)
    return _goes_on(place, expected) if said == "ok" else said


def _own_mounts() -> bool:
    """Take a table of mounts that nobody shares; False where that is not allowed."""
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(0x00020000):  # CLONE_NEWNS
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True).returncode == 0
