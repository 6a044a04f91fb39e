"""`tdro export RUN`: a trained model with its card; or the mixture that it was trained with, for other trainers."""

import csv
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tdro.cli.overrides import parse
from tdro.config import RobustConfig, Study
from tdro.errors import ConfigError, DataError
from tdro.study_file import load_study

if TYPE_CHECKING:
    from tdro.core.plan import Plan
    from tdro.data.sources import Source

HELP = """\
usage: tdro export RUN --model DIR [--which robust|reference|proxy] [--push OWNER/NAME [--public]]
       tdro export RUN [--format json|interleave|ms-swift|axolotl] [--output FILE] [--robust.plan PLAN ...]

Write a model of a run with its card, ready to load and to publish; or write the mixture of a run for other trainers:
the probability with which each dataset is sampled.

examples:
  tdro export runs/NAME --model my-model
  tdro export runs/NAME --format interleave --output mixture.json
  tdro export runs/NAME --robust.plan top-share --format ms-swift | xargs swift sft --model MODEL
  tdro export runs/NAME --format axolotl --type alpaca --root converted

the model:
  --model DIR         folder that is written: SentenceTransformer(DIR) loads it. README.md is its card, with scores as
                      mteb writes them; tdro/ has the study, the weights and, after tdro check, the data card
  --which MODEL       robust, reference or proxy (default: robust)
  --push OWNER/NAME   upload it to the hub, too; a new repository is private (default: nothing leaves this machine)
  --public            make a new repository public

the mixture:
  --format FORMAT     (default: json)
    json              {"dataset": probability}; tdro's robust.weights reads it too
    interleave        what datasets.load_dataset and datasets.interleave_datasets take
    ms-swift          --dataset, --interleave_prob, --stopping_strategy, --data_seed
    axolotl           datasets: with one entry for every pass over a dataset
  --output FILE       write to this file (default: to the terminal)
  --root FOLDER       where the paths of the datasets start (default: the rows that the run trained on)
  --type TYPE         how axolotl reads your rows (default: chat_template)

`tdro export RUN --help` lists the options of the plan with the values they have in that run.
"""


@dataclass
class Arguments:
    """The plan of a run, changed on the command line, and where it goes."""

    robust: RobustConfig = field(default_factory=RobustConfig)
    format: Literal["json", "interleave", "ms-swift", "axolotl"] = "json"
    """Trainer that the mixture is for."""
    output: str = ""
    """Write to this file; empty: to the terminal."""
    root: str = ""
    """Folder that the paths of the datasets start from; empty: the rows that the run trained on. For converted rows."""
    type: str = ""
    """How axolotl reads your rows; empty: chat_template."""


@dataclass
class ModelArguments:
    """A model of a run, and where it goes."""

    model: str
    """Folder that is written."""
    which: Literal["robust", "reference", "proxy"] = "robust"
    """The model."""
    push: str = ""
    """Upload it to this repository of the hub, OWNER/NAME; empty: do not."""
    public: bool = False
    """Make a new repository public."""


def command(arguments: list[str]) -> int:
    """Write a model of a run, or its mixture."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0].startswith("-"):
        raise ConfigError("the run folder comes first", saw=arguments[0], do="tdro export RUN [options]")
    folder = Path(arguments[0])
    if not (folder / "resolved.yaml").exists():
        runs = sorted(str(near.parent) for near in folder.parent.glob("*/resolved.yaml"))
        do = f"did you mean one of: {', '.join(runs[:5])}?" if runs else "give the folder of a run, runs/NAME"
        raise ConfigError("there is no run in this folder", where=folder, do=do)
    options = {argument.partition("=")[0] for argument in arguments[1:]}
    if options & {"--model", "--which", "--push", "--public"}:
        return _export_model(folder, arguments[1:])
    study = load_study(folder / "resolved.yaml")
    parsed = parse(Arguments, f"tdro export {folder}", arguments[1:], Arguments(study.robust))
    _refuse_unread(parsed)
    study = study.model_copy(update={"robust": parsed.robust, "output": str(folder)})
    text, datasets = _export(study, parsed)
    if parsed.output:
        from tdro.files import write_text

        write_text(Path(parsed.output), text)
        print(f"{datasets} of {len(study.data.datasets)} datasets -> {parsed.output}")
    else:
        print(text, end="")
    return 0


def _export_model(folder: Path, arguments: list[str]) -> int:
    """Write a model with its card, and upload it where this is asked for."""
    parsed = parse(ModelArguments, f"tdro export {folder}", arguments)
    if parsed.public and not parsed.push:
        raise ConfigError("nothing is published without a repository", where="--public", do="add --push OWNER/NAME")
    from tdro.setup.export_model import export_model, push
    from tdro.setup.run_facts import read_facts

    target = Path(parsed.model)
    for file in export_model(read_facts(folder, parsed.which), target, parsed.push):
        print(f"{target / file}")
    print(f'load it with SentenceTransformer("{target}")')
    if parsed.push:
        print(f"uploaded: {push(target, parsed.push, public=parsed.public)}")
    return 0


def _refuse_unread(parsed: Arguments) -> None:
    """Refuse options that the format does not read."""
    if parsed.type and parsed.format != "axolotl":
        raise ConfigError("only axolotl has a type", where="--type", saw=parsed.type, do="add --format axolotl")
    if parsed.root and parsed.format == "json":
        do = "leave it out, or choose another --format"
        raise ConfigError("json names no paths", where="--root", saw=parsed.root, do=do)


def _export(study: Study, parsed: Arguments) -> tuple[str, int]:
    """Return the text of a mixture, and of how many datasets it is."""
    from tdro.data import export
    from tdro.training.planning import planned_examples

    sizes = _sizes(study)
    plan = _plan(study, sizes)
    probabilities = plan.probabilities
    if parsed.format == "json":
        return export.as_json(probabilities, plan.loss_factors), len(probabilities)
    if plan.loss_factors is not None:
        what = f"{parsed.format} cannot multiply the loss of a dataset by a factor"
        do = "use --format json, which lists the factors, or --robust.plan reweight"
        raise ConfigError(what, where="robust.plan", saw=study.robust.plan, do=do)
    sources = {name: _source(study, name, parsed.root) for name in probabilities}
    if parsed.format == "interleave":
        text = export.as_interleave(probabilities, sources, study.seed)
    elif parsed.format == "ms-swift":
        if unreadable := export.not_for_ms_swift(sources):
            what = "ms-swift opens neither packed files nor saved datasets of several files"
            print(f"note: {what}; rewrite as .jsonl: {', '.join(unreadable)}", file=sys.stderr)
        text = export.as_ms_swift(probabilities, sources, study.seed)
    else:
        prompt_type, examples = parsed.type or export.PROMPT_TYPE, planned_examples(study)
        text = export.as_axolotl(probabilities, sources, sizes, examples, study.seed, prompt_type)
    return text, len(probabilities)


def _plan(study: Study, sizes: dict[str, int]) -> "Plan":
    """Turn the weights of a run, or fixed ones, into the plan that robust.* asks for."""
    from tdro.training.planning import plan_of, plan_weights

    path = study.run_folder / "weights" / "weights.json"
    if study.robust.weights == "learned" and not path.exists():
        do = "finish it with tdro weights, or choose other weights with --robust.weights"
        raise ConfigError("the run has learned no weights yet", where=path, do=do)
    return plan_of(study, plan_weights(study, sizes), sizes)


def _sizes(study: Study) -> dict[str, int]:
    """Read how many rows each dataset has, as the robust stage counted them, or else the weights stage."""
    from tdro.data.weights_file import read_sizes

    folder = study.run_folder
    for path, read in ((folder / "data" / "plan.csv", _plan_sizes), (folder / "weights" / "weights.json", read_sizes)):
        if path.exists():
            sizes = read(path)
            if all(name in sizes for name in study.data.datasets):
                return {name: sizes[name] for name in study.data.datasets}
    do = "finish it with tdro weights, or with tdro robust where the weights are fixed"
    raise ConfigError("the run has not counted the rows of its datasets yet", where=folder, do=do)


def _plan_sizes(path: Path) -> dict[str, int]:
    """Read the sizes from data/plan.csv."""
    try:
        return {row["dataset"]: int(row["size"]) for row in csv.DictReader(path.read_text("utf-8").splitlines())}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("no sizes can be read", where=path, saw=str(error), do="run tdro robust again") from None


def _source(study: Study, name: str, root: str) -> "Source":
    """Find the files of a dataset: with the negatives that the run mined, unless another root is given."""
    from tdro.data.sources import find_source

    mined = study.run_folder / "data" / "negatives" / f"{name}.jsonl"
    if not root and study.mining.when != "never" and mined.exists():
        return find_source(mined)
    paths = study.data.datasets[name].paths
    if len(paths) > 1 or paths[0].startswith("hf://"):
        do = "write it into one file with tdro convert, and name that file in the study"
        raise ConfigError(
            "only a dataset of one file or folder can be handed on", where=f"dataset {name}", saw=paths, do=do
        )
    path = Path(root or study.data.root, paths[0])
    if not path.exists():
        do = "go to the folder that the study was run from, or give --root FOLDER that has this file"
        raise DataError("the dataset is not there", where=f"dataset {name}", saw=str(path), do=do)
    return find_source(path)
