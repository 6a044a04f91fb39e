"""A study out of the released tDRO code's command-line arguments.

Scripts and files of arguments are read (`released_inputs`), every launch is one stage, the arguments of each become
its sections (`released_sections`), domain configs become datasets (`released_data`), and `released_options` has a
sentence for every argument that was dead or broken there or has no counterpart here.
"""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from tdro.config import Study
from tdro.errors import ConfigError
from tdro.setup.released_data import (
    Data,
    data_section,
    domain_config,
    exported_average,
    has_learned_weights,
    robust_section,
)
from tdro.setup.released_inputs import Arguments, Launch, read_launches
from tdro.setup.released_options import names_of, training_options
from tdro.setup.released_sections import Notes, Value, Values, model_section, rule_section, training_section
from tdro.setup.released_writing import study_text

Stage = Literal["reference", "weights", "robust"]
_STAGES: tuple[Stage, ...] = ("reference", "weights", "robust")
_SHOWN = 60  # letters of a value
_WEIGHTS_ONLY = names_of("DistributationRobustOptimizationModelArguments")


@dataclass(frozen=True)
class Imported:
    """A study that was made of released arguments.

    Attributes:
        text: The study file, with comments.
        study: What it says.
        lost: What is not carried over, a sentence each.
        notes: What was dead or broken there, or is otherwise here, or not needed.
        stages: Stage -> file that launched it.
    """

    text: str
    study: Study
    lost: tuple[str, ...]
    notes: tuple[str, ...]
    stages: Mapping[Stage, Path]


def import_released(
    sources: Sequence[Path],
    *,
    name: str = "",
    data_root: str = "",
    processes: int | None = None,
    variables: Mapping[str, str] | None = None,
    ignore_unknown: bool = False,
) -> Imported:
    """Make one study of scripts, files of arguments and saved `model_args.yaml`.

    A launch with dro_* arguments is the weights stage; one whose domain config has unequal or selected weights is the
    robust model; another one is the reference.

    Args:
        sources: Up to one file for each stage, and files of model arguments.
        name: Of the study; by default the last output_dir.
        data_root: Folder of the datasets; by default preprocessed_dir.
        processes: Processes of every launch; by default as the scripts say.
        variables: Variables and arguments (`1`, `2`, ...) of the scripts, set from outside.
        ignore_unknown: Leave out arguments that the released code did not have.

    Raises:
        ConfigError: A file cannot be read, arguments are unknown or have wrong values, a stage occurs twice, or the
            arguments make no valid study.
    """
    launches, unknown = read_launches(sources, variables or {}, ignore_unknown=ignore_unknown)
    saved = {name: value for launch in launches if launch.model_alone for name, value in launch.given.items()}
    trainings = [launch for launch in launches if not launch.model_alone] or launches[:1]
    notes = Notes()
    for option in unknown:
        notes.lost.append(f"--{option}: not an argument of the released code")
    stages = _stages([_arguments(launch, saved, processes) for launch in trainings])
    for stage, args in stages.items():
        _say_of_options(stage, args, notes)
    data = data_section(stages, data_root, notes)
    content = _sections(stages, data, name, notes)
    files = list(dict.fromkeys(str(launch.source) for launch in launches))
    text = study_text(content, notes, _head(files, stages))
    files_of_stages = {stage: args.launch.source for stage, args in stages.items()}
    said = [*notes.broken, *notes.other, *notes.unneeded]
    return Imported(text, _checked(text, files), _once(notes.lost), _once(said), files_of_stages)


def _once(sentences: Sequence[str]) -> tuple[str, ...]:
    """Drop what several scripts say alike."""
    return tuple(dict.fromkeys(sentences))


def _arguments(launch: Launch, saved: Mapping[str, Any], processes: int | None) -> Arguments:
    """Complete a launch by what a saved model says and by the number of processes that was given."""
    fits = {name: value for name, value in saved.items() if name not in _WEIGHTS_ONLY or _is_weights(launch)}
    counted = launch.processes if processes is None else processes
    return Arguments(replace(launch, processes=counted), fits)


def _is_weights(launch: Launch) -> bool:
    """Whether a launch has arguments of stage 1 alone."""
    return any(name in _WEIGHTS_ONLY for name in launch.given) or ".dro." in launch.program


def _stages(trainings: Sequence[Arguments]) -> dict[Stage, Arguments]:
    """Tell which stage each launch is.

    Raises:
        ConfigError: Two are the same.
    """
    stages: dict[Stage, Arguments] = {}
    largest = max((len(config.weights) for args in trainings if (config := domain_config(args))), default=0)
    for args in trainings:
        config = domain_config(args)
        selected = config is not None and len(config.weights) < largest
        is_robust = has_learned_weights(args, config) or selected
        stage: Stage = "weights" if _is_weights(args.launch) else "robust" if is_robust else "reference"
        if stage in stages:
            both = f"{stages[stage].launch.source} and {args.launch.source}"
            do = "give one script for each of reference, weights and robust model; another study takes another import"
            if stages[stage].launch.source == args.launch.source:
                do = "keep one of the two launches in a copy of the script, and import that"
            raise ConfigError(f"two launches train the {stage} stage", where=both, do=do)
        stages[stage] = args
    return {stage: stages[stage] for stage in _STAGES if stage in stages}


def _say_of_options(stage: Stage, args: Arguments, notes: Notes) -> None:
    """Write a line for every given argument that does not simply go on here."""
    known = training_options()
    for name, value in args.given.items():
        option = known[name]
        if _is_off(option.default, value) or option.kind == "mapped" or (name in _WEIGHTS_ONLY and stage != "weights"):
            continue
        shown = "" if value is True else f" {textwrap.shorten(str(value), _SHOWN, placeholder='...')}"
        ours = f" ({option.ours})" if option.ours else ""
        kind = f"{option.kind}: " if option.kind in ("dead", "broken") else ""
        line = f"--{name}{shown}: {kind}{option.note}{ours}"
        if option.kind == "not carried":
            notes.lost.append(line)
        elif option.kind == "not needed":
            notes.unneeded.append(line)
        else:
            notes.broken.append(line)
    if args.launch.conditional:
        names = ", ".join(args.launch.conditional[:4])
        notes.other.append(
            f"{args.launch.source.name} sets {names} inside conditions; all branches were read, the last one counts"
        )


def _is_off(default: object, value: Any) -> bool:
    """Whether an argument is given as it is when it is not given: `--fp16 False`, `--deepspeed ""`."""
    return value == "" or (default is False and str(value).lower() in ("false", "no", "f", "n", "0"))


def _sections(stages: Mapping[Stage, Arguments], data: Data, name: str, notes: Notes) -> dict[str, Any]:
    """Write all sections."""
    first = next(iter(stages.values()))
    content: dict[str, Any] = {
        "name": Value(name or _name(stages)),
        "seed": Value(first.whole("seed"), "--seed"),
        "data": data.section,
        "model": model_section(first, notes),
    }
    _say_where_stages_differ(stages, notes)
    trained = {stage: _training(args, data, notes) for stage, args in stages.items()}
    final = stages.get("reference") or stages.get("robust")
    if final is not None:
        content["reference"] = _reference(final, trained["reference" if "reference" in trained else "robust"])
        _say_if_robust_differs(trained, notes)
    elif trained["weights"]:
        notes.other.append(
            "no script of the reference: it gets the paper's batch and passages, and else what stage 1 has"
        )
        kept = ("steps", "temperature", "learning_rate", "weight_decay", "warmup_steps", "schedule")
        content["reference"] = {key: value for key, value in trained["weights"].items() if key in kept}
    if "weights" in stages:
        steps = trained["weights"]["steps"].value if trained["weights"] else 1000
        content["weights"] = trained["weights"] | rule_section(stages["weights"], steps, notes)
        _say_of_the_reference(stages, notes)
        if stages["weights"].flag("distillation") and not stages["weights"].flag("dro_only_hn"):
            content["weights"]["distillation"] = Value(1.0, "--distillation")
    elif len(data.names) > 1 and "robust" not in stages:
        notes.other.append("no script of stage 1: the weights section has tdro's settings, with the paper's measure")
        content["weights"] = {"measure": Value("relative", "the paper's")}
    content["robust"] = robust_section(stages, data, notes)
    if "weights" in stages and (average := exported_average(stages)):
        content["weights"]["export"] = Value(average, "--domain_config_path")
    content["evaluation"] = _evaluation(first, data, content.get("reference", {}).get("steps"))
    return {key: value for key, value in content.items() if value}


def _training(args: Arguments, data: Data, notes: Notes) -> Values:
    """Translate the training of a stage; nothing where only a saved model's arguments are there."""
    if args.launch.model_alone:
        notes.other.append(
            f"{args.launch.source.name} says nothing about training: steps, batches and rates are tdro's"
        )
        return {}
    return training_section(args, notes, data.rows)


def _reference(args: Arguments, trained: Values) -> Values:
    """Add what reference and robust model have alone."""
    section = dict(trained)
    if args.flag("homogenous_batch"):
        section["batches"] = Value("homogeneous", "--homogenous_batch")
    elif not args.text("corpus_path") and not args.launch.model_alone:
        section["batches"] = Value("mixed", "no --homogenous_batch")
    if args.flag("distillation"):
        section["distillation"] = Value(1.0, "--distillation")
    return section


def _say_of_the_reference(stages: Mapping[Stage, Arguments], notes: Notes) -> None:
    """Say when stage 1 asked another reference than the one that the study trains."""
    asked = Path(str(stages["weights"].raw("ref_model_name_or_path") or "")).name
    trained = stages.get("reference")
    if asked and (trained is None or Path(str(trained.raw("output_dir"))).name != asked):
        notes.lost.append(
            f"--ref_model_name_or_path {asked}: stage 1 asks the reference that this study trains in stage 0"
        )


def _say_if_robust_differs(trained: Mapping[Stage, Values], notes: Notes) -> None:
    """Name the settings in which robust model and reference differ."""
    if "reference" not in trained or "robust" not in trained:
        return
    for key, value in trained["robust"].items():
        other = trained["reference"].get(key)
        if other is None or other.value != value.value:
            saw = "not given" if other is None else other.value
            notes.lost.append(
                f"{key}: {value.value} for the robust model, {saw} for the reference; both are trained alike here"
            )


def _say_where_stages_differ(stages: Mapping[Stage, Arguments], notes: Notes) -> None:
    """Name the arguments of which a study has one for all stages, where the scripts differ; and lost negatives."""
    first, *others = stages.values()
    shared = names_of("ModelArguments") | {
        "q_max_len", "p_max_len", "add_prompt", "add_prompt_prob", "prompt_type", "seed", "bf16", "lora", "lora_r",
        "lora_alpha", "lora_dropout", "positive_passage_no_shuffle", "negative_passage_no_shuffle", "preprocessed_dir",
    }  # fmt: skip
    for other in others:
        for name in sorted(shared):
            if first.raw(name) != other.raw(name) and str(first.raw(name)) != str(other.raw(name)):
                notes.lost.append(
                    f"--{name}: {first.raw(name)} in {first.launch.source.name}, {other.raw(name)} in "
                    f"{other.launch.source.name}; one value for all stages here, the first"
                )
    for stage, args in stages.items():
        several = (args.launch.processes or 1) > 1
        if stage != "weights" and several and not args.flag("negatives_x_device") and not args.launch.model_alone:
            notes.lost.append(
                "no --negatives_x_device: negatives were those of one device; here those of the whole step"
            )
        if stage != "weights" and args.flag("distillation") and args.flag("negatives_x_device") and several:
            times = args.launch.processes
            notes.other.append(
                f"--distillation with --negatives_x_device: counted {times} times there, once per process; once here"
            )
        if stage != "weights" and not several and args.whole("gradient_accumulation_steps") > 1:
            notes.other.append(
                "--gradient_accumulation_steps: negatives were those of one micro-batch; here those of the whole step"
            )


def _evaluation(args: Arguments, data: Data, steps: Value | None) -> dict[str, Any]:
    """Translate the evaluation during training, which has so many steps."""
    if not args.text("dev_path"):
        return {}
    watch = {"dev": {"path": Value(data.located(args, "dev_path"), "--dev_path"), "kind": Value("rows")}}
    section: dict[str, Any] = {"watch": watch}
    if args.has("eval_steps") and args.number("eval_steps") >= 1:
        section["watch_every"] = Value(args.whole("eval_steps"), "--eval_steps")
    elif args.has("eval_steps") and args.number("eval_steps") > 0 and steps is not None:
        share = args.number("eval_steps")
        section["watch_every"] = Value(math.ceil(share * steps.value), f"--eval_steps, {share:g} of the steps")
    if args.flag("load_best_model_at_end"):
        section["keep"] = Value("best", "--load_best_model_at_end")
    return section


def _name(stages: Mapping[Stage, Arguments]) -> str:
    """Name the study after the last output folder."""
    last = list(stages.values())[-1]
    for option in ("output_dir", "run_name"):
        name = re.sub(r"[^\w.-]", "-", Path(str(last.raw(option) or "")).name).strip("-.")
        if name and "$" not in str(last.raw(option)):
            return name
    return re.sub(r"[^\w.-]", "-", last.launch.source.stem) or "imported"


def _head(files: Sequence[str], stages: Mapping[Stage, Arguments]) -> list[str]:
    """First lines of the study file."""
    of_stages = ", ".join(f"{stage}: {args.launch.source.name}" for stage, args in stages.items())
    return [
        f"Made by: tdro import-args {' '.join(files)}",
        f"Stages ({of_stages}). `tdro run THIS --dry-run` shows the plan; docs/released-options.md has every argument.",
    ]


def _checked(text: str, files: Sequence[str]) -> Study:
    """Read the study that was written.

    Raises:
        ConfigError: The arguments make no valid study.
    """
    try:
        return Study.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"{', '.join(files)}: {'.'.join(str(part) for part in first['loc'])}"
        what = f"the arguments make no valid study: {first['msg'].removeprefix('Value error, ')}"
        raise ConfigError(what, where=where, saw=first["input"], do="correct the argument behind it") from None
