"""Run the study, or what is left of it: `make study DATA=FOLDER` (PYTHONPATH=benchmarks python -m study FOLDER).

FOLDER has train/*.jsonl.gz and eval/* (BEIR layout). Everything that is finished is kept in the work folder and not
done again; the results go to benchmarks/results/study/. Settings may be run by several processes at once.
"""

import argparse
import time
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from study.arms import (
    LEADING,
    Arm,
    demonstration_arms,
    fixed_arms,
    further_arms,
    larger_arms,
    learned_arms,
    optimised_arms,
)
from study.learning import mined_files
from study.material import prepare
from study.results import Halves, Outcome
from study.settings import CORE, FEWER_SEEDS, LARGE, MIXTURES, SETTINGS, SMALLER, study_of
from study.writing import learned_by_seed, write_further, write_larger, write_setting
from tdro.evaluation.regression import fit_usefulness
from tdro.training.run import Run
from tdro.training.stages import sizes_of
from tdro.training.trials import Trials
from tdro.training.usefulness import study_rows, try_mixtures


def main() -> None:
    """Do every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/study"))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    options = parser.parse_args()
    prepare(options.data, options.work, options.settings)
    for setting in options.settings:
        (core if setting in CORE else larger)(setting, options.work)


def core(setting: str, work: Path) -> None:
    """Measure headroom and usefulness of a static model, learn weights, train all arms, and write what came out."""
    study = study_of(setting, work)
    run = Run(study)
    rows = study_rows(run)
    trials, sizes = Trials(run, rows), sizes_of(rows)
    tell(setting, "mixtures")
    found = try_mixtures(run, trials, tuple(rows), MIXTURES)
    fitted = fit_usefulness(found.names, found.mixture_MG, found.score_M("choice", LARGE))
    halves = Halves(trials.query_ids)
    arms = chain(fixed_arms(study, sizes), optimised_arms(fitted), learned_arms(study, sizes))
    write_setting(setting, study, found, halves, outcomes(setting, trials, arms))
    write_further(setting, halves, outcomes(setting, trials, further_arms(study, sizes)))


def larger(setting: str, work: Path) -> None:
    """Train a larger model with a few arms, some of them with the weights of a static model."""
    study, smaller = study_of(setting, work), study_of(SMALLER[setting], work)
    statics = {name: study_of(name, work) for name in CORE if name.startswith("users")}
    for static in statics.values():  # their weights are learned on the rows that they mine
        if not all(path.exists() for path in mined_files(static).values()):
            study_rows(Run(static))
    run = Run(study)
    rows = study_rows(run)
    trials, sizes = Trials(run, rows), sizes_of(rows)
    alone = setting == "users-decoder"
    arms = (demonstration_arms if alone else larger_arms)(study, sizes, smaller)
    done = outcomes(setting, trials, arms)
    measures = () if alone else (LEADING,)
    of_statics = {name: learned_by_seed(one, measures, FEWER_SEEDS) for name, one in statics.items() if measures}
    write_larger(setting, Halves(trials.query_ids), done, learned_by_seed(study, measures, FEWER_SEEDS), of_statics)


def outcomes(setting: str, trials: Trials, arms: Iterable[Arm]) -> list[Outcome]:
    """Train arms, those that are not finished."""
    done: dict[str, Outcome] = {}
    for name, seed, plan in arms:
        tell(setting, f"{name}, seed {seed}")
        outcome = done.setdefault(name, Outcome(name, {}, {}))
        outcome.trials[seed], outcome.mixtures[seed] = trials.run(plan, seed), dict(plan.probabilities)
    return list(done.values())


def tell(setting: str, text: str) -> None:
    """Say what is done now."""
    print(f"{time.strftime('%H:%M:%S')} {setting}: {text}", flush=True)


if __name__ == "__main__":
    main()
