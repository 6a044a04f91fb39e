"""`tdro report RUN`: the page that says what a run has shown."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from tdro.cli.overrides import parse

HELP = """\
usage: tdro report RUN [--output DIR]

Write what a run has shown as one page, index.html, that needs no network, and as report.md: verdict, weights and
their health, losses, the plan, advice on every dataset, scores with tests, other plans to try, data, cost, provenance.
The run may be unfinished; it is only read.

examples:
  tdro report runs/NAME
  tdro report runs/NAME --output public/NAME

  --output DIR   where the two files go (default: report in the run folder)

docs/report.md explains every part.
"""


@dataclass
class Arguments:
    """A run, and where its report goes."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    output: Path | None = None
    """Folder for index.html and report.md; report in the run folder unless given."""


def command(arguments: list[str]) -> int:
    """Write the report of a run, and say where it is."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    parsed = parse(Arguments, "tdro report", arguments)
    from tdro.report.page import write_report

    written = write_report(parsed.run, parsed.output)
    print(written.headline)
    print(f"{written.page}\n{written.text}")
    return 0
