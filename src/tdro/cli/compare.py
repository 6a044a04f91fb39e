"""`tdro compare A B [...]`: are the differences between evaluated models more than chance?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from tdro.cli.overrides import parse
from tdro.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tdro.cli.compare_display import Examples
    from tdro.evaluation.compare import Contrast
    from tdro.evaluation.sides import Side

HELP = """\
usage: tdro compare A B [...] [options]

Compare models query by query: the first is the baseline, every other is compared with it.

examples:
  tdro compare runs/a:reference runs/a:robust
  tdro compare uniform=runs/1:robust,runs/2:robust,runs/3:robust learned=runs/4:robust,runs/5:robust,runs/6:robust
  tdro compare results/bm25 results/minilm --only scifact miracl/sw --measure ndcg@10 recall@100
  tdro compare bm25 sentence-transformers/all-MiniLM-L6-v2 --tasks beir/scifact beir/nfcorpus

  A, B     RUN:MODEL (a model that a study evaluated) or a folder of results from tdro evaluate; with a comma between
           them several training seeds of one side; NAME= in front says how to call it
  --tasks  evaluation sets: sides may be models then, bm25 too, and are evaluated first

Per task: means, difference with a 95 % bootstrap interval over queries, paired randomisation test and t-test, Holm's
adjustment over all tests of a measure, effect size (Cohen's d_z), queries that gain, tie and lose.
Results of other queries, corpora, settings or depths are refused.

`tdro compare A B --help` lists every option.
"""


@dataclass
class Arguments:
    """Compare evaluated models query by query."""

    sides: Annotated[tuple[str, ...], tyro.conf.Positional]
    """RUN:MODEL, folders of results or, with --tasks, models; NAME= in front, seeds with commas. Baseline first."""
    measure: tuple[str, ...] = ()
    """On the tasks that have it; by default ndcg@10, and acc@10 of MKQA."""
    only: tuple[str, ...] = ()
    """These tasks (miracl) or parts of tasks (miracl/sw)."""
    half: Literal["choice", "report", "all"] = "all"
    """Queries that count; report: those that `tdro usefulness` has not chosen a mixture on."""
    tasks: tuple[str, ...] = ()
    """Evaluation sets that sides which are models are evaluated on first."""
    out: str = ""
    """Where results of these evaluations stay; by default in the cache."""
    level: float = 0.05
    """Of significance; the paper uses 0.01."""
    resamples: int = 10_000
    """Of every bootstrap and randomisation test."""
    seed: int = 0
    """Of these."""
    examples: int = 5
    """Queries that gain most and lose most, shown of each kind."""
    json: str = ""
    """File for everything that was found."""
    markdown: str = ""
    """File for tables, verdicts and examples."""


@dataclass(frozen=True, slots=True)
class Given:
    """A side as it was given: its name, and per seed a folder of results, or a model."""

    name: str
    seeds: tuple[Path | str, ...]


def command(arguments: list[str]) -> int:
    """Compare sides, show and write what was found.

    Returns:
        0.
    """
    if not arguments or arguments in (["-h"], ["--help"]):
        print(HELP, end="")
        return 0
    parsed = parse(Arguments, "tdro compare", arguments)
    _refuse_impossible(parsed)
    given = _read_sides(parsed.sides)
    models = list(dict.fromkeys(seed for side in given for seed in side.seeds if isinstance(seed, str)))
    _refuse_models(parsed, models)
    _compare(parsed, _read(parsed, given, models))
    return 0


def _refuse_impossible(parsed: Arguments) -> None:
    """Refuse options that cannot be, before anything is read."""
    if len(parsed.sides) < 2:
        raise ConfigError("a comparison has at least two sides", where="A B", saw=parsed.sides, do="give another one")
    if not 0 < parsed.level < 1:
        raise ConfigError("a level is between 0 and 1", where="--level", saw=parsed.level)
    if parsed.resamples < 1000:
        do = "give at least 1000; 10000 take seconds"
        raise ConfigError("too few resamples for a p-value", where="--resamples", saw=parsed.resamples, do=do)
    if parsed.examples < 0:
        raise ConfigError("a number of examples is at least 0", where="--examples", saw=parsed.examples)


def _refuse_models(parsed: Arguments, models: Sequence[str]) -> None:
    """Refuse models without tasks, and tasks without models."""
    if models and not parsed.tasks:
        do = "give RUN:MODEL or a folder of results; for a model, or bm25, add --tasks PATH"
        raise ConfigError("no results here", where="A B", saw=models[0], do=do)
    for option, value in (("--tasks", parsed.tasks), ("--out", parsed.out)):
        if value and not models:
            raise ConfigError("nothing is evaluated, all sides are results", where=option, saw=value, do="leave it out")


def _read_sides(texts: Sequence[str]) -> list[Given]:
    """Read what was given as sides, and find names that tell them apart."""
    split = [_split(text) for text in texts]
    short = [name or _short(seeds[0]) for name, seeds in split]
    given = []
    for text, (name, seeds), brief in zip(texts, split, short, strict=True):
        if len(set(seeds)) < len(seeds):
            raise ConfigError("a seed is given twice", where="A B", saw=text, do="give each once")
        chosen = name or (brief if short.count(brief) == 1 else text)
        given.append(Given(chosen, tuple(_folder(seed) or seed for seed in seeds)))
    names = [side.name for side in given]
    if len(set(names)) < len(names):
        raise ConfigError("two sides are called the same", where="A B", saw=names, do="put NAME= in front of each")
    return given


def _split(text: str) -> tuple[str, list[str]]:
    """Split NAME=SEED,SEED."""
    named = None if Path(text).exists() else re.fullmatch(r"([^=/\\:]+)=(.+)", text)
    name, rest = (named[1], named[2]) if named else ("", text)
    seeds = [rest] if Path(rest).exists() else rest.split(",")
    if not all(seeds):
        raise ConfigError("a seed without a folder", where="A B", saw=text, do="write NAME=FOLDER,FOLDER")
    return name, seeds


def _short(seed: str) -> str:
    """Name a side after its model or folder."""
    return re.split(r"[/\\:]", seed.rstrip("/\\"))[-1] or seed


def _folder(seed: str) -> Path | None:
    """Return the folder of results that is meant; None for a model."""
    from tdro.evaluation.results import SCORES, model_folder

    path = Path(seed)
    if any(found for depth in ("", "*/", "*/*/") for found in path.glob(f"{depth}{SCORES}")):
        return path
    run, _, model = seed.rpartition(":")
    if run and (evaluated := Path(run) / "evaluation").is_dir():
        if not (evaluated / model_folder(model)).is_dir():
            there = ", ".join(sorted(folder.name for folder in evaluated.iterdir() if folder.is_dir()))
            raise DataError("this model was not evaluated", where=run, saw=model, do=f"there are {there or 'none'}")
        return evaluated / model_folder(model)
    if (evaluated := path / "evaluation").is_dir():
        there = ", ".join(f"{seed}:{folder.name}" for folder in sorted(evaluated.iterdir()) if folder.is_dir())
        raise DataError("a run has several models", where=seed, do=f"give one of {there or 'them; none is evaluated'}")
    return None


def _evaluate(parsed: Arguments, models: Sequence[str]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Evaluate models as `tdro evaluate` does, which skips what is finished; return their folders and the tasks."""
    from tdro.cli.display import wide_console
    from tdro.cli.evaluate import Arguments as Evaluation
    from tdro.cli.evaluate import evaluate_models
    from tdro.devices import ALONE
    from tdro.evaluation.results import model_folder
    from tdro.files import cache_folder

    named = tuple(f"{model_folder(model)}={model}" for model in models)
    out = parsed.out or str(cache_folder() / "comparisons")
    evaluated = evaluate_models(Evaluation(named, parsed.tasks, out), wide_console(), ALONE)
    return dict(zip(models, evaluated.folders.values(), strict=True)), tuple(evaluated.summaries)


def _read(parsed: Arguments, given: Sequence[Given], models: Sequence[str]) -> "list[Side]":
    """Read all results; of models, after their evaluation, which decides the tasks unless --only does."""
    from tdro.evaluation.sides import read_side

    evaluated, tasks = _evaluate(parsed, models) if models else ({}, ())
    return [
        read_side(
            side.name,
            [evaluated[seed] if isinstance(seed, str) else seed for seed in side.seeds],
            parsed.only or tasks,
            parsed.half,
        )
        for side in given
    ]


def _compare(parsed: Arguments, sides: "Sequence[Side]") -> None:
    """Compare, show and write."""
    from rich.console import Console

    from tdro.cli.compare_display import markdown, show
    from tdro.evaluation.compare import compare, find_examples
    from tdro.files import write_json, write_text

    with Console(stderr=True).status("comparing"):
        contrasts = compare(sides, parsed.measure, resamples=parsed.resamples, seed=parsed.seed)
    examples = [find_examples(contrast, parsed.examples) for contrast in contrasts]
    show(contrasts, examples, parsed.level)
    if parsed.json:
        write_json(Path(parsed.json), _content(parsed, sides, contrasts, examples))
    if parsed.markdown:
        write_text(Path(parsed.markdown), markdown(contrasts, examples, parsed.level))


def _content(
    parsed: Arguments, sides: "Sequence[Side]", contrasts: "Sequence[Contrast]", examples: "Sequence[Examples]"
) -> dict[str, object]:
    """Everything that was found, and what it was found with."""
    from tdro.cli.compare_display import as_json

    return {
        "sides": [
            {
                "name": side.name,
                "seeds": [{task: str(result.folder) for task, result in seed.items()} for seed in side.seeds],
            }
            for side in sides
        ],
        "level": parsed.level,
        "half": parsed.half,
        "resamples": parsed.resamples,
        "seed": parsed.seed,
        "contrasts": as_json(contrasts, examples, parsed.level),
    }
