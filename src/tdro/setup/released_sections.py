"""From released arguments to sections of a study: model, training, the rule of the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tdro.errors import ConfigError
from tdro.setup.released_inputs import Arguments, find_file


class Value(NamedTuple):
    """A value of the study file, and the arguments that it comes from."""

    value: Any
    comment: str = ""


Values = dict[str, Value]


@dataclass
class Notes:
    """What a person should know about the translation, a sentence each.

    Attributes:
        lost: What was done there and is not, or not alike, here.
        broken: What was dead or broken there.
        other: What is otherwise here, or was assumed.
        unneeded: What is done here by itself.
    """

    lost: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    unneeded: list[str] = field(default_factory=list)


_POOLING: Mapping[str, str] = {
    "": "auto", "lasttoken": "last", "cls": "cls", "mean": "mean",
    "avg_first_last": "first-last", "avg_top2": "top-two",
}  # fmt: skip
_OPTIMIZERS: Mapping[str, str] = {
    "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "adamw_apex_fused": "adamw",
    "adamw_torch_xla": "adamw", "adamw_torch_npu_fused": "adamw", "adamw_anyprecision": "adamw",
    "paged_adamw": "adamw", "paged_adamw_32bit": "adamw", "adamw_8bit": "adamw-8bit", "adamw_bnb_8bit": "adamw-8bit",
    "paged_adamw_8bit": "adamw-8bit",
}  # fmt: skip
_SCHEDULES = ("linear", "cosine", "constant")
_RULES: Mapping[str, str] = {
    "sgd": "sgd", "adamw": "adamw", "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw",
    "rmsprop": "rmsprop", "adagrad": "adagrad", "adafactor": "adafactor",
}  # fmt: skip
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
_UNCLIPPED = 1e9


def model_section(args: Arguments, notes: Notes) -> Values:
    """Translate the encoder."""
    base = args.text("model_name_or_path") or args.text("model_name_or_path_psg")
    query = args.text("model_name_or_path_qry")
    base = _located(base, args)
    own = _located(query, args) if query and not args.has("model_name_or_path") else "copy"
    if args.flag("untie_encoder") and (Path(base) / "query_model").is_dir():  # saved untied
        base, own = str(Path(base) / "passage_model"), str(Path(base) / "query_model")
    section: Values = {"base": Value(base, args.origin("model_name_or_path", "model_name_or_path_psg"))}
    if args.flag("untie_encoder"):
        section["query_encoder"] = Value(own, args.origin("untie_encoder"))
    pooling = args.text("pooling_strategy") or args.text("pooling_strategy_psg")
    if not args.has("pooling_strategy") and args.text("pooling_strategy_qry") not in ("", pooling):
        notes.lost.append(f"--pooling_strategy_qry {args.text('pooling_strategy_qry')}: queries pool as passages do")
    if pooling not in _POOLING:
        notes.lost.append(f"--pooling_strategy {pooling}: not known; model.pooling is auto")
    section["pooling"] = Value(_POOLING.get(pooling, "auto"), args.origin("pooling_strategy"))
    if args.flag("add_pooler"):
        sizes = {args.text(f"projection_out_dim{side}") for side in ("", "_psg", "_qry")} - {""}
        if len(sizes) > 1 and not args.has("projection_out_dim"):
            notes.lost.append("--projection_out_dim_qry: queries and passages project to as many dimensions")
        name = "projection_out_dim" if args.has("projection_out_dim") else "projection_out_dim_psg"
        section["projection"] = Value(args.whole(name), args.origin("add_pooler", name))
    section["normalize"] = Value(args.text("score_function") != "dot", args.origin("score_function"))
    section |= _savings(args, notes)
    return section


def _savings(args: Arguments, notes: Notes) -> Values:
    """Translate precision, LoRA and what makes a large model fit."""
    section: Values = {}
    precision = "bfloat16" if args.flag("bf16") else "auto" if args.flag("fp16") else "float32"
    if args.flag("bf16"):
        notes.broken.append(
            "--bf16: similarities were rounded to bfloat16 there, to steps of 2 nats at temperature 0.002; here they "
            "and the losses are float32 whatever the precision of the model"
        )
    section["precision"] = Value(precision, args.origin("fp16" if precision == "auto" else "bf16"))
    if args.flag("lora"):
        section["lora_rank"] = Value(args.whole("lora_r"), args.origin("lora", "lora_r"))
        section["lora_alpha"] = Value(args.number("lora_alpha"), args.origin("lora_alpha"))
        section["lora_dropout"] = Value(args.number("lora_dropout"), args.origin("lora_dropout"))
    saves = [name for name in ("gradient_checkpointing", "grad_cache_ac") if args.flag(name)]
    if saves:
        section["gradient_checkpointing"] = Value(True, args.origin(*saves))
    attention = args.text("attn_implementation") if args.has("attn_implementation") else ""
    if not attention and args.flag("cumulative_seq"):
        attention = "flash_attention_2"
    if attention in _ATTENTION:
        section["attention"] = Value(attention, args.origin("attn_implementation"))
    elif attention:
        notes.lost.append(f"--attn_implementation {attention}: not known; model.attention is auto")
    if args.has("fsdp") and args.text("fsdp"):
        section["sharding"] = Value("full", args.origin("fsdp"))
    for name, ours in (("torch_compile", "compile"), ("full_determinism", "deterministic")):
        if args.flag(name):
            section[ours] = Value(True, args.origin(name))
    return section


def training_section(args: Arguments, notes: Notes, rows: int | None) -> Values:
    """Translate what every stage of training has.

    Args:
        args: Of the stage's script.
        notes: Gets what is lost.
        rows: Rows of all datasets, to count the steps of epochs; None if not known.
    """
    batch, how = _batch_size(args, notes)
    steps = args.whole("max_steps")
    if steps <= 0:
        if rows is None:
            do = "add --max_steps to the script"
            raise ConfigError("the script names no number of steps", where=args.where("max_steps"), do=do)
        steps = math.ceil(args.number("num_train_epochs") * rows / batch)
    section: Values = {
        "steps": Value(steps, args.origin("max_steps" if args.whole("max_steps") > 0 else "num_train_epochs")),
        "batch_size": Value(batch, how),
        "passages_per_query": Value(args.whole("train_n_passages"), args.origin("train_n_passages")),
        "temperature": Value(args.number("temperature"), args.origin("temperature")),
    }
    if args.number("clloss_coef") != 1:
        section["loss_factor"] = Value(args.number("clloss_coef"), args.origin("clloss_coef"))
    section |= _optimizer(args, notes)
    section |= _schedule(args, steps, notes)
    clip = args.number("max_grad_norm")
    section["max_grad_norm"] = Value(clip if clip > 0 else _UNCLIPPED, args.origin("max_grad_norm"))
    every = args.number("save_steps")
    every = math.ceil(every * steps) if every < 1 else int(every)
    if args.has("save_steps") and every <= steps:
        section["checkpoint_every"] = Value(every, args.origin("save_steps"))
    elif args.has("save_steps"):
        notes.broken.append(
            f"--save_steps {every} is past the last step, so nothing was saved on the way; here every 100 steps"
        )
    if args.has("save_total_limit") and args.whole("save_total_limit") > 0:
        section["checkpoints_kept"] = Value(args.whole("save_total_limit"), args.origin("save_total_limit"))
    return section


def _batch_size(args: Arguments, notes: Notes) -> tuple[int, str]:
    """Multiply devices, accumulation and batch per device."""
    per_device = "per_gpu_train_batch_size" if args.has("per_gpu_train_batch_size") else "per_device_train_batch_size"
    each, accumulated = args.whole(per_device), args.whole("gradient_accumulation_steps")
    processes = args.launch.processes
    if processes is None:
        source = args.launch.source.name
        notes.lost.append(
            f"number of processes: {source} does not say it, 1 is assumed; add --processes N, or mend batch_size"
        )
    factors = f"--{per_device} {each} x {processes or 1} processes"
    accumulation = f" x --gradient_accumulation_steps {accumulated}" if accumulated > 1 else ""
    return each * (processes or 1) * accumulated, factors + accumulation


def _optimizer(args: Arguments, notes: Notes) -> Values:
    """Translate the model's optimizer."""
    name = "adafactor" if args.flag("adafactor") else args.text("optim")
    if name not in _OPTIMIZERS:
        notes.lost.append(f"--optim {name}: the model is trained with AdamW; learning rates of {name} may not suit it")
    section: Values = {}
    if _OPTIMIZERS.get(name, "adamw") != "adamw":
        section["optimizer"] = Value(_OPTIMIZERS[name], args.origin("optim"))
    section["learning_rate"] = Value(args.number("learning_rate"), args.origin("learning_rate"))
    section["weight_decay"] = Value(args.number("weight_decay"), args.origin("weight_decay"))
    betas = [args.number("adam_beta1"), args.number("adam_beta2")]
    if betas != [0.9, 0.999]:
        section["adam_betas"] = Value(betas, args.origin("adam_beta1", "adam_beta2"))
    if args.number("adam_epsilon") != 1e-8:
        section["adam_epsilon"] = Value(args.number("adam_epsilon"), args.origin("adam_epsilon"))
    return section


def _schedule(args: Arguments, steps: int, notes: Notes) -> Values:
    """Translate the schedule of the learning rate."""
    name = args.text("lr_scheduler_type")
    warmup = args.whole("warmup_steps") or math.ceil(steps * args.number("warmup_ratio"))
    comment = args.origin(
        "warmup_steps" if args.whole("warmup_steps") or not args.has("warmup_ratio") else "warmup_ratio"
    )
    if name == "constant" and warmup:
        notes.broken.append(
            f"--lr_scheduler_type constant had no warm-up there, so the {warmup} steps of warm-up were dead"
        )
        warmup = 0
    schedule = "constant" if name == "constant_with_warmup" else name
    if schedule not in _SCHEDULES:
        schedule = "cosine" if name.startswith("cosine") else "linear"
        notes.lost.append(f"--lr_scheduler_type {name}: not there; {schedule} stands in for it")
    section = {"warmup_steps": Value(warmup, comment), "schedule": Value(schedule, args.origin("lr_scheduler_type"))}
    if schedule != "constant":
        section["final_learning_rate_share"] = Value(args.number("min_lr_ratio"), args.origin("min_lr_ratio"))
    return section


def rule_section(args: Arguments, steps: int, notes: Notes) -> Values:
    """Translate how losses become weights."""
    divides, subtracts = args.flag("normalize_group_loss_scale_with_ref_loss"), args.flag("group_loss_minus_ref_loss")
    if (divides or subtracts) and not args.has("ref_model_name_or_path"):
        notes.broken.append("no --ref_model_name_or_path: the flags of the measure were dead, so it is raw")
        divides = subtracts = False
    measure = {
        (True, False): "relative-sample", (False, True): "excess-sample", (True, True): "excess-relative",
        (False, False): "raw",
    }[divides, subtracts]  # fmt: skip
    if divides and subtracts:
        notes.lost.append(
            "--group_loss_minus_ref_loss with --normalize_group_loss_scale_with_ref_loss: excess-relative takes means "
            "per dataset where the released code divided example by example"
        )
    used = ["normalize_group_loss_scale_with_ref_loss"] * divides + ["group_loss_minus_ref_loss"] * subtracts
    section: Values = {
        "measure": Value(measure, ", ".join(f"--{name}" for name in used) or "neither flag of the measure")
    }
    norm = args.whole("p_norm_of_ref_loss")
    if norm > 2:
        notes.lost.append(f"--p_norm_of_ref_loss {norm}: norms 0, 1 and 2 are there; 2 stands in for it")
    if divides and norm != 1:
        section["reference_norm"] = Value(min(max(norm, 0), 2), args.origin("p_norm_of_ref_loss"))
    section |= _update(args, notes)
    section |= _step_schedule(args, steps, notes)
    clips = args.flag("dro_apply_grad_norm"), args.flag("dro_apply_grad_clip")
    clip = "l2" if clips[0] else "element" if clips[1] else "none"
    name = "dro_apply_grad_clip" if clip == "element" else "dro_apply_grad_norm"
    section["clip"] = Value(clip, args.origin(name) if clip != "none" else f"no --{name}")
    if clip != "none":
        section["clip_norm"] = Value(args.number("dro_max_grad_norm"), args.origin("dro_max_grad_norm"))
    if args.number("ema") != 0.1:
        section["ema"] = Value(args.number("ema"), args.origin("ema"))
    _say_what_differs(args, measure, notes)
    return section


def _update(args: Arguments, notes: Notes) -> Values:
    """Translate the optimizer of the weights, its settings and its step size."""
    name = args.text("dro_optimizer").lower()
    update, step_size = _RULES.get(name, ""), args.number("reweight_eta")
    if not update:
        notes.lost.append(f"--dro_optimizer {name}: not known; sgd stands in for it")
        update = "sgd"
    section: Values = {"update": Value(update, args.origin("dro_optimizer"))}
    comment = args.origin("reweight_eta")
    if args.flag("weight_ema") and update == "sgd" and 0 < args.number("ema") < 1:
        share = args.number("ema")
        section["momentum"] = Value(share, args.origin("weight_ema", "ema"))
        step_size *= share / (1 - share)
        comment += " x ema / (1 - ema), as --weight_ema made it"
    section["step_size"] = Value(float(f"{step_size:.12g}"), comment)
    if update != "adafactor" and args.number("dro_weight_decay"):
        section["rule_decay"] = Value(args.number("dro_weight_decay"), args.origin("dro_weight_decay"))
    betas = [args.number("dro_adam_beta1"), args.number("dro_adam_beta2")]
    if update == "adamw" and betas != [0.9, 0.999]:
        section["rule_betas"] = Value(betas, args.origin("dro_adam_beta1", "dro_adam_beta2"))
    if update == "rmsprop" and args.number("dro_rmsprop_alpha") != 0.99:
        section["rule_alpha"] = Value(args.number("dro_rmsprop_alpha"), args.origin("dro_rmsprop_alpha"))
    if update in ("adamw", "rmsprop") and args.number("dro_epsilon") != 1e-8:
        section["rule_epsilon"] = Value(args.number("dro_epsilon"), args.origin("dro_epsilon"))
    if update == "adagrad":
        section["rule_epsilon"] = Value(1e-10, "adagrad's own there; --dro_epsilon was not read")
    return section


def _step_schedule(args: Arguments, steps: int, notes: Notes) -> Values:
    """Translate the schedule of the weights' step size."""
    name = args.text("dro_lr_scheduler_type")
    warmup = args.whole("dro_warmup_steps") or math.ceil(steps * args.number("dro_warmup_ratio"))
    option = "dro_warmup_steps" if args.whole("dro_warmup_steps") else "dro_warmup_ratio"
    if name == "constant" and warmup:
        notes.broken.append(
            f"--{option}: dead with --dro_lr_scheduler_type constant, the step size was the full one from the start; "
            f"weights.step_warmup: {warmup} would warm it up"
        )
        warmup = 0
    schedule = "constant" if name == "constant_with_warmup" else name
    if schedule not in _SCHEDULES:
        schedule = "cosine" if name.startswith("cosine") else "linear"
        notes.lost.append(f"--dro_lr_scheduler_type {name}: not there; {schedule} stands in for it")
    section: Values = {"step_schedule": Value(schedule, args.origin("dro_lr_scheduler_type"))}
    if warmup:
        section["step_warmup"] = Value(warmup, args.origin(option))
    if schedule != "constant":
        section["final_step_share"] = Value(args.number("min_lr_ratio"), "--min_lr_ratio, which was the floor there")
    return section


def _say_what_differs(args: Arguments, measure: str, notes: Notes) -> None:
    """Say where stage 1 as a whole is another one."""
    accumulated = args.whole("gradient_accumulation_steps")
    if accumulated > 1:
        notes.other.append(
            f"--gradient_accumulation_steps {accumulated} in stage 1: the measure was taken per micro-batch and "
            "averaged, with 0 for a dataset absent from one; here it is taken once over the whole step, and an absent "
            "dataset keeps its weight"
        )
    if not args.flag("dro_only_hn"):
        notes.lost.append(
            "no --dro_only_hn: stage 1 compared with passages of other queries, too; here only with a query's own"
        )
    if args.flag("dro_only_hn") and args.flag("negatives_x_device"):
        notes.broken.append(
            "--negatives_x_device with --dro_only_hn: crashed there; stage 1 needs no passages of other devices"
        )
    if args.flag("homogenous_batch"):
        notes.lost.append("--homogenous_batch in stage 1: batches always mix datasets here")
    if measure == "raw" and args.has("ref_model_name_or_path"):
        notes.other.append("--ref_model_name_or_path: not asked there, because neither flag used its losses")


def _located(path: str, args: Arguments) -> str:
    """Return a model's folder as seen from here, or a hub name as it is."""
    found = find_file(path, args.launch.folder)
    return from_here(found) if found is not None and found.is_dir() else path


def from_here(path: Path) -> str:
    """Write a path as seen from the working directory where it is inside."""
    absolute, here = path.absolute(), Path.cwd()
    resolved = Path(*absolute.parts) if ".." not in absolute.parts else absolute.resolve()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else str(resolved)
