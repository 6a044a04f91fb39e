"""Runs `tdro run STUDY.yaml` as a rank to which something happens: disturbed_rank.py STUDY.yaml EVENT STAGE STEP.

EVENT: `stopped` (all ranks get SIGTERM), `one-stopped` (rank 1 does), `killed` (rank 1 gets SIGKILL), `drifted` (a
parameter of rank 1 changes by a bit).
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import torch

from tdro.cli.main import main
from tdro.devices import Ranks, end_rank
from tdro.training import loop


def run(study: str, event: str, stage: str, step: int, options: list[str]) -> int:
    """Run the study, and let it happen."""
    number = int(os.environ.get("RANK", "0"))
    real_refusal, real_comparison = loop._refuse_non_finite, loop.refuse_drift

    def happen(numbers: dict[str, Any], norm: float, at_stage: str, at_step: int) -> None:
        if (at_stage, at_step) == (stage, step):
            if event == "stopped" or (event == "one-stopped" and number == 1):
                os.kill(os.getpid(), signal.SIGTERM)
            elif event == "killed" and number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        real_refusal(numbers, norm, at_stage, at_step)

    def drift(parameters: Sequence[torch.Tensor], ranks: Ranks) -> None:
        if event == "drifted" and number == 1:
            with torch.no_grad():
                first = parameters[0].view(-1)[:1]
                first.copy_(torch.nextafter(first, first + 1))
        real_comparison(parameters, ranks)

    loop._refuse_non_finite, loop.refuse_drift = happen, drift
    torch.set_num_threads(1)
    return main(["run", study, *options])


if __name__ == "__main__":
    study_file, what, at_stage, at_step, *more = sys.argv[1:]
    code = run(study_file, what, at_stage, int(at_step), more)
    end_rank(code)
    sys.exit(code)
