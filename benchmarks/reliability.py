"""benchmarks/results/reliability.json: one file to which several benchmarks each give their figures."""

import json
from collections.abc import Mapping
from pathlib import Path

from report import RESULTS, write_result

NAME = "reliability"


def merge_result(
    part: str,
    figures: Mapping[str, float],
    settings: Mapping[str, object],
    details: Mapping[str, object],
    folder: Path = RESULTS,
) -> Path:
    """Put the figures of one part into the file, and leave those of the other parts as they are.

    Date, commit and machine of the file are those of the part that was written last.

    Args:
        part: Name of the part, for example "torture"; its settings and details are kept under it.
        figures: Its figures; they replace those of the same names.
        settings: What was asked for.
        details: Everything else that was measured.
        folder: Where the file is.

    Returns:
        The file.
    """
    try:
        known = json.loads((folder / f"{NAME}.json").read_text("utf-8"))
    except FileNotFoundError:
        known = {"figures": {}, "settings": {}, "details": {}}
    return write_result(
        NAME,
        {**known["figures"], **figures},
        {**known["settings"], part: dict(settings)},
        {**known["details"], part: dict(details)},
        folder,
    )
