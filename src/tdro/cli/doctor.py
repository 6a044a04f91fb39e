"""`tdro doctor [STUDY.yaml]`: is this machine ready?"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from tdro.cli.overrides import parse

if TYPE_CHECKING:
    from tdro.setup.doctor import Finding

HELP = """\
usage: tdro doctor [STUDY.yaml] [--json]

Look at versions, extras, devices, precision, attention kernels, memory, disk, cache, write rights and launcher
settings of this machine and, where a study is given, at what it needs: its base, the tokenizer's end-of-text token, its
files. Every line is OK, WARN or FAIL, with the command that mends it. Nothing is trained.

examples:
  tdro doctor
  tdro doctor study.yaml --json

  --json   machine-readable

exit code: 0 nothing failed, 1 something did.
"""
COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}


@dataclass
class Arguments:
    """What to look at."""

    study: tyro.conf.Positional[Path | None] = None
    """A study file."""
    json: bool = False
    """Machine-readable."""


def command(arguments: list[str]) -> int:
    """Examine this machine, and say what was found."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    parsed = parse(Arguments, "tdro doctor", arguments)
    from tdro.setup.doctor import examine

    findings = examine(parsed.study)
    failed = sum(finding.status == "FAIL" for finding in findings)
    if parsed.json:
        content = {"ready": not failed, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        _print(findings)
    return 1 if failed else 0


def _print(findings: list["Finding"]) -> None:
    """Print a line for each finding, and under it how to mend it."""
    from rich.table import Table
    from rich.text import Text

    from tdro.cli.display import wide_console

    console = wide_console()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            table.add_row("", Text(topic, style="bold"), "")
        table.add_row(Text(finding.status, style=COLOURS[finding.status]), finding.name, Text(finding.text))
        if finding.fix:
            table.add_row("", "", Text(f"-> {finding.fix}", style="" if finding.status != "OK" else "dim"))
    console.print(table)
    count = {status: sum(finding.status == status for finding in findings) for status in COLOURS}
    if count["FAIL"]:
        said = f"not ready: {count['FAIL']} to mend first"
    else:
        said = "ready" if not count["WARN"] else f"ready, with {count['WARN']} to look at"
    console.print(said, style="bold")
