"""`tdro config show|diff|schema`: the options of studies."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tdro.cli.overrides import parse
from tdro.config import Study
from tdro.errors import ConfigError

HELP = """\
usage: tdro config show STUDY [--changed] [--section.option VALUE ...]
       tdro config diff A B
       tdro config schema [--output FILE]

Show every option of a study, compare two studies, or describe study files for editors. STUDY, A and B are study files
or run folders.

examples:
  tdro config show study.yaml --weights.step-size 0.05
  tdro config diff runs/first study.yaml

  show      all options as YAML, ready to be a study file; those that differ from the default are marked with it; a
            dataset or task stands in one line, with the options that differ
            --changed       only those that differ (default: all options)
  diff      what differs, and which stages of A's run `tdro run B --output A` would do again
  schema    JSON schema of a study file: types, limits, defaults and meaning of every option
            --output FILE   write it there (default: to the terminal). With the first line
                            # yaml-language-server: $schema=FILE
                            editors complete and check a study file
"""
VERBS = ("show", "diff", "schema")


@dataclass
class Shown:
    """A study, with options changed on the command line."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    changed: bool = False
    """Only options that differ from their defaults."""


@dataclass
class Schema:
    """Where the schema goes."""

    output: str = ""
    """File; empty: to the terminal."""


def command(arguments: list[str]) -> int:
    """Show, compare or describe."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise ConfigError("tdro config does not know this", saw=verb, do=f"use one of: {', '.join(VERBS)}")
    if verb == "schema":
        return _schema(parse(Schema, "tdro config schema", rest))
    if not rest or rest[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    return _show(rest) if verb == "show" else _diff(rest)


def _show(arguments: list[str]) -> int:
    """Print every option of a study."""
    if arguments[0].startswith("-"):
        raise ConfigError("the study comes first", saw=arguments[0], do="tdro config show STUDY [options]")
    from tdro.setup.options import open_study, show

    path = Path(arguments[0])
    study, _ = open_study(path)
    parsed = parse(Shown, f"tdro config show {path}", arguments[1:], Shown(study))
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for line, default in show(parsed.study, only_changed=parsed.changed):
        console.print(Text(line, "bold" if default else "") + Text(f"  # default: {default}" if default else "", "dim"))
    return 0


def _diff(arguments: list[str]) -> int:
    """Print what differs between two studies."""
    if len(arguments) != 2:
        raise ConfigError("two studies are compared", saw=arguments, do="tdro config diff A B")
    from rich.text import Text

    from tdro.cli.display import wide_console
    from tdro.setup.differences import STAGES, differences, done_again
    from tdro.setup.options import open_study

    (before, ran_before), (after, ran_after) = (open_study(Path(name)) for name in arguments)
    found = differences(before, after, ran_before, ran_after)
    console = wide_console()
    if not found:
        console.print("no option differs")
        return 0
    from rich.table import Table

    table = Table("what", box=None, header_style="bold")
    for column in (*arguments, "done again from"):
        table.add_column(column, overflow="fold")
    for one in found:
        again_from = f"{one.first} {one.condition}".strip() or "nothing"
        table.add_row(*(Text(cell or "-", overflow="fold") for cell in (one.name, one.before, one.after)), again_from)
    console.print(table)
    again = done_again(found, after)
    stays = [stage for stage in STAGES if stage not in again]
    console.print(f"done again, at most: {', '.join(again) or 'nothing'}; kept: {', '.join(stays) or 'nothing'}")
    if before.run_folder != after.run_folder:
        console.print(
            f"kept only in the same run folder: add --output {before.run_folder}; as it is, {after.run_folder} is used",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    return 0


def _schema(parsed: Schema) -> int:
    """Print or write the schema."""
    from tdro.setup.options import study_schema

    text = json.dumps(study_schema(), indent=1, ensure_ascii=False)
    if not parsed.output:
        print(text)
        return 0
    from tdro.files import write_text

    write_text(Path(parsed.output), text + "\n")
    print(f"schema in {parsed.output}; begin study files with\n# yaml-language-server: $schema={parsed.output}")
    return 0
