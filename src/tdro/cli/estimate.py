"""`tdro estimate STUDY.yaml`: what a study will take on this machine, before it starts."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from tdro.cli.overrides import parse
from tdro.config import Study
from tdro.errors import ConfigError
from tdro.study_file import load_study

if TYPE_CHECKING:
    from tdro.training.estimate import Estimate

HELP = """\
usage: tdro estimate STUDY.yaml [--section.option VALUE ...] [--workers N] [--prices FILE] [--again] [--json]

Time the study's own model on the study's own texts for some twenty seconds, and say what every stage will take: time
with a range, memory, disk, energy and money. Finished stages count 0. What was measured is kept, so that the next
estimate takes no time, also with other steps or batch sizes; `tdro run` shows it before it starts.

examples:
  tdro estimate study.yaml
  tdro estimate study.yaml --reference.steps 2000 --prices prices.yaml

  --workers N     GPUs, or machines without one, that will share the work (default: 1)
  --prices FILE   YAML with watts and prices per hour (default: round assumptions; docs/estimate.md shows the file)
  --again         measure again, for example because the machine was busy
  --json          machine-readable
"""
NARROW = 64
"""Columns of a terminal below which memory, disk and reasons are left out of the table."""
BUSY = 1.5
"""Load per core from which the machine was too busy to be measured."""


@dataclass
class Arguments:
    """A study, with options changed on the command line."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    workers: int = 1
    """GPUs, or machines without one, that will share the work."""
    prices: Path | None = None
    """YAML with watts and prices per hour; by default round assumptions."""
    again: bool = False
    """Measure again."""
    json: bool = False
    """Machine-readable."""


def command(arguments: list[str]) -> int:
    """Estimate a study and print that."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0].startswith("-"):
        raise ConfigError("the study file comes first", saw=arguments[0], do="tdro estimate STUDY.yaml [options]")
    path = Path(arguments[0])
    parsed = parse(Arguments, f"tdro estimate {path}", arguments[1:], Arguments(load_study(path)))
    if parsed.workers < 1:
        raise ConfigError("there is at least one worker", where="--workers", saw=parsed.workers)
    from tdro.training.estimate import estimate
    from tdro.training.prices import read_prices

    def tell(text: str) -> None:
        if not parsed.json:
            print(text, flush=True)

    prices = read_prices(parsed.prices)
    found = estimate(parsed.study, workers=parsed.workers, prices=prices, again=parsed.again, listener=tell)
    if parsed.json:
        print(json.dumps({"study": parsed.study.name, **found.as_dict()}, indent=1, ensure_ascii=False))
    else:
        _print(found)
    return 0


def _print(found: "Estimate") -> None:
    """Print a table of stages, and what they add up to."""
    from rich.table import Table

    from tdro.cli.display import wide_console
    from tdro.training.estimate import EFFICIENCY, duration

    console = wide_console()
    narrow = console.width < NARROW
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("stage", "time", "range", *(() if narrow else ("memory", "disk", "what takes the time"))):
        justify: Literal["left", "right"] = "right" if name in ("time", "memory", "disk") else "left"
        table.add_column(name, justify=justify, no_wrap=not name.startswith("what"), overflow="fold")
    for name, stage in found.stages.items():
        between = f"{duration(stage.low)} to {duration(stage.high)}"
        if not stage.left:
            between = f"finished{f', took {duration(stage.real)}' if stage.real is not None else ''}"
        more = (f"{stage.memory_gb:.1f} GB", f"{stage.disk_gb:.2f} GB", stage.dominates)
        table.add_row(name, duration(stage.left), between, *(() if narrow else more))
    console.print(table)
    console.print(f"\nin all: {found}", markup=False)
    console.print(f"        assumed: {found.bill.assumed}, see --prices", markup=False)
    if found.workers > 1:
        console.print(
            f"        {found.workers} workers share the work at an assumed {EFFICIENCY:.0%} of their speed each"
        )
    made = found.calibration
    console.print(
        f"        measured in {made.speeds.seconds:.0f} s on {found.device}, {made.made[:16].replace('T', ' ')}"
    )
    if made.speeds.cut_short:
        console.print("WARNING: measuring was cut short, for time was up: some passes were not timed at all lengths")
    if made.speeds.busy > BUSY:
        cores = os.cpu_count() or 1
        load = f"load {made.speeds.busy * cores:.1f} on {cores} cores"
        do = "measure with --again when it is not; on a shared machine try OMP_NUM_THREADS=1"
        console.print(f"WARNING: the machine was busy ({load}); {do}")
