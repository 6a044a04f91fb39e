"""`tdro usefulness STUDY.yaml`: what each dataset is worth, by training on many random mixtures."""

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from tdro.cli.overrides import Shown, parse
from tdro.config import Study
from tdro.errors import ConfigError, TdroError
from tdro.study_file import load_study, study_text

if TYPE_CHECKING:
    from tdro.evaluation.regression import Usefulness
    from tdro.training.estimate import Estimate
    from tdro.training.run import Run
    from tdro.training.usefulness import MixtureScores

HELP = """\
usage: tdro usefulness STUDY.yaml [--mixtures N] [--section.option VALUE ...] [--dry-run] [-q | --json]

Train the base with many random mixtures of the study's datasets, score each on the study's tasks, and regress the
scores on the shares: what every dataset is worth, how sure that is, and the mixture that promises most. This is the
expensive answer: as many trainings as mixtures. It goes on where it was stopped, and more mixtures add to the first.

examples:
  tdro usefulness study.yaml --dry-run
  tdro usefulness study.yaml --mixtures 60 --tasks scifact cranfield
  tdro run study.yaml --robust.plan reweight --robust.weights runs/NAME/usefulness/best.json

  --mixtures N       random mixtures (default: 60)
  --concentration C  of their Dirichlet distribution: small, few datasets make up a mixture; large, all are alike
                     (default: 0.5)
  --half HALF        which queries count: a fixed half, so that the other half can be reported; or all
                     (default: choice)
  --tasks NAME ...   tasks that count (default: all of the study)
  --dry-run          say what it will take, and stop
  -q, --quiet        only what came out, at the end
  --json             every event as one line of JSON
"""


@dataclass
class Arguments(Shown):
    """A study, with options changed on the command line."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    mixtures: int = 60
    """Random mixtures."""
    concentration: float = 0.5
    """Of the Dirichlet distribution that they are drawn from."""
    half: Literal["choice", "report", "all"] = "choice"
    """Queries that count."""
    tasks: tuple[str, ...] = ()
    """Tasks that count; all where none is named."""
    dry_run: bool = False
    """Say what it will take, and stop."""


def command(arguments: list[str]) -> int:
    """Try mixtures and print what they say."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0].startswith("-"):
        raise ConfigError("the study file comes first", saw=arguments[0], do="tdro usefulness STUDY.yaml [options]")
    path = Path(arguments[0])
    parsed = parse(Arguments, f"tdro usefulness {path}", arguments[1:], Arguments(load_study(path)))
    if parsed.concentration <= 0:
        raise ConfigError("the concentration is above 0", where="--concentration", saw=parsed.concentration)
    if parsed.dry_run:
        return _dry_run(parsed)
    again = shlex.join(["tdro", "usefulness", *arguments])
    return _execute(parsed, study_text(path), again)


def _dry_run(parsed: Arguments) -> int:
    """Say what it takes."""
    from tdro.training.estimate import estimate
    from tdro.training.usefulness import refuse_impossible

    refuse_impossible(parsed.study, parsed.mixtures, parsed.tasks)
    found = estimate(parsed.study, listener=lambda text: None if parsed.json else print(text, flush=True))
    if parsed.json:
        print(json.dumps({"trainings": parsed.mixtures, "seconds": round(parsed.mixtures * _each(parsed, found), 1)}))
    else:
        print(_cost(parsed, found))
    return 0


def _execute(parsed: Arguments, text: str, again: str) -> int:
    """Do it."""
    from tdro.cli.live import Display

    talks = os.environ.get("RANK", "0") == "0"  # of several ranks the first
    sizes = {"robust": parsed.study.reference.batch_size}
    with Display(sys.stdout, parsed.mode if talks else "quiet", sizes) as display:
        display.note("loading libraries")
        from tdro.devices import join_ranks
        from tdro.training.estimate import foretell
        from tdro.training.loop import Stopped
        from tdro.training.run import Run
        from tdro.training.usefulness import refuse_impossible, usefulness

        refuse_impossible(parsed.study, parsed.mixtures, parsed.tasks)
        run = Run(parsed.study, display.show, text, join_ranks())
        if talks:
            display.note(_cost(parsed, foretell(run)), "usefulness")
        try:
            found = usefulness(run, parsed.mixtures, parsed.concentration, parsed.half, parsed.tasks)
        except TdroError as error:
            run.journal.write("failed", "usefulness", error=str(error))
            raise
        except (Stopped, KeyboardInterrupt):
            display.note(f"stopped at {display.where}; finished mixtures are kept, and it goes on with: {again}")
            return 130
    if talks:
        _conclude(parsed, run, *found)
    return 0


def _cost(parsed: Arguments, estimate: "Estimate | None") -> str:
    """Say what the trainings cost."""
    from tdro.training.estimate import duration

    study, count = parsed.study, parsed.mixtures
    text = f"{count} trainings of {study.reference.steps} steps, each scored on {len(study.evaluation.tasks)} tasks"
    if estimate is None:
        return f"{text}; tdro usefulness ... --dry-run measures how long that takes"
    return f"{text}: about {duration(count * _each(parsed, estimate))}, negatives apart"


def _each(parsed: Arguments, estimate: "Estimate") -> float:
    """Seconds of a training and its scoring."""
    evaluation = parsed.study.evaluation
    models = max(len(evaluation.models) + len(evaluation.baselines), 1)
    return sum(
        estimate.stages[name].seconds / share
        for name, share in (("robust", 1), ("evaluation", models))
        if name in estimate.stages
    )


def _conclude(parsed: Arguments, run: "Run", found: "MixtureScores", fitted: "Usefulness") -> None:
    """Print what came out."""
    from tdro.training.usefulness import FOLDER, folder_of, summary

    if parsed.json:
        print(json.dumps({"event": "outcome", "stage": FOLDER, **summary(found, fitted, parsed.half, parsed.tasks)}))
        return
    from rich.table import Table

    from tdro.cli.display import wide_console

    score_M, room = 100 * found.score_M(parsed.half, parsed.tasks), found.headroom(parsed.half, parsed.tasks)
    print(
        f"{len(score_M)} mixtures: mean {score_M.mean():.2f}, best {score_M.max():.2f}, deviation"
        f" {100 * room.deviation:.2f}, of which two halves of the queries share {100 * room.shared:.2f}"
        f" (their scores correlate by {room.agreement:.2f})"
    )
    print(
        f"the regression explains {max(fitted.explained, 0):.0%} of the differences between mixtures it has not seen;"
        f" ranks from two halves of the mixtures agree by {fitted.reliability:.2f}"
    )
    print(
        f"expected of the uniform mixture {100 * fitted.uniform:.2f}, of the most promising one"
        f" {100 * fitted.expected:.2f}"
    )
    if room.agreement < 0.3:
        print(
            "WARNING: what one half of the queries prefers, the other hardly does: mixtures differ here by little more"
            " than the luck of these queries; stay with uniform, or name tasks with more queries"
        )
    elif fitted.explained < 0.2 or fitted.reliability < 0.3:
        print("WARNING: the scores hardly follow the mixtures; try more of them")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("dataset", "points for +1 % of the sample", "most promising"):
        table.add_column(name, justify="left" if name == "dataset" else "right", no_wrap=name == "dataset")
    worth = zip(fitted.names, fitted.slope_G.tolist(), fitted.best_G.tolist(), strict=True)
    for name, slope, share in sorted(worth, key=lambda row: -row[1]):
        table.add_row(name, f"{slope:+.3f}", f"{share:.1%}")
    wide_console().print(table)
    print(f"written to {folder_of(run, parsed.half)}")
