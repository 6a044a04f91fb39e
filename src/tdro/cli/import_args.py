"""`tdro import-args SCRIPT [...]`: a study out of the released tDRO code's arguments."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from tdro.cli.overrides import parse
from tdro.errors import ConfigError

HELP = """\
usage: tdro import-args SCRIPT [SCRIPT ...] [--output study.yaml] [options]

Turn arguments of the released tDRO code into a study file: shell scripts that launch a training with torchrun,
accelerate, deepspeed or python, JSON or YAML files of arguments, and the model_args.yaml of a saved model. Scripts of
the reference, of stage 1 and of the robust model become one study. Nothing is run.

examples:
  tdro import-args scripts/s0.sh scripts/s1.sh scripts/s2.sh --set 1=top70 --output study.yaml
  tdro import-args arguments.json --processes 8
  tdro import-args model_args.yaml --data-root my-data --output study.yaml

  --output FILE      where the study goes (default: it is printed)
  --force            write over FILE
  --data-root DIR    folder of the datasets (default: --preprocessed_dir of the scripts)
  --name NAME        of the study (default: the last part of --output_dir)
  --processes N      how many the trainings had (default: as the scripts say)
  --set NAME=VALUE   a variable that a script takes from outside; 1, 2, ... are its arguments
  --ignore-unknown   leave out arguments that the released code did not have

The file has a line for everything that was dead or broken there, or that is not carried over; what every argument has
become is in docs/released-options.md.
"""


@dataclass
class Arguments:
    """Turn released arguments into a study file."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Scripts and files of arguments."""
    output: str = ""
    """Study file to write."""
    force: bool = False
    """Write over it."""
    data_root: str = ""
    """Folder of the datasets."""
    name: str = ""
    """Name of the study."""
    processes: int | None = None
    """Processes of the trainings."""
    set: tuple[str, ...] = ()
    """NAME=VALUE for the scripts."""
    ignore_unknown: bool = False
    """Leave out unknown arguments."""


def command(arguments: list[str]) -> int:
    """Write or print a study."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    parsed = parse(Arguments, "tdro import-args", arguments)
    if not parsed.sources:
        raise ConfigError("no script is given", do="tdro import-args SCRIPT [SCRIPT ...]")
    if parsed.processes is not None and parsed.processes < 1:
        raise ConfigError("processes are at least 1", where="--processes", saw=parsed.processes, do="give 1 or more")
    if parsed.output and Path(parsed.output).exists() and not parsed.force:
        do = "choose another --output, or add --force"
        raise ConfigError("the study file is there already", where=parsed.output, do=do)
    from tdro.setup.released_args import import_released

    imported = import_released(
        [Path(source) for source in parsed.sources],
        name=parsed.name,
        data_root=parsed.data_root,
        processes=parsed.processes,
        variables=_variables(parsed.set),
        ignore_unknown=parsed.ignore_unknown,
    )
    if not parsed.output:
        print(imported.text, end="")
        return 0
    from tdro.files import write_text

    write_text(Path(parsed.output), imported.text)
    for line in imported.lost:
        print(f"not carried over: {line}")
    stages = ", ".join(f"{stage} from {file}" for stage, file in imported.stages.items())
    print(f"{stages}; {len(imported.study.data.datasets)} datasets -> {parsed.output}")
    print(f"{len(imported.notes)} more lines at its top say what was dead or broken there, or is otherwise here")
    print(f"next: tdro run {parsed.output} --dry-run")
    return 0


def _variables(given: tuple[str, ...]) -> dict[str, str]:
    """Read NAME=VALUE."""
    variables = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError("not NAME=VALUE", where="--set", saw=text, do="write --set NAME=VALUE")
        variables[name] = value
    return variables
