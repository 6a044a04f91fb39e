"""`tdro track RUN --to tensorboard|wandb|trackio`: the numbers of a run, for people who watch their runs there."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tdro.cli.overrides import parse
from tdro.errors import ConfigError

HELP = """\
usage: tdro track RUN --to tensorboard|wandb|trackio [--follow] [--every SECONDS] [--project NAME] [--offline]

Send what a run has written in its journal to a tracker: losses, weights, learning rates and scores. While the run goes
on, or when it is over; what was sent before is not sent again. Every stage becomes a run of the tracker.

examples:
  tdro track runs/mine --to tensorboard && tensorboard --logdir runs/mine/tracking/tensorboard
  tdro track runs/mine --to wandb --project retrieval --follow

  --to NAME         tensorboard, wandb (Weights & Biases) or trackio; each is an extra: pip install 'tdro[wandb]'
  --follow          go on until the run has ended or ctrl-C is pressed (default: send what is there, and stop)
  --every SECONDS   seconds between looks at the journal with --follow (default: 5)
  --project NAME    of wandb and trackio (default: tdro)
  --offline         wandb writes to RUN/tracking/wandb only; `wandb sync` sends it later
"""


@dataclass
class Arguments:
    """A run and a tracker."""

    run: tyro.conf.Positional[str]
    """Run folder."""
    to: Literal["tensorboard", "wandb", "trackio"]
    """The tracker."""
    follow: bool = False
    """Go on until the run has ended."""
    every: float = 5.0
    """Seconds between looks."""
    project: str = "tdro"
    """Of wandb and trackio."""
    offline: bool = False
    """wandb writes to the run folder only."""


def command(arguments: list[str]) -> int:
    """Send a run to a tracker."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    parsed = parse(Arguments, "tdro track", arguments)
    if parsed.offline and parsed.to != "wandb":
        raise ConfigError(
            "only wandb is told to be offline", where="--offline", do=f"leave it out with --to {parsed.to}"
        )
    if parsed.every <= 0:
        raise ConfigError("seconds must be above 0", where="--every", saw=parsed.every, do="give 1 or more")
    from tdro.integrations.journal_points import JournalReader
    from tdro.integrations.trackers import Sent, open_tracker, send
    from tdro.locks import hold
    from tdro.setup.options import flatten, open_study

    folder = Path(parsed.run)
    study, _ = open_study(folder)
    lock = hold(folder / "tracking" / f".{parsed.to}.lock", "tracker's notes", "wait until it has ended")
    journal, sent = JournalReader(folder), Sent(folder / "tracking" / f"{parsed.to}.json")
    opened = open_tracker(parsed.to, folder, project=parsed.project, config=flatten(study), offline=parsed.offline)
    count = 0
    with opened as tracker:
        try:
            count += send(journal, tracker, sent)
            while parsed.follow and not journal.is_over:
                time.sleep(parsed.every)
                count += send(journal, tracker, sent)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            return 130
        finally:
            print(f"{count:,} points of {folder} -> {parsed.to}", flush=True)
    del lock
    return 0
