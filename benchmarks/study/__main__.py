"""Run the study, or what is left of it: `make study DATA=FOLDER` (PYTHONPATH=benchmarks python -m study FOLDER).

FOLDER has train/*.jsonl.gz and eval/* (BEIR layout). Everything that is finished is kept in the work folder and not
done again; the results go to benchmarks/results/study/. Settings may be run by several processes at once.
"""

import argparse
import time
from pathlib import Path

from study.arms import fixed_arms, learned_arms, optimised_arms
from study.material import prepare
from study.results import Halves, Outcome
from study.settings import LARGE, MIXTURES, SETTINGS, study_of
from study.writing import write_setting
from tdro.evaluation.regression import fit_usefulness
from tdro.training.run import Run
from tdro.training.stages import sizes_of
from tdro.training.trials import Trials
from tdro.training.usefulness import study_rows, try_mixtures


def main() -> None:
    """Do the core of every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/study"))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    options = parser.parse_args()
    prepare(options.data, options.work)
    for setting in options.settings:
        core(setting, options.work)


def core(setting: str, work: Path) -> None:
    """Measure headroom and usefulness of a setting, learn weights, train all arms, and write what came out."""
    study = study_of(setting, work)
    run = Run(study)
    rows = study_rows(run)
    trials, sizes = Trials(run, rows), sizes_of(rows)
    tell(setting, "mixtures")
    found = try_mixtures(run, trials, tuple(rows), MIXTURES)
    fitted = fit_usefulness(found.names, found.mixture_MG, found.score_M("choice", LARGE))
    outcomes: dict[str, Outcome] = {}
    for arms in (fixed_arms(study, sizes), optimised_arms(fitted), learned_arms(study, sizes)):
        for name, seed, plan in arms:
            tell(setting, f"{name}, seed {seed}")
            outcome = outcomes.setdefault(name, Outcome(name, {}, {}))
            outcome.trials[seed], outcome.mixtures[seed] = trials.run(plan, seed), dict(plan.probabilities)
    write_setting(setting, study, found, Halves(trials.query_ids), list(outcomes.values()))


def tell(setting: str, text: str) -> None:
    """Say what is done now."""
    print(f"{time.strftime('%H:%M:%S')} {setting}: {text}", flush=True)


if __name__ == "__main__":
    main()
