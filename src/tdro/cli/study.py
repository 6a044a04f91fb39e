"""`tdro run|mine|reference|weights|robust|evaluate STUDY.yaml [--section.option value ...]`."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import tyro

from tdro.config import Study
from tdro.errors import ConfigError, EnvironmentProblem, TdroError
from tdro.study_file import load_study

if TYPE_CHECKING:
    from tdro.training.pipeline import LastStage

HELP = """\
usage: tdro {verb} STUDY.yaml [--section.option VALUE ...] [--dry-run] [--debug]

{what}.

examples:
  tdro {verb} study.yaml
  tdro {verb} study.yaml --data.root ../data --seed 7

  --dry-run   print plan, steps and epochs per dataset, and stop
  --debug     show the traceback of an error

`tdro {verb} STUDY.yaml --help` lists every option with the value it has in that file.
"""
WEIGHTS_HELP = """
  --seeds N   train proxies with N seeds, to see whether the ranking holds

without training, from what a run or anybody else recorded:
  tdro weights --replay runs/NAME --weights.update anchored
  tdro weights --from-losses losses.parquet --weights.measure excess --save w.json
  tdro run study.yaml --robust.weights w.json
"""
MINE_HELP = """
without a study (see tdro mine FILE --help):
  tdro mine rows.jsonl --encoder FOLDER --out mined.jsonl
"""
ROBUST_HELP = """
  --plan, --share and --weights stand for --robust.plan, --robust.share and --robust.weights:
  tdro robust study.yaml --plan reweight --weights runs/NAME/weights/weights.json
"""
SHORT = {
    "weights": {"--seeds": "--weights.seeds", "--seed-steps": "--weights.seed-steps"},
    "robust": {"--plan": "--robust.plan", "--share": "--robust.share", "--weights": "--robust.weights"},
}
"""Options that a verb knows without the name of its section."""


@dataclass
class Arguments:
    """A study, with options changed on the command line."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print plan, steps and epochs per dataset, and stop."""


def command(verb: str, what: str, arguments: list[str]) -> int:
    """Run a study verb."""
    if not arguments or arguments[0] in ("-h", "--help"):
        more = {"weights": WEIGHTS_HELP, "robust": ROBUST_HELP, "mine": MINE_HELP}.get(verb, "")
        print(HELP.format(verb=verb, what=what[0].upper() + what[1:]) + more, end="")
        return 0
    if arguments[0].startswith("-"):
        raise ConfigError("the study file comes first", saw=arguments[0], do=f"tdro {verb} STUDY.yaml [options]")
    path = Path(arguments[0])
    parsed = tyro.cli(
        Arguments,
        prog=f"tdro {verb} {path}",
        args=[_in_full(argument, SHORT.get(verb, {})) for argument in arguments[1:]],
        default=Arguments(load_study(path)),
    )
    if parsed.dry_run:
        return dry_run(parsed.study)
    return execute(verb, parsed.study, path.read_text(encoding="utf-8-sig"))


def _in_full(argument: str, short: dict[str, str]) -> str:
    """Write an option with the name of its section."""
    name, equals, value = argument.partition("=")
    return short.get(name, name) + equals + value


def execute(verb: str, study: Study, text: str) -> int:
    """Run a study up to a verb and print what came out."""
    last = cast("LastStage", "evaluate" if verb == "run" else verb)
    from tdro.cli.display import Display, print_outcome

    talks = os.environ.get("RANK", "0") == "0"  # of several ranks the first
    with Display(sys.stdout, quiet=not talks) as display:
        display.note("loading libraries")
        from torch import OutOfMemoryError

        from tdro.devices import join_ranks
        from tdro.training.loop import Stopped
        from tdro.training.pipeline import evaluate_only, run_study
        from tdro.training.run import Run

        run = Run(study, display.show, text, join_ranks())
        several = f" x {run.ranks.count}" if run.ranks.count > 1 else ""
        display.note(f"study {study.name} -> {run.folder} (seed {study.seed}, {run.device.name}{several})")
        try:
            scores = evaluate_only(run) if verb == "evaluate" else run_study(run, last)
        except TdroError as error:
            run.journal.write("failed", verb, error=str(error))
            raise
        except OutOfMemoryError as error:
            do = (
                f"set model.micro_batch_tokens to {max(run.max_tokens // 2, 1)}, or model.gradient_checkpointing: true;"
                " results differ by rounding only, and the run goes on where it was"
            )
            raise EnvironmentProblem("the GPU's memory is full", saw=str(error), do=do) from error
        except Stopped as stopped:
            display.note(f"{stopped}; the same command goes on from here")
            return 130
    if talks:
        print_outcome(run, scores, last)
    return 0


def dry_run(study: Study) -> int:
    """Print what a study would do."""
    from tdro.cli.display import print_plan
    from tdro.training.pipeline import planned

    print_plan(study, planned(study))
    return 0
