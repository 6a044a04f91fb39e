"""`tdro run|mine|reference|weights|robust|evaluate STUDY.yaml [--section.option value ...]`."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from tdro.cli.overrides import Shown, parse
from tdro.config import Study
from tdro.errors import ConfigError, EnvironmentProblem, TdroError
from tdro.study_file import load_study, study_text

if TYPE_CHECKING:
    from tdro.cli.live import Display, Mode
    from tdro.training.estimate import Estimate
    from tdro.training.pipeline import LastStage
    from tdro.training.run import Run

HELP = """\
usage: tdro {verb} STUDY.yaml [--section.option VALUE ...] [-q | --json] [--dry-run] [--debug]

{what}.

examples:
  tdro {verb} study.yaml
  tdro {verb} study.yaml --data.root ../data --seed 7

before anything runs:
  --dry-run   print plan, steps and epochs per dataset, and stop

what is shown (default: a bar and live weights in a terminal, a line every ten seconds elsewhere):
  -q, --quiet   only what came out, at the end
  --json        every event as one line of JSON, nothing else
  --debug       the traceback of an error
  NO_COLOR=1    in the environment: no colours
"""
WEIGHTS_HELP = """
several seeds:
  --seeds N        proxies to train with different seeds, to see whether the ranking holds (default: as in the file)
  --seed-steps N   steps of the further ones (default: as many as of the first)

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
the mixture (default: as in the file):
  --plan, --share and --weights stand for --robust.plan, --robust.share and --robust.weights:
  tdro robust study.yaml --plan top-share --share 0.5 --weights runs/NAME/weights/weights.json
"""
OPTIONS_HELP = """
`tdro {verb} STUDY.yaml --help` lists every option in groups, with its unit and the value it has in that file.
"""
OVERRIDES_HELP = """\
{what}.

examples:
  tdro {verb} {file} --reference.steps 500 --seed 7
  tdro {verb} {file} --mining.ranks 5 50 --model.compile

Several values follow each other; a switch takes none, and --model.no-compile turns it off. Lengths are in tokens,
learning rates and temperatures without unit, losses in nats. Every option has its default: what the file says.
"""
SHORT = {
    "weights": {"--seeds": "--weights.seeds", "--seed-steps": "--weights.seed-steps"},
    "robust": {"--plan": "--robust.plan", "--share": "--robust.share", "--weights": "--robust.weights"},
}
"""Options that a verb knows without the name of its section."""
_STAGES = {
    "mine": ("negatives",),
    "reference": ("negatives", "reference"),
    "weights": ("negatives", "reference", "similarities", "weights"),
    "robust": ("negatives", "reference", "similarities", "weights", "robust"),
    "evaluate": ("evaluation",),
}
"""Verb -> stages of its estimate; `run` has all of them."""
_LEFT_BY_ANY_START = {".lock", "events.jsonl", "status.json", "study.yaml", "resolved.yaml", "estimate.json"}


@dataclass
class Arguments(Shown):
    """A study, with options changed on the command line."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print plan, steps and epochs per dataset, and stop."""


def command(verb: str, what: str, arguments: list[str]) -> int:
    """Run a study verb."""
    if not arguments or arguments[0] in ("-h", "--help"):
        more = {"weights": WEIGHTS_HELP, "robust": ROBUST_HELP, "mine": MINE_HELP}.get(verb, "")
        print((HELP + more + OPTIONS_HELP).format(verb=verb, what=what[0].upper() + what[1:]), end="")
        return 0
    if arguments[0].startswith("-"):
        raise ConfigError("the study file comes first", saw=arguments[0], do=f"tdro {verb} STUDY.yaml [options]")
    path = Path(arguments[0])
    parsed = parse(
        Arguments,
        f"tdro {verb} {path}",
        [_in_full(argument, SHORT.get(verb, {})) for argument in arguments[1:]],
        Arguments(load_study(path)),
        OVERRIDES_HELP.format(verb=verb, what=what[0].upper() + what[1:], file=path),
    )
    if parsed.dry_run:
        return dry_run(parsed.study)
    again = shlex.join(["tdro", verb, *arguments])
    return execute(verb, parsed.study, study_text(path), parsed.mode, again)


def _in_full(argument: str, short: dict[str, str]) -> str:
    """Write an option with the name of its section."""
    name, equals, value = argument.partition("=")
    return short.get(name, name) + equals + value


def execute(verb: str, study: Study, text: str, mode: "Mode" = "full", again: str = "the same command") -> int:
    """Run a study up to a verb and print what came out.

    Args:
        verb: Where to end: `run` for all of it.
        study: The study.
        text: The study file as it was written.
        mode: What is shown.
        again: The command with which a run that was stopped goes on.
    """
    last = cast("LastStage", "evaluate" if verb == "run" else verb)
    from tdro.cli.live import Display

    talks = os.environ.get("RANK", "0") == "0"  # of several ranks the first
    sizes = {"reference": study.reference.batch_size, "robust": study.reference.batch_size}
    sizes["weights"] = study.weights.batch_size
    with Display(sys.stdout, mode if talks else "quiet", sizes) as display:
        display.note("loading libraries")
        from torch import OutOfMemoryError

        from tdro.devices import join_ranks
        from tdro.training.loop import Stopped
        from tdro.training.pipeline import evaluate_only, run_study
        from tdro.training.run import Run

        is_new = not study.run_folder.exists()
        run = Run(study, display.show, text, join_ranks())
        try:
            _introduce(run, display, verb, again)
            scores = evaluate_only(run) if verb == "evaluate" else run_study(run, last)
        except TdroError as error:
            if not (is_new and _forget(run)):
                run.journal.write("failed", verb, error=str(error))
            raise
        except OutOfMemoryError as error:
            do = (
                f"set model.micro_batch_tokens to {max(run.max_tokens // 2, 1)}, or model.gradient_checkpointing: true;"
                " results differ by rounding only, and the run goes on where it was"
            )
            raise EnvironmentProblem("the GPU's memory is full", saw=str(error), do=do) from error
        except Stopped as stopped:
            display.note(f"{stopped}; it goes on from here with: {again}")
            return 130
        except KeyboardInterrupt:
            display.note(
                f"stopped at {display.where}; what is finished is kept, and it goes on from here with: {again}"
            )
            return 130
        page = _report(run, display) if verb == "run" and talks else None
    if talks:
        _conclude(run, scores, last, mode, page)
    return 0


def dry_run(study: Study) -> int:
    """Print what a study would do."""
    from tdro.cli.display import print_plan
    from tdro.training.pipeline import planned
    from tdro.training.planning import without_weighing

    study = without_weighing(study)
    print_plan(study, planned(study))
    return 0


def _introduce(run: "Run", display: "Display", verb: str, again: str) -> None:
    """Print the banner."""
    from tdro.cli.banner import print_banner

    if run.ranks.number:
        return
    file = next((word for word in shlex.split(again) if word.endswith((".yaml", ".yml"))), "STUDY.yaml")
    estimate = _foretell(run, verb)
    print_banner(display.console, run, verb, estimate, f"tdro estimate {file} measures it in 20 seconds")
    if estimate and display.mode == "json":
        display.show({"event": "estimate", "stage": verb, **estimate.as_dict()})


def _foretell(run: "Run", verb: str) -> "Estimate | None":
    """Estimate a run from what was measured before; nothing that goes wrong here is worth a run."""
    from tdro.training.estimate import foretell

    try:
        found = foretell(run)
        return found.of(_STAGES[verb]) if found and verb in _STAGES else found
    except Exception:
        return None


def _report(run: "Run", display: "Display") -> Path | None:
    """Write the report of a run that has ended; nothing that goes wrong here is worth the run."""
    from tdro.report.page import write_report

    try:
        return write_report(run.folder).page
    except Exception as problem:
        said = str(problem).partition("\n")[0] or type(problem).__name__
        display.note(f"no report could be written: {said}; try tdro report {run.folder}", "report")
        return None


def _conclude(
    run: "Run", scores: dict[str, dict[str, dict[str, float]]] | None, last: str, mode: "Mode", page: Path | None
) -> None:
    """Print what came out."""
    from tdro.cli.display import print_outcome
    from tdro.cli.live import Display

    if mode == "json":
        outcome: dict[str, Any] = {"event": "outcome", "stage": last, "folder": str(run.folder), "scores": scores}
        Display(sys.stdout, mode).show({**outcome, "report": page and str(page)})
        return
    print_outcome(run, scores, last)
    if page:
        print(f"the report is {page}")


def _forget(run: "Run") -> bool:
    """Remove the folder of a run that was refused before it did anything; say whether that is so."""
    if run.ranks.number or any(path.name not in _LEFT_BY_ANY_START for path in run.folder.iterdir()):
        return False
    shutil.rmtree(run.folder, ignore_errors=True)
    return True
