"""Every argument of the released tDRO code, and what it is here.

The table is data: `released_study` translates what is mapped, a study file that was imported says the sentences of the
others, and docs/released-options.md prints them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tdro.setup.released_trainer import TRAINER

Kind = Literal["mapped", "dead", "broken", "not needed", "not carried"]
"""mapped: an option here does it. dead: never read there. broken: did something else there, or failed. not needed: done
here by itself, or without effect on results. not carried: has an effect there and no counterpart here."""


@dataclass(frozen=True)
class Released:
    """One argument.

    Attributes:
        name: As on the command line, without `--`.
        default: Value where it is not given.
        kind: What becomes of it.
        ours: Options of a study that take its place, with commas between them.
        note: A sentence about it.
    """

    name: str
    default: object
    kind: Kind
    ours: str = ""
    note: str = ""


_SPARSE = "sparse and hybrid vectors were not built there; encoders are dense here"
_NORMS = "the norm losses were not built there, and are not here"
_FILLED = "filled in by the program; data.datasets says it"
_ONE_PROJECTION = "queries and passages project to as many dimensions"
_TESTS = "another program there; see tdro evaluate MODEL --help"
_PADDING = "padding never changes a result here, and texts are packed by length"
_BY_RANKS = "accelerate or torchrun says it"

_DOMAIN_CONFIG = (
    Released("epoch", None, "not needed", "", "follows from weights and sizes; --dry-run shows it"),
    Released("domain_weights", None, "mapped", "robust.weights", "equal weights of all datasets are the reference's"),
    Released("n_groups", None, "not needed", "", "counted"),
    Released("domain_ids", None, "mapped", "data.datasets", "names count, numbers do not"),
    Released("size", None, "mapped", "data.datasets.*.size", "for --dry-run; rows are counted when they are read"),
    Released(
        "category_list", None, "broken", "data.datasets.*.path",
        "forgotten in the weights files it wrote, so stage 2 found no files; a dataset of several files here",
    ),
)  # fmt: skip

_DATA = (
    Released("query_collection", None, "mapped", "data.datasets.*.queries"),
    Released("passage_collection", None, "mapped", "data.datasets.*.passages"),
    Released("corpus_path", None, "mapped", "data.datasets.*.path", "one file of rows is a study of one dataset"),
    Released("dev_path", None, "broken", "evaluation.watch", "its metrics failed or were wrong; here they are right"),
    Released("overwrite_cache", False, "dead", "", "caches are keyed by content here"),
    Released("q_max_len", 512, "mapped", "data.query_max_length"),
    Released("p_max_len", 512, "mapped", "data.passage_max_length"),
    Released("pad_to_max_length", False, "not needed", "", _PADDING),
    Released("pad_to_multiple_of", None, "dead", "", _PADDING),
    Released(
        "train_n_passages", 8, "mapped", "reference.passages_per_query, weights.passages_per_query",
        "a row with fewer negatives repeated some there; here it is shorter",
    ),
    Released("eval_n_passages", 8, "not needed", "", "all passages of the dev file are ranked"),
    Released("positive_passage_no_shuffle", False, "mapped", "data.positives"),
    Released("negative_passage_no_shuffle", False, "mapped", "data.negatives"),
    Released("qrel_path", None, "not needed", "", "an evaluation task brings its qrels"),
    Released("encoded_save_prefix", None, "dead", "", "tdro index keeps encoded passages"),
    Released("encode_is_qry", False, "dead", "", "queries and passages are told apart by themselves"),
    Released("domain_config_path", None, "mapped", "data.datasets, robust.weights"),
    Released("preprocessed_dir", None, "mapped", "data.root", "DATASET.jsonl in it"),
    Released("add_domain_id", True, "not needed", "", "a row always knows its dataset"),
    Released(
        "add_domain_name", True, "mapped", "data.datasets.*.in_batch_negatives",
        "with it, `classification` or `clustering` in a name meant hard negatives only; said per dataset here",
    ),
    Released("add_prompt", False, "mapped", "data.instructions", "the instructions are in tdro's own words"),
    Released("add_prompt_prob", 1.0, "mapped", "data.instruction_share"),
    Released("prompt_type", "e5", "mapped", "data.instruction_template"),
    Released("encoding_task_name", None, "dead", "", "evaluation.tasks.*.instruction"),
    Released("stopping_strategy", "all_exhausted", "dead", "", "a dataset begins again in a new order"),
    Released("homogenous_batch", False, "mapped", "reference.batches", "stage 1 always mixes datasets"),
    Released("domain_config", None, "mapped", "data.datasets"),
)  # fmt: skip

_MODEL = (
    Released("model_name_or_path", None, "mapped", "model.base"),
    Released("model_type", None, "not needed", "", "EncoderModel was the only one"),
    Released("config_name", None, "not carried", "", "the configuration is the base's own"),
    Released("tokenizer_name", None, "not carried", "", "the tokenizer is the base's own; put it in the base's folder"),
    Released("cache_dir", None, "not needed", "", "HF_HOME says where hub files are kept"),
    Released("untie_encoder", False, "mapped", "model.query_encoder"),
    Released("add_pooler", False, "mapped", "model.projection"),
    Released("projection_in_dim", None, "not needed", "", "the base knows it"),
    Released("projection_out_dim", None, "mapped", "model.projection"),
    Released("use_fast_tokenizer", True, "not needed", "", "always"),
    Released("cumulative_seq", False, "mapped", "model.attention", "with flash attention nothing is padded here"),
    Released("pooling_strategy", None, "mapped", "model.pooling"),
    Released("score_function", "cos_sim", "mapped", "model.normalize"),
    Released("normalize", None, "broken", "model.normalize", "score_function overwrote it"),
    Released("model_name_or_path_qry", None, "mapped", "model.query_encoder"),
    Released("model_name_or_path_psg", None, "mapped", "model.base"),
    Released("pooling_strategy_qry", None, "mapped", "model.pooling", "queries and passages pool alike"),
    Released("pooling_strategy_psg", None, "mapped", "model.pooling", "queries and passages pool alike"),
    Released("projection_in_dim_qry", None, "not needed", "", "the base knows it"),
    Released("projection_out_dim_qry", None, "mapped", "model.projection", _ONE_PROJECTION),
    Released("projection_in_dim_psg", None, "not needed", "", "the base knows it"),
    Released("projection_out_dim_psg", None, "mapped", "model.projection", _ONE_PROJECTION),
    Released("hybrid_use_dense_vector", False, "dead", "", _SPARSE),
    Released("hybrid_use_sparse_vector", False, "dead", "", _SPARSE),
    Released("sparse_use_relu", False, "dead", "", _SPARSE),
    Released("sparse_use_log_saturation", False, "dead", "", _SPARSE),
    Released("sparse_use_logsumexp", False, "dead", "", _SPARSE),
    Released("sparse_use_mean_aggregation", False, "dead", "", _SPARSE),
    Released("sparse_min_tokens_to_keep", 8, "dead", "", _SPARSE),
    Released("sparse_top_p_qry", 1.0, "dead", "", _SPARSE),
    Released("sparse_top_p_psg", 1.0, "dead", "", _SPARSE),
    Released("sparse_top_k_qry", 1024, "dead", "", _SPARSE),
    Released("sparse_top_k_psg", 0, "dead", "", _SPARSE),
    Released("sparse_use_adaptive_top_k", False, "dead", "", _SPARSE),
    Released("sparse_expansion_ratio_qry", 2.0, "dead", "", _SPARSE),
    Released("sparse_expansion_ratio_psg", 2.0, "dead", "", _SPARSE),
    Released("sparse_pool_from_input_ids", False, "dead", "", _SPARSE),
    Released("sparse_select_top_rank_basis", False, "dead", "", _SPARSE),
    Released("sparse_basis_top_k", 128, "dead", "", _SPARSE),
    Released("sparse_basis_use_largest", True, "dead", "", _SPARSE),
    Released("sparse_basis_use_smallest", True, "dead", "", _SPARSE),
    Released("num_layers_for_query_model", None, "dead", "", "model.query_encoder names an encoder of its own"),
)

_TRAINING = (
    Released("dataloader_drop_last", True, "not needed", "", "every step has its full batch"),
    Released("temperature", 1.0, "mapped", "reference.temperature, weights.temperature"),
    Released(
        "clloss_coef", 1.0, "mapped", "reference.loss_factor, weights.loss_factor", "0 with dro_only_hn failed there",
    ),
    Released(
        "distillation", False, "mapped", "reference.distillation, weights.distillation",
        "with dro_only_hn it did nothing there",
    ),
    Released("loss_reduction", "mean", "not needed", "", "the loss of a step is the mean over its queries"),
    Released("negatives_x_device", False, "not needed", "", "a query sees the passages of all devices' batches"),
    Released("loss_scaling_dro_weights", None, "dead", "robust.plan", "robust.plan: reweight-loss does what it meant"),
    Released("dynamic_subbatch_forward", False, "not needed", "", "see model.micro_batch_tokens"),
    Released("add_flops", False, "dead", "", _NORMS),
    Released("add_vector_norm", False, "dead", "", _NORMS),
    Released("norm_ord", 1, "dead", "", _NORMS),
    Released("q_norm_loss_factor", 1.0, "dead", "", _NORMS),
    Released("p_norm_loss_factor", 1.0, "dead", "", _NORMS),
    Released(
        "min_lr_ratio", 0.0, "mapped",
        "reference.final_learning_rate_share, weights.final_learning_rate_share, weights.final_step_share",
        "it was the floor of the weights' step size too",
    ),
    Released("remove_unused_columns", False, "not needed", "", "other fields of a row are ignored"),
    Released("attn_implementation", "flash_attention_2", "mapped", "model.attention", "auto where it is not given"),
    Released("logging_path", None, "not needed", "", "events.jsonl in the run folder"),
    Released("lora", False, "mapped", "model.lora_rank"),
    Released("lora_r", 8, "mapped", "model.lora_rank"),
    Released("lora_alpha", 32, "mapped", "model.lora_alpha"),
    Released("lora_dropout", 0.1, "mapped", "model.lora_dropout"),
    Released(
        "grad_cache", False, "broken", "model.micro_batch_tokens",
        "crashed in stage 1 and made accumulated gradients too small; here always on, and exact",
    ),
    Released("grad_cache_ac", False, "mapped", "model.gradient_checkpointing", "the cache itself is always on"),
    Released("gc_q_chunk_size", 32, "not needed", "model.micro_batch_tokens", "found by trying; changes rounding only"),
    Released("gc_p_chunk_size", 4, "not needed", "model.micro_batch_tokens", "found by trying; changes rounding only"),
    Released("no_sync_except_last", False, "not needed", "", "gradients are always summed once per step"),
)  # fmt: skip

_WEIGHTS = (
    Released("dro_type", "DROModelv1", "broken", "", "its default did not exist; there is one kind of stage 1 here"),
    Released("ref_model_name_or_path", None, "not needed", "", "stage 1 asks the reference that the study has trained"),
    Released("group_loss_minus_ref_loss", False, "mapped", "weights.measure"),
    Released("normalize_group_loss_scale_with_ref_loss", False, "mapped", "weights.measure"),
    Released("p_norm_of_ref_loss", 1, "mapped", "weights.reference_norm"),
    Released("reweight_eta", 0.25, "mapped", "weights.step_size"),
    Released("ema", 0.1, "mapped", "weights.ema, weights.momentum"),
    Released(
        "weight_ema", False, "mapped", "weights.momentum, weights.step_size",
        "momentum = ema; its signals summed to ema / (1 - ema) of themselves, so step_size = reweight_eta x that",
    ),
    Released("normalize_weights_on_every_update", False, "not needed", "", "always; matters with weight decay only"),
    Released("dro_only_hn", False, "not needed", "", "stage 1 always compares a query with its own passages"),
    Released(
        "dro_save_top_percent_uniform_weights", [20, 30, 40, 50, 60, 70, 80, 90], "broken", "robust.share",
        "wrote empty files where a share kept nothing; any share can be planned after stage 1 here",
    ),
    Released("dro_optimizer", "sgd", "mapped", "weights.update"),
    Released("dro_weight_decay", 0.0, "mapped", "weights.rule_decay", "adafactor did not read it"),
    Released("dro_epsilon", 1e-8, "mapped", "weights.rule_epsilon", "of adamw and rmsprop"),
    Released("dro_rmsprop_alpha", 0.99, "mapped", "weights.rule_alpha"),
    Released("dro_adam_beta1", 0.9, "mapped", "weights.rule_betas"),
    Released("dro_adam_beta2", 0.999, "mapped", "weights.rule_betas"),
    Released("dro_apply_grad_norm", False, "mapped", "weights.clip"),
    Released("dro_apply_grad_clip", False, "mapped", "weights.clip", "the norm went before it"),
    Released("dro_max_grad_norm", 1.0, "mapped", "weights.clip_norm"),
    Released("dro_lr_scheduler_type", "constant", "mapped", "weights.step_schedule"),
    Released("dro_warmup_ratio", 0.0, "mapped", "weights.step_warmup", "`constant` had no warm-up there"),
    Released("dro_warmup_steps", 0, "mapped", "weights.step_warmup", "`constant` had no warm-up there"),
    Released(
        "dro_min_lr_ratio", 0, "dead", "weights.final_step_share",
        "min_lr_ratio was the floor of the step size; final_step_share is that floor here and works",
    ),
    Released("epoch", None, "not needed", "", _FILLED),
    Released("domain_weights", None, "not needed", "", _FILLED),
    Released("n_groups", None, "not needed", "", _FILLED),
    Released("domain_to_idx", None, "not needed", "", _FILLED),
    Released("domain_size", None, "not needed", "", _FILLED),
)  # fmt: skip

_WEIGHTS_TRAINING = (Released("loss_reduction", "none", "not needed", "", "stage 1 has the loss of every query"),)

_EVALUATION = (
    Released("model_name_or_path", None, "mapped", "evaluation.models", "or tdro evaluate MODEL"),
    Released("model_type", "EncoderModel", "not needed", "", "read from the saved model"),
    Released("output_dir", None, "not needed", "", "evaluation/ in the run folder, or --out"),
    Released("task_name", None, "mapped", "evaluation.tasks"),
    Released("task_type", None, "not needed", "", "BEIR, MIRACL and MKQA are told apart by their files"),
    Released("batch_size", 64, "not needed", "", "texts are packed by tokens"),
    Released("add_prompt", False, "mapped", "evaluation.tasks.*.instruction"),
    Released("prompt_type", "e5", "mapped", "data.instruction_template"),
    Released("eval_all_langs", False, "mapped", "evaluation.tasks.*.languages", "all where none is named"),
    Released("lang", "en", "mapped", "evaluation.tasks.*.languages"),
    Released("overwrite_results", False, "not needed", "", "what changed is evaluated again"),
    Released("save_predictions", False, "not needed", "", "rankings are always kept, in TREC's form"),
    Released("top_k", 1000, "not needed", "", "as deep as the measures look"),
    Released("previous_results", None, "not carried", "", "no reranking of earlier results"),
    Released("sigmoid_normalize", False, "not carried", "", "no reranking of earlier results"),
    Released("q_max_len", 128, "mapped", "data.query_max_length"),
    Released("p_max_len", 512, "mapped", "data.passage_max_length"),
    Released("sep", " ", "not needed", "", "title and text are joined by a space"),
    Released("max_length", 512, "mapped", "data.passage_max_length"),
    Released("padding", True, "not needed", "", _PADDING),
    Released("pad_to_multiple_of", 8, "not needed", "", _PADDING),
    Released("bf16", False, "broken", "model.precision", "a GPU computed in fp16 all the same"),
    Released("fp16", False, "mapped", "model.precision"),
    Released("seed", 42, "not needed", "", "nothing is drawn"),
    Released("attn_implementation", "flash_attention_2", "mapped", "model.attention"),
    Released("torch_compile", False, "not needed", "", "changes rounding only"),
    Released("local_rank", -1, "not needed", "", _BY_RANKS),
    Released("rank", -1, "not needed", "", _BY_RANKS),
    Released("world_size", 0, "not needed", "", _BY_RANKS),
    Released("master_addr", "127.0.0.1", "not needed", "", _BY_RANKS),
    Released("master_port", 12345, "not needed", "", _BY_RANKS),
    Released("debug", False, "not needed", "", "tdro ... --debug shows tracebacks"),
)

OPTIONS: Mapping[str, tuple[Released, ...]] = {
    "DomainConfig": _DOMAIN_CONFIG,
    "DataArguments": _DATA,
    "ModelArguments": _MODEL,
    "RetrieverTrainingArguments": _TRAINING,
    "DistributationRobustOptimizationModelArguments": _WEIGHTS,
    "DistributationRobustOptimizationRetrieverTrainingArguments": _WEIGHTS_TRAINING,
    "EvalArguments": _EVALUATION,
    "TrainingArguments": tuple(Released(*row) for row in TRAINER),
}
"""Group there -> its arguments. TrainingArguments are those of transformers 4.44."""

TRAINING_GROUPS = ("TrainingArguments", "DataArguments", "ModelArguments", "RetrieverTrainingArguments",
                   "DistributationRobustOptimizationModelArguments")  # fmt: skip
"""Groups that a training takes; in this order, so that the last one has the word where a name occurs twice."""


def training_options() -> dict[str, Released]:
    """Return name -> argument for all that a training takes.

    Example:
        >>> training_options()["reweight_eta"].ours
        'weights.step_size'
    """
    return {option.name: option for group in TRAINING_GROUPS for option in OPTIONS[group]}


def names_of(group: str) -> set[str]:
    """Return the names of a group."""
    return {option.name for option in OPTIONS[group]}


def as_markdown() -> str:
    """Write the whole table for docs/released-options.md."""
    lines: list[str] = []
    for group, rows in OPTIONS.items():
        lines += [f"### {group}", "", "| there | default | | here | |", "|---|---|---|---|---|"]
        for row in rows:
            ours = ", ".join(f"`{name}`" for name in row.ours.split(", ") if name)
            lines.append(f"| `{row.name}` | `{row.default!r}` | {row.kind} | {ours} | {row.note} |")
        lines.append("")
    return "\n".join(lines)
