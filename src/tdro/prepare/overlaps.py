"""What datasets of a study have in common: their hashes wait in a folder and are compared in parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdro.prepare.check_dataset import Tables
from tdro.prepare.columns import write_distinct
from tdro.prepare.findings import Findings
from tdro.prepare.repeats import Places, find_first, shared


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two datasets have in common: distinct queries, pairs (query and all positives), passages of any role."""

    first: str
    second: str
    queries: int
    pairs: int
    passages: int


def keep_tables(work: Path, name: str, tables: Tables) -> None:
    """Write the hashes of a dataset to a folder, for `compare`."""
    for kind, rows in (("queries", tables.queries_N), ("pairs", tables.pairs_N)):
        np.save(work / f"{name}.{kind}.rows.npy", rows)
        write_distinct(rows, work / f"{name}.{kind}.npy")
    write_distinct(tables.passages_P, work / f"{name}.passages.npy")


def compare(names: list[str], work: Path, places: Mapping[str, Places]) -> tuple[tuple[Overlap, ...], list[Findings]]:
    """Count what datasets share, and say where it is first found.

    Args:
        names: The datasets, in the order of the study.
        work: Folder with what `keep_tables` wrote of each.
        places: Dataset -> where its rows stand.

    Returns:
        The pairs of datasets that share something; findings in the later dataset of each pair.
    """
    kinds = ("queries", "pairs", "passages")
    found = {kind: shared({name: _load(work, name, kind) for name in names}) for kind in kinds}
    findings = {name: Findings(name) for name in names}
    for kind in ("pairs", "queries"):
        wanted: dict[str, list[int]] = {name: [] for name in names}
        for pair, common in found[kind].items():
            for name in pair:
                wanted[name] += common.examples
        first = {name: find_first(_load(work, name, f"{kind}.rows"), wanted[name]) for name in names if wanted[name]}
        for (earlier, later), common in found[kind].items():
            for example in common.examples:
                place = f"{places[later][first[later][example]]}:query"
                other = places[earlier][first[earlier][example]]
                findings[later].add(f"shared-{kind}", place, f"{common.number:,} also in {earlier}: {other}")
            findings[later].count(f"shared-{kind}", common.number - len(common.examples))
    pairs = sorted({pair for kind in kinds for pair in found[kind]}, key=lambda pair: [names.index(n) for n in pair])
    numbers = ([found[kind][pair].number if pair in found[kind] else 0 for kind in kinds] for pair in pairs)
    overlaps = tuple(Overlap(*pair, *row) for pair, row in zip(pairs, numbers, strict=True))
    return overlaps, [found for found in findings.values() if found.counts]


def _load(work: Path, name: str, kind: str) -> np.ndarray:
    """Map the hashes of a dataset."""
    return np.load(work / f"{name}.{kind}.npy", mmap_mode="r")
