"""Arguments of the released code become a study that says the same, and say what they lose."""

import json
import os
import re
from ast import literal_eval
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import tiny_study

from tdro.cli import dedup, mine
from tdro.cli.overrides import parse
from tdro.config import MiningConfig, Study, options
from tdro.data.weights_file import read_weights
from tdro.errors import ConfigError
from tdro.setup import released_preparation
from tdro.setup.released_args import import_released
from tdro.setup.released_options import OPTIONS, as_markdown
from tdro.setup.released_shell import read_script
from tdro.study_file import load_study
from tdro.training.pipeline import planned, run_study
from tdro.training.run import Run

ROOT = Path(__file__).parents[2]
LISTED = Path(os.environ.get("TDRO_SHARED") or ROOT.parent / "shared") / "released-options.md"
PRESET = ROOT / "src" / "tdro" / "data" / "presets" / "paper-2408.10613.json"

START = """#!/bin/bash
BASE=$(dirname "$PWD")
NAME=${0%.*}
CONFIG=$BASE/config/uniform.json    # every dataset alike
GPUS=8
TOTAL=$((2048))
"""
MODEL = """
MODEL_ARGS=""
MODEL_ARGS+=" --model_type EncoderModel --pooling_strategy lasttoken "   # needs an EOS token
MODEL_ARGS+=" --score_function cos_sim --q_max_len 128 --p_max_len 512 --bf16 --add_prompt --prompt_type e5 "
TRAIN="--do_train --save_steps 20000 --save_total_limit 10 --logging_steps 2 --warmup_steps 100"
TRAIN+=" --per_device_train_batch_size $EACH --learning_rate 1e-4 --min_lr_ratio 0.1 --lr_scheduler_type cosine"
TRAIN+=" --max_steps 1000 --temperature 0.002 --seed 42 --dataloader_num_workers 4 --optim adamw_torch_fused"
TRAIN+=" --weight_decay 0.1 --gradient_checkpointing"
"""
FINE_TUNING = """
EACH=$(($TOTAL/$GPUS))
MODULE=tdro.finetune.fit
%s
TRAIN+=" --homogenous_batch --train_n_passages 2 --negatives_x_device"
# TRAIN+=" --grad_cache "
"""
WEIGHTS = """
EACH=$(($TOTAL/4/$GPUS))
MODULE=tdro.dro.fit
%s
TRAIN+=" --train_n_passages 8 --gradient_accumulation_steps 4 --dro_type DROModelv2 --reweight_eta 2e-2"
TRAIN+=" --ref_model_name_or_path $BASE/results/s0 --normalize_weights_on_every_update --dro_only_hn"
TRAIN+=" --normalize_group_loss_scale_with_ref_loss --dro_optimizer sgd --dro_apply_grad_norm"
TRAIN+=" --dro_max_grad_norm 1.0 --dro_lr_scheduler_type constant --dro_warmup_ratio 0.1 --dro_min_lr_ratio 0.1"
"""
END = """
set -ex
accelerate launch --num_machines 1 --num_processes $((1*GPUS)) -m $MODULE \\
    --model_name_or_path Qwen/Qwen1.5-0.5B \\
    --output_dir "$BASE/results/$NAME" \\
    --domain_config_path $CONFIG --preprocessed_dir $BASE/data/dedup \\
    $TRAIN $MODEL_ARGS \\
    --report_to tensorboard --run_name ${NAME} \\
    |& tee $BASE/logs/rank.log
"""


@pytest.fixture
def released(tmp_path, monkeypatch):
    """The three scripts in the folder of the released code, and its domain config of equal weights."""
    preset = json.loads(PRESET.read_text())
    preset["domain_weights"] = {name: 1 / 25 for name in preset["domain_ids"]}
    for folder in ("scripts", "config", "results/s1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "config" / "uniform.json").write_text(json.dumps(preset))
    (tmp_path / "scripts" / "s0.sh").write_text(START + FINE_TUNING % MODEL + END)
    (tmp_path / "scripts" / "s1.sh").write_text(START + WEIGHTS % MODEL + END)
    robust = START + "CONFIG=$BASE/results/s1/$1_weights.json\n" + FINE_TUNING % MODEL + END
    (tmp_path / "scripts" / "s2.sh").write_text(robust)
    monkeypatch.chdir(tmp_path)
    return [Path("scripts", f"s{stage}.sh") for stage in range(3)]


def script(folder: Path, arguments: str, launcher: str = "python -m tdro.finetune.fit", name: str = "run.sh") -> Path:
    """Write a script that launches one training."""
    (folder / "d.json").write_text(json.dumps({"domain_ids": {"a": 0, "b": 1}, "size": {"a": 50, "b": 70}}))
    path = folder / name
    path.write_text(f"{launcher} --model_name_or_path m --domain_config_path d.json --max_steps 10 {arguments}\n")
    return path


def study_of(folder: Path, arguments: str, **more) -> Study:
    """Import a script with some arguments."""
    return import_released([script(folder, arguments)], **more).study


def lines_of(folder: Path, arguments: str) -> tuple[str, str]:
    """Import a script and return what it loses and what it says else."""
    imported = import_released([script(folder, arguments)])
    return "\n".join(imported.lost), "\n".join(imported.notes)


STAGE_1 = "--dro_type DROModelv2 --dro_only_hn --ref_model_name_or_path r "


class TestReleasedScripts:
    def test_three_scripts_are_one_study_with_the_papers_numbers(self, released, tmp_path):
        imported = import_released(released, variables={"1": "top70"})
        assert list(imported.stages) == ["reference", "weights", "robust"]
        (tmp_path / "study.yaml").write_text(imported.text)
        study = load_study(tmp_path / "study.yaml")
        assert study == imported.study
        reference, weights = study.reference, study.weights
        for stage in (reference, weights):
            assert (stage.steps, stage.batch_size, stage.temperature) == (1000, 2048, 0.002)
            assert (stage.learning_rate, stage.weight_decay, stage.warmup_steps) == (1e-4, 0.1, 100)
            assert (stage.schedule, stage.final_learning_rate_share, stage.max_grad_norm) == ("cosine", 0.1, 1.0)
            assert (stage.optimizer, stage.loss_factor, stage.distillation) == ("adamw", 1.0, 0.0)
        assert (reference.passages_per_query, reference.batches, weights.passages_per_query) == (2, "homogeneous", 8)
        assert (weights.measure, weights.update, weights.step_size) == ("relative-sample", "sgd", 0.02)
        assert (weights.clip, weights.clip_norm, weights.step_schedule, weights.step_warmup) == (
            "l2",
            1.0,
            "constant",
            0,
        )
        assert (weights.momentum, weights.rule_decay, weights.reference_norm) == (0.0, 0.0, 1)
        assert (study.robust.plan, study.robust.share, study.robust.weights) == ("top-share", 0.7, "learned")
        assert (study.data.query_max_length, study.data.passage_max_length) == (128, 512)
        assert (study.data.instructions, study.data.root, study.seed) == ("auto", "data/dedup", 42)
        assert (study.model.base, study.model.pooling, study.model.normalize) == ("Qwen/Qwen1.5-0.5B", "last", True)
        assert (study.model.precision, study.model.gradient_checkpointing) == ("bfloat16", True)
        assert study.name == "s2" and not imported.lost

    def test_its_dry_run_needs_no_data_and_has_the_papers_sizes(self, released):
        study = import_released(released, variables={"1": "top70"}).study
        table = planned(study)
        sizes = json.loads(PRESET.read_text())["size"]
        assert {name: row["size"] for name, row in table.items()} == sizes and len(sizes) == 25
        assert table["miracl"]["reference_epochs"] == pytest.approx(1000 * 2048 / 25 / 32405)

    def test_what_was_dead_or_broken_has_a_line_each(self, released):
        notes = import_released(released, variables={"1": "top70"}).notes
        for start in (
            "--dro_min_lr_ratio 0.1: dead",
            "--dro_warmup_ratio: dead with --dro_lr_scheduler_type constant",
            "--dro_type DROModelv2: broken",
            "--save_steps 20000 is past the last step",
            "--gradient_accumulation_steps 4 in stage 1",
            "--negatives_x_device: ",
        ):
            assert len([line for line in notes if line.startswith(start)]) == 1, start

    @pytest.mark.parametrize(
        ("weights", "plan", "share", "export"),
        [("curr", "reweight", 0.7, "last"), ("mean", "reweight", 0.7, "mean"), ("top40", "top-share", 0.4, "last")],
    )
    def test_a_weights_file_that_stage_1_would_write_is_planned(self, released, weights, plan, share, export):
        study = import_released(released, variables={"1": weights}).study
        assert (study.robust.plan, study.robust.share, study.robust.weights) == (plan, share, "learned")
        assert study.weights.export == export

    def test_a_weights_file_that_is_there_is_taken(self, released):
        weights = Path("results/s1/top70_weights.json")
        learned = json.loads(PRESET.read_text())
        kept = sorted(learned["domain_weights"], key=learned["domain_weights"].get)[-17:]
        weights.write_text(json.dumps({"domain_weights": {name: 1 / 17 for name in kept}}))
        study = import_released(released, variables={"1": "top70"}).study
        assert (study.robust.plan, study.robust.weights) == ("reweight", str(weights))
        rows = planned(study).values()
        assert sorted(row["robust_probability"] for row in rows)[-17:] == pytest.approx([1 / 17] * 17)
        assert sum(row["robust_probability"] == 0 for row in rows) == 8

    def test_an_argument_of_the_script_that_is_not_given_is_the_papers_choice_and_said(self, released):
        imported = import_released(released)
        assert (imported.study.robust.plan, imported.study.robust.share) == ("top-share", 0.7)
        assert "which weights it names is not known" in "\n".join(imported.lost)

    def test_the_reference_alone_and_its_dry_run(self, released):
        imported = import_released(released[:1])
        assert list(imported.stages) == ["reference"] and len(planned(imported.study)) == 25
        assert "no script of stage 1" in "\n".join(imported.notes)
        weights, robust = imported.study.weights, imported.study.robust  # the paper's, whatever the defaults are
        assert (weights.measure, robust.plan, robust.share) == ("relative", "top-share", 0.7)

    def test_stage_1_alone_names_a_reference_that_the_study_trains_itself(self, released):
        imported = import_released(released[1:2])
        assert imported.study.weights.step_size == 0.02 and imported.study.reference.learning_rate == 1e-4
        assert "stage 1 asks the reference that this study trains" in "\n".join(imported.lost)

    def test_a_setting_that_differs_between_scripts_is_said(self, released):
        text = released[2].read_text().replace("--learning_rate 1e-4", "--learning_rate 3e-4")
        released[2].write_text(text.replace("--q_max_len 128", "--q_max_len 64"))
        imported = import_released(released, variables={"1": "top70"})
        assert imported.study.reference.learning_rate == 1e-4 and imported.study.data.query_max_length == 128
        lost = "\n".join(imported.lost)
        assert "learning_rate: 0.0003 for the robust model, 0.0001 for the reference" in lost
        assert "--q_max_len: 128 in s0.sh, 64 in s2.sh" in lost

    def test_a_domain_config_that_is_missing_is_said_where_another_script_has_one(self, released):
        released[1].write_text(released[1].read_text().replace("uniform.json", "other.json"))
        assert "other.json of stage weights is not there" in "\n".join(import_released(released[:2]).lost)

    def test_two_scripts_of_a_stage_are_refused(self, released):
        with pytest.raises(ConfigError, match="two launches train the reference"):
            import_released([released[0], released[0]])

    def test_two_launches_in_the_branches_of_a_condition_are_refused_with_what_helps(self, tmp_path):
        path = script(tmp_path, "--seed 1")
        launch = path.read_text()
        path.write_text(f"if [ $1 ]; then\n{launch}else\n{launch}fi\n")
        with pytest.raises(ConfigError, match="keep one of the two launches in a copy of the script"):
            import_released([path])


class TestShell:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("run a 'b c' \"d e\" f\\ g", ["run", "a", "b c", "d e", "f g"]),
            ("A=1\nB=$A$A\nrun $B ${A}x \"$A $B\" '$A'", ["run", "11", "1x", "1 11", "$A"]),
            ("A=' x  y '\nrun p$A q", ["run", "p", "x", "y", "q"]),
            ("run a \\\n  b # c\nother", ["run", "a", "b"]),
            ("run a#b # c", ["run", "a#b"]),
            ("A=(x 'y z')\nA+=(w)\nrun \"${A[@]}\"", ["run", "x", "y z", "w"]),
            ("N=3\nrun $((N * (2 + 4) / 2)) $(( $N%2 ))", ["run", "9", "1"]),
            ("run ${A:-b c} ${B-d}", ["run", "b", "c", "d"]),
            ("A=x.y.sh\nrun ${A%.*} ${A%%.*} ${A#*.} ${A##*.}", ["run", "x.y", "x", "y.sh", "sh"]),
            ("run a > out 2>&1 b | tee c", ["run", "a", "b"]),
            ("export A=1 B=2\nA=3 run $A $B", ["run", "3", "2"]),
            ("run $A $(date) $1", ["run", "${A}", "$(...)", "${1}"]),
            ('run "a\\"b" "\\$A"', ["run", 'a"b', "$A"]),
            ("if [ 1 -gt 0 ]; then A=1; else A=2; fi\nrun $A", ["run", "2"]),
            ('run $(basename $0) $(cd "$(dirname "$0")" && pwd)/x', ["run", "s.sh", "dir/x"]),
        ],
    )
    def test_words_are_those_of_a_shell(self, text, words):
        commands = read_script(text, Path("dir/s.sh")).commands
        assert list(next(c for c in commands if c.words[0] == "run").words) == words

    def test_values_from_outside_and_assignments_in_conditions(self):
        read = read_script('if x; then B=1; C+=" --y"; fi\nrun $1 $B', Path("s.sh"), {"1": "top70"})
        assert read.commands[-1].words == ("run", "top70", "1")
        assert [(a.name, a.adds) for a in read.conditional] == [("B", False), ("C", True)]

    def test_a_condition_that_decides_an_argument_is_said(self, tmp_path):
        path = script(tmp_path, "$MORE")
        path.write_text('if [ $1 ]; then MORE="--temperature 0.5"; P=" --port 1"; fi\n' + path.read_text())
        imported = import_released([path])
        assert imported.study.reference.temperature == 0.5
        assert any("sets MORE, P inside conditions" in line for line in imported.notes)
        path.write_text(path.read_text().replace("; P=", "; P+=").replace("MORE=", "MORE+="))
        assert any("sets MORE inside conditions" in line for line in import_released([path]).notes)

    @pytest.mark.parametrize("text", ["run 'a", 'run "a', "run $(a", "A=(b"])
    def test_what_is_not_closed_is_refused_with_its_line(self, text):
        with pytest.raises(ConfigError, match=r"s\.sh:2"):
            read_script("x\n" + text, Path("s.sh"))

    @pytest.mark.parametrize(
        ("launcher", "processes"),
        [
            ("python -m tdro.finetune.fit", 1),
            ("torchrun --nproc_per_node 4 train.py", 4),
            ("torchrun --nproc-per-node=4 --nnodes 2 -m tdro.finetune.fit", 8),
            ("python -m torch.distributed.launch --nproc_per_node=3 train.py", 3),
            ("accelerate launch --num_processes 6 -m tdro.finetune.fit", 6),
            ("accelerate launch --config_file a.yaml train.py", 5),
            ("deepspeed --num_gpus 2 --num_nodes 3 train.py", 6),
            ("deepspeed --include localhost:0,1,2,3 train.py", 4),
            ("CUDA_VISIBLE_DEVICES=0,1,3 accelerate launch train.py", 3),
        ],
    )
    def test_processes_are_those_of_the_launcher(self, tmp_path, launcher, processes):
        (tmp_path / "a.yaml").write_text("num_processes: 5\n")
        path = script(tmp_path, "--per_device_train_batch_size 8 --gradient_accumulation_steps 2", launcher)
        imported = import_released([path])
        assert imported.study.reference.batch_size == 8 * 2 * processes
        assert not any("number of processes" in line for line in imported.lost)

    def test_unknown_number_of_processes_is_said_and_can_be_given(self, tmp_path):
        path = script(tmp_path, "--per_device_train_batch_size 8", "accelerate launch -m tdro.finetune.fit")
        assert any("--processes N" in line for line in import_released([path]).lost)
        assert import_released([path], processes=8).study.reference.batch_size == 64

    def test_an_unknown_number_of_nodes_leaves_the_number_of_processes_unknown(self, tmp_path):
        launcher = "torchrun --nproc_per_node 4 --nnodes $NODES train.py"
        path = script(tmp_path, "--per_device_train_batch_size 8", launcher)
        assert any("--processes N" in line for line in import_released([path]).lost)
        assert import_released([path], variables={"NODES": "2"}).study.reference.batch_size == 64

    @pytest.mark.parametrize(
        ("launcher", "arguments", "precision"),
        [
            ("accelerate launch --mixed_precision bf16 train.py", "", "bfloat16"),
            ("accelerate launch --mixed_precision=fp16 train.py", "", "auto"),
            ("accelerate launch --config_file a.yaml train.py", "", "bfloat16"),
            ("accelerate launch --config_file a.yaml train.py", "--fp16", "auto"),
            ("accelerate launch --config_file a.yaml --mixed_precision no train.py", "", "float32"),
            ("torchrun --nproc_per_node 2 train.py", "", "float32"),
        ],
    )
    def test_precision_of_accelerate_is_that_of_the_trainer(self, tmp_path, launcher, arguments, precision):
        (tmp_path / "a.yaml").write_text("mixed_precision: 'bf16'\nnum_processes: 1\n")
        imported = import_released([script(tmp_path, arguments, launcher)])
        assert imported.study.model.precision == precision
        assert (precision == "auto") == bool(re.search(r"precision: auto +# --fp16$", imported.text, re.M))

    def test_documents_in_a_script_are_files_but_for_those_that_are_run(self, tmp_path):
        path = script(tmp_path, "--temperature 0.5")
        launch = path.read_text()
        other = launch.replace("0.5", "0.9")
        path.write_text(f"cat > notes.txt <<EOF\nit's {other}EOF\n{launch}")
        assert import_released([path]).study.reference.temperature == 0.5
        path.write_text(f"sbatch <<'EOF'\n{launch}EOF\n")
        assert import_released([path]).study.reference.temperature == 0.5

    @pytest.mark.parametrize("name", ['"$@"', "$*", '"${@}"'])
    def test_all_arguments_of_a_script_are_those_that_are_given(self, tmp_path, name):
        path = script(tmp_path, f"--seed 3 {name} --dataloader_num_workers 2")
        given = {"1": "--temperature", "2": "0.25"}
        assert import_released([path], variables=given).study.reference.temperature == 0.25
        assert import_released([path]).study.reference.temperature == 1

    def test_other_commands_of_a_script_are_passed_over(self, tmp_path):
        path = script(tmp_path, "--temperature 0.5")
        text = path.read_text()
        path.write_text(
            f"python eval.py --task_name x --model_name_or_path m\nmkdir -p x\n{text}\npython more.py --top_k 3"
        )
        assert import_released([path]).study.reference.temperature == 0.5


PIECES = [
    *(
        "$",
        "{",
        "}",
        "(",
        ")",
        "((",
        "))",
        "'",
        '"',
        "\\",
        "\n",
        " ",
        "#",
        "=",
        "+=",
        "A",
        "1",
        "-",
        "--seed",
        "`",
        "<",
    ),
    *(">", "&", "|", ";", "if ", "for ", "fi", "eval ", "[@]", "%", "a.py", "-m", "$A", "${A}", "$(pwd)", "$((1+2))"),
    *("dirname ", "export ", "nan", "1e400", "[]", "\x00"),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_any_text_is_a_study_or_one_clear_error(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("any")
    path = script(folder, text)
    try:
        assert import_released([path]).study.data.datasets
    except ConfigError as error:
        assert str(error)


class TestArguments:
    @pytest.mark.parametrize("text", ["--bf16", "--bf16 True", "--bf16=true", "--bf16 1", "--no_fp16 --bf16"])
    def test_flags_as_transformers_reads_them(self, tmp_path, text):
        assert study_of(tmp_path, text).model.precision == "bfloat16"

    def test_what_is_switched_off_as_by_default_has_no_line(self, tmp_path):
        lost, said = lines_of(tmp_path, '--fp16 False --push_to_hub false --deepspeed "" --overwrite_cache 0')
        assert "deepspeed" not in lost and "fp16" not in lost + said and "push_to_hub" not in said
        assert "overwrite_cache" not in said
        assert "deepspeed zero.json" in lines_of(tmp_path, "--deepspeed zero.json")[0]

    def test_dashes_do_for_underscores_and_the_last_one_counts(self, tmp_path):
        assert study_of(tmp_path, "--q-max-len 99 --seed 1 --seed 7").data.query_max_length == 99
        assert study_of(tmp_path, "--seed 1 --seed 7").seed == 7

    def test_what_is_not_given_has_the_released_default(self, tmp_path):
        study = study_of(tmp_path, "")
        reference = study.reference
        assert (reference.temperature, reference.learning_rate, reference.weight_decay) == (1.0, 5e-5, 0.0)
        assert (reference.schedule, reference.warmup_steps, reference.final_learning_rate_share) == ("linear", 0, 0.0)
        assert (reference.batch_size, reference.passages_per_query, reference.batches) == (8, 8, "mixed")
        assert (study.data.query_max_length, study.data.instructions) == (512, "given")
        assert (study.model.precision, study.model.pooling) == ("float32", "auto")

    @pytest.mark.parametrize(
        ("arguments", "option", "value"),
        [
            ("--optim adamw_bnb_8bit", "reference.optimizer", "adamw-8bit"),
            ("--adam_beta1 0.8 --adam_beta2 0.95", "reference.adam_betas", (0.8, 0.95)),
            ("--adam_epsilon 1e-6", "reference.adam_epsilon", 1e-6),
            ("--max_grad_norm 0.5", "reference.max_grad_norm", 0.5),
            ("--warmup_ratio 0.25", "reference.warmup_steps", 3),
            ("--lr_scheduler_type constant_with_warmup --warmup_steps 4", "reference.warmup_steps", 4),
            ("--lr_scheduler_type constant --warmup_steps 4", "reference.warmup_steps", 0),
            ("--save_steps 5", "reference.checkpoint_every", 5),
            ("--save_total_limit 3", "reference.checkpoints_kept", 3),
            ("--clloss_coef 0.5", "reference.loss_factor", 0.5),
            ("--distillation", "reference.distillation", 1.0),
            ("--homogenous_batch", "reference.batches", "homogeneous"),
            ("--score_function dot", "model.normalize", False),
            ("--pooling_strategy avg_first_last", "model.pooling", "first-last"),
            ("--pooling_strategy avg_top2", "model.pooling", "top-two"),
            ("--pooling_strategy mean", "model.pooling", "mean"),
            ("--untie_encoder", "model.query_encoder", "copy"),
            ("--add_pooler --projection_out_dim 64", "model.projection", 64),
            ("--lora --lora_r 4 --lora_alpha 16", "model.lora_rank", 4),
            ("--lora --lora_alpha 16", "model.lora_alpha", 16),
            ("--lora --lora_dropout 0.3", "model.lora_dropout", 0.3),
            ("--lora_r 4", "model.lora_rank", 0),
            ("--attn_implementation sdpa", "model.attention", "sdpa"),
            ("--cumulative_seq", "model.attention", "flash_attention_2"),
            ("--grad_cache --grad_cache_ac", "model.gradient_checkpointing", True),
            ("--fsdp full_shard", "model.sharding", "full"),
            ("--full_determinism", "model.deterministic", True),
            ("--torch_compile", "model.compile", True),
            ("--add_prompt --add_prompt_prob 0.4", "data.instruction_share", 0.4),
            ("--positive_passage_no_shuffle", "data.positives", "first"),
            ("--negative_passage_no_shuffle", "data.negatives", "first"),
            (STAGE_1 + "--reweight_eta 0.5", "weights.step_size", 0.5),
            (STAGE_1, "weights.measure", "raw"),
            (STAGE_1 + "--group_loss_minus_ref_loss", "weights.measure", "excess-sample"),
            (STAGE_1 + "--normalize_group_loss_scale_with_ref_loss", "weights.measure", "relative-sample"),
            (
                STAGE_1 + "--normalize_group_loss_scale_with_ref_loss --group_loss_minus_ref_loss",
                "weights.measure",
                "excess-relative",
            ),
            (
                STAGE_1 + "--normalize_group_loss_scale_with_ref_loss --p_norm_of_ref_loss 2",
                "weights.reference_norm",
                2,
            ),
            (STAGE_1 + "--ema 0.3", "weights.ema", 0.3),
            (STAGE_1 + "--ema 0.3 --weight_ema", "weights.momentum", 0.3),
            (STAGE_1 + "--ema 0.2 --weight_ema --reweight_eta 0.4", "weights.step_size", 0.1),
            (STAGE_1 + "--dro_optimizer adamw_torch", "weights.update", "adamw"),
            (STAGE_1 + "--dro_optimizer adamw_torch --dro_adam_beta1 0.5", "weights.rule_betas", (0.5, 0.999)),
            (STAGE_1 + "--dro_optimizer rmsprop --dro_rmsprop_alpha 0.5", "weights.rule_alpha", 0.5),
            (STAGE_1 + "--dro_optimizer rmsprop --dro_epsilon 1e-4", "weights.rule_epsilon", 1e-4),
            (STAGE_1 + "--dro_optimizer adagrad --dro_epsilon 1e-4", "weights.rule_epsilon", 1e-10),
            (STAGE_1 + "--dro_weight_decay 0.2", "weights.rule_decay", 0.2),
            (STAGE_1 + "--dro_optimizer adafactor --dro_weight_decay 0.2", "weights.rule_decay", 0.0),
            (STAGE_1, "weights.clip", "none"),
            (STAGE_1 + "--dro_apply_grad_clip --dro_max_grad_norm 0.3", "weights.clip", "element"),
            (STAGE_1 + "--dro_apply_grad_clip --dro_max_grad_norm 0.3", "weights.clip_norm", 0.3),
            (STAGE_1 + "--dro_save_top_percent_uniform_weights 40", "robust.share", 0.4),
            (STAGE_1 + "--dro_save_top_percent_uniform_weights 40 50", "robust.share", 0.7),
            (STAGE_1 + "--dro_lr_scheduler_type cosine --dro_warmup_ratio 0.2", "weights.step_warmup", 2),
            (STAGE_1 + "--dro_lr_scheduler_type cosine --dro_warmup_steps 4", "weights.step_warmup", 4),
            (STAGE_1 + "--dro_lr_scheduler_type linear --min_lr_ratio 0.4", "weights.final_step_share", 0.4),
            (STAGE_1 + "--dro_lr_scheduler_type linear --dro_min_lr_ratio 0.4", "weights.final_step_share", 0.0),
        ],
    )
    def test_an_argument_becomes_its_option(self, tmp_path, arguments, option, value):
        section, field = option.split(".")
        assert getattr(getattr(study_of(tmp_path, arguments), section), field) == value

    @pytest.mark.parametrize(
        ("arguments", "lost"),
        [
            ("--optim lion_8bit", "--optim lion_8bit"),
            ("--lr_scheduler_type polynomial", "linear stands in for it"),
            ("--tokenizer_name other", "--tokenizer_name other"),
            ("--prompt_type bge --add_prompt", "joined as in e5"),
            ("--neftune_noise_alpha 5", "no noise"),
            (STAGE_1.replace("--dro_only_hn", ""), "no --dro_only_hn"),
            (STAGE_1 + "--homogenous_batch", "--homogenous_batch in stage 1"),
            (STAGE_1 + "--dro_optimizer lion", "sgd stands in"),
        ],
    )
    def test_what_is_lost_is_said(self, tmp_path, arguments, lost):
        assert lost in lines_of(tmp_path, arguments)[0]

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            ("--loss_scaling_dro_weights w.json", "reweight-loss"),
            ("--grad_cache", "crashed in stage 1"),
            ("--stopping_strategy first_exhausted", "--stopping_strategy first_exhausted: dead"),
            ("--hybrid_use_sparse_vector", "encoders are dense here"),
            ("--lr_scheduler_type constant --warmup_steps 4", "had no warm-up there"),
            ("--normalize False", "score_function overwrote it"),
            ("--bf16", "rounded to bfloat16 there"),
            (STAGE_1 + "--dro_min_lr_ratio 0.2", "--dro_min_lr_ratio 0.2: dead"),
            (STAGE_1 + "--negatives_x_device", "crashed there"),
        ],
    )
    def test_what_was_dead_or_broken_is_said(self, tmp_path, arguments, line):
        lost, notes = lines_of(tmp_path, arguments)
        assert line in notes and line not in lost

    def test_unknown_arguments_are_listed_with_close_ones(self, tmp_path):
        path = script(tmp_path, "--trian_n_passages 4 --frobnicate --learning_rat 1")
        with pytest.raises(ConfigError, match="unknown arguments") as error:
            import_released([path])
        for part in ("did you mean --train_n_passages", "--frobnicate", "did you mean --learning_rate", "run.sh"):
            assert part in str(error.value)
        imported = import_released([path], ignore_unknown=True)
        assert imported.study.reference.passages_per_query == 8
        assert "--frobnicate: not an argument" in "\n".join(imported.lost)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--seed many", "seed is not a number"),
            ("--seed 1.5", "seed is not a whole number"),
            ("--bf16 perhaps", "bf16 is not True or False"),
            ("--temperature $TEMPERATURE", "--set TEMPERATURE=VALUE"),
            ("--temperature -1", "no valid study"),
            ("--q_max_len 1", "data.query_max_length"),
        ],
    )
    def test_wrong_values_are_refused(self, tmp_path, arguments, message):
        with pytest.raises(ConfigError, match=re.escape(message)):
            study_of(tmp_path, arguments)

    def test_a_variable_can_be_set_from_outside(self, tmp_path):
        assert study_of(tmp_path, "--temperature $T", variables={"T": "0.25"}).reference.temperature == 0.25


class TestFiles:
    def test_an_untied_model_has_its_two_folders(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for side in ("query_model", "passage_model"):
            (tmp_path / "m" / side).mkdir(parents=True)
        model = import_released([script(tmp_path, "--untie_encoder")]).study.model
        assert (model.base, model.query_encoder) == ("m/passage_model", "m/query_model")

    def test_encoders_named_apart_are_two(self, tmp_path):
        path = script(tmp_path, "--untie_encoder --model_name_or_path_qry q --model_name_or_path_psg p")
        path.write_text(path.read_text().replace("--model_name_or_path m ", ""))
        model = import_released([path]).study.model
        assert (model.base, model.query_encoder) == ("p", "q")

    def test_json_and_yaml_are_read_as_their_script(self, tmp_path):
        given = {"model_name_or_path": "m", "domain_config_path": "d.json", "max_steps": 10, "bf16": True}
        from_script = study_of(tmp_path, "--bf16 --learning_rate 1e-4", name="x")
        (tmp_path / "a.json").write_text(json.dumps({**given, "learning_rate": 1e-4, "normalize": None}))
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(given) + "learning_rate: 1e-4\n")  # a text to YAML 1.1
        for file in ("a.json", "a.yaml"):
            assert import_released([tmp_path / file], name="x", processes=1).study == from_script

    def test_a_script_may_name_a_json_file_as_its_only_argument(self, tmp_path):
        script(tmp_path, "")
        given = {"model_name_or_path": "m", "domain_config_path": "d.json", "max_steps": 10, "temperature": 0.3}
        (tmp_path / "a.json").write_text(json.dumps(given))
        (tmp_path / "run.sh").write_text("torchrun --nproc_per_node 2 -m tdro.finetune.fit a.json\n")
        reference = import_released([tmp_path / "run.sh"]).study.reference
        assert (reference.temperature, reference.batch_size) == (0.3, 16)

    def test_a_saved_model_fills_in_what_a_script_leaves_out(self, tmp_path):
        saved = {"model_name_or_path": "other", "pooling_strategy": "cls", "score_function": "dot", "lora": None}
        (tmp_path / "model_args.yaml").write_text(yaml.safe_dump({k: v for k, v in saved.items() if k != "lora"}))
        study = import_released([script(tmp_path, "--score_function cos_sim"), tmp_path / "model_args.yaml"]).study
        assert (study.model.base, study.model.pooling, study.model.normalize) == ("m", "cls", True)

    def test_a_saved_model_alone_needs_a_folder_of_data(self, tmp_path):
        path = tmp_path / "model_args.yaml"
        path.write_text("model_name_or_path: m\npooling_strategy: lasttoken\nsparse_top_k_qry: 1024\nnormalize: true\n")
        with pytest.raises(ConfigError, match="--data-root"):
            import_released([path])
        (tmp_path / "data").mkdir()
        for name in ("one", "two"):
            (tmp_path / "data" / f"{name}.jsonl").write_text("{}\n")
        imported = import_released([path], data_root=str(tmp_path / "data"))
        assert list(imported.study.data.datasets) == ["one", "two"] and imported.study.model.pooling == "last"
        assert imported.study.reference == Study.model_fields["reference"].default
        assert not any("sparse" in line for line in imported.notes)

    def test_a_model_saved_by_stage_1_knows_its_datasets(self, tmp_path):
        saved = {"model_name_or_path": "m", "dro_type": "DROModelv2", "reweight_eta": 0.02, "n_groups": 2,
                 "domain_size": {"a": 5, "b": 7}, "domain_weights": {"a": 0.5, "b": 0.5},
                 "domain_to_idx": {"a": 0, "b": 1}, "dro_only_hn": True}  # fmt: skip
        (tmp_path / "model_args.yaml").write_text(yaml.safe_dump(saved))
        study = import_released([tmp_path / "model_args.yaml"]).study
        assert {name: dataset.size for name, dataset in study.data.datasets.items()} == {"a": 5, "b": 7}
        assert study.weights.step_size == 0.02 and len(planned(study)) == 2

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.json", "{", "not JSON"),
            ("a.yaml", "a: [", "not YAML"),
            ("a.json", "[1]", "mapping"),
            ("a.sh", "echo hello", "launches no training"),
            ("a.sh", "python evaluate.py --task_name x --top_k 3", "launches no training"),
            ("b.sh", None, "cannot be read"),
            ("a.sh", "python x.py --max_steps 3 --model_name_or_path m --domain_config_path no.json", "not there"),
            ("a.sh", "python x.py --max_steps 3 --model_name_or_path m", "name no datasets"),
        ],
    )
    def test_what_is_no_input_is_refused(self, tmp_path, name, text, message):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=message):
            import_released([tmp_path / name])


class TestDomains:
    def config(self, folder: Path, content: dict, arguments: str = "") -> Path:
        path = script(folder, arguments)
        (folder / "d.json").write_text(json.dumps(content))
        return path

    def test_a_category_is_one_dataset_of_several_files(self, tmp_path):
        content = {"domain_ids": {"news": 0, "qa": 1}, "size": {"news": 9, "qa": 4}}
        content["category_list"] = {"news": ["xsum", "agnews"], "qa": ["nq"]}
        imported = import_released([self.config(tmp_path, content)])
        datasets = imported.study.data.datasets
        assert datasets["news"].paths == ("xsum.jsonl", "agnews.jsonl") and datasets["qa"].paths == ("nq.jsonl",)
        assert datasets["news"].size == 9 and "a category of 2 files" in "\n".join(imported.notes)

    def test_hard_negatives_only_by_name_becomes_an_option(self, tmp_path):
        names = ["amazon_classification", "my_reclassification_qa", "arxiv_clustering", "nq"]
        content = {"domain_ids": {name: i for i, name in enumerate(names)}}
        imported = import_released([self.config(tmp_path, content)])
        shares = {name: dataset.in_batch_negatives for name, dataset in imported.study.data.datasets.items()}
        assert shares == {**dict.fromkeys(names, False), "nq": True}
        assert sum("hard negatives only there" in line for line in imported.notes) == 3
        path = self.config(tmp_path, content, "--add_domain_name False")
        assert all(d.in_batch_negatives for d in import_released([path]).study.data.datasets.values())

    def test_unequal_weights_are_those_of_the_robust_model(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        content = {"domain_weights": {"a": 0.75, "b": 0.25}, "size": {"a": 5, "b": 7}}
        study = import_released([self.config(tmp_path, content).relative_to(tmp_path)]).study
        assert (study.robust.plan, study.robust.weights) == ("reweight", "d.json")
        assert [planned(study)[name]["robust_probability"] for name in "ab"] == [0.75, 0.25]

    def test_unequal_weights_of_stage_1_are_lost_and_said(self, tmp_path):
        content = {"domain_weights": {"a": 0.75, "b": 0.25}}
        imported = import_released([self.config(tmp_path, content, STAGE_1)])
        assert "samples every dataset equally" in "\n".join(imported.lost)

    def test_files_are_found_by_their_real_ending_and_names_made_valid(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        path = self.config(tmp_path, {"domain_ids": {"a": 0, "b c": 1}}, "--preprocessed_dir data")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "a.parquet").touch()
        imported = import_released([path])
        datasets = imported.study.data.datasets
        assert (imported.study.data.root, datasets["a"].path, datasets["b_c"].path) == (
            "data",
            "a.parquet",
            "b c.jsonl",
        )
        assert "b c is called b_c" in "\n".join(imported.lost)

    def test_a_domain_of_weight_0_is_no_dataset(self, tmp_path):
        content = {"domain_weights": {"a": 0.5, "b": 0.5, "c": 0.0}, "size": {"a": 5, "b": 7, "c": 9}}
        assert set(import_released([self.config(tmp_path, content)]).study.data.datasets) == {"a", "b"}

    @pytest.mark.parametrize(
        "content",
        [[], {}, {"domain_ids": [1]}, {"domain_weights": {"a": "x"}}, {"domain_weights": {"a": -1}},
         {"domain_ids": {"a": 0}, "size": {"a": "many"}}, {"domain_ids": {"a": 0}, "category_list": {"a": 3}}],
    )  # fmt: skip
    def test_what_is_no_domain_config_is_refused(self, tmp_path, content):
        with pytest.raises(ConfigError, match="domain"):
            import_released([self.config(tmp_path, content)])

    def test_one_file_is_a_study_of_one_dataset_with_its_dev_set(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "rows.jsonl").write_text('{"a": 1}\n' * 40)
        arguments = "--corpus_path rows.jsonl --query_collection q.tsv --passage_collection p.tsv --dev_path dev.jsonl"
        (tmp_path / "run.sh").write_text(
            f"python -m tdro.finetune.fit --model_name_or_path m --num_train_epochs 2 {arguments} "
            "--eval_steps 7 --load_best_model_at_end --per_device_train_batch_size 4\n"
        )
        study = import_released([Path("run.sh")]).study
        dataset = study.data.datasets["rows"]
        assert (dataset.path, dataset.queries, dataset.passages, dataset.size) == ("rows.jsonl", "q.tsv", "p.tsv", 40)
        watched = study.evaluation.watch["dev"]
        assert (watched.path, watched.kind, study.evaluation.watch_every) == ("dev.jsonl", "rows", 7)
        assert study.evaluation.keep == "best" and study.reference.steps == 40 * 2 // 4
        (tmp_path / "run.sh").write_text(
            (tmp_path / "run.sh").read_text().replace("--eval_steps 7", "--eval_steps 0.12")
        )
        imported = import_released([Path("run.sh")])
        assert imported.study.evaluation.watch_every == 3  # of 20 steps, rounded up as transformers does
        assert "# --eval_steps, 0.12 of the steps" in imported.text


def test_an_imported_study_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_study(tmp_path, "static")
    content = {"domain_ids": {"one": 0, "two": 1, "three": 2}, "size": {"one": 24, "two": 40, "three": 60}}
    Path("d.json").write_text(json.dumps(content))
    common = (
        " --model_name_or_path root/model --preprocessed_dir root/train --max_steps 3 --per_device_train_batch_size 4"
        " --temperature 0.05 --q_max_len 16 --p_max_len 24 --pooling_strategy mean --learning_rate 1e-2"
    )
    launch = "torchrun --nproc_per_node 2 -m tdro."
    flags = "--normalize_group_loss_scale_with_ref_loss --dro_optimizer adamw_torch --dro_apply_grad_norm"
    Path("s0.sh").write_text(f"{launch}finetune.fit --domain_config_path d.json --homogenous_batch {common}\n")
    Path("s1.sh").write_text(f"{launch}dro.fit --domain_config_path d.json {STAGE_1} {flags} {common}\n")
    Path("s2.sh").write_text(f"{launch}finetune.fit --domain_config_path out/top70_weights.json {common}\n")
    study = import_released([Path("s0.sh"), Path("s1.sh"), Path("s2.sh")], name="moved").study
    run_study(Run(study), "robust")
    weights = read_weights(study.run_folder / "weights" / "weights.json")
    assert set(weights) == {"one", "two", "three"} and len(set(weights.values())) == 3
    assert (study.run_folder / "robust" / "model").is_dir()
    plan = (study.run_folder / "data" / "plan.csv").read_text()
    assert plan.count(",0.5,") == 2  # floor(0.7 x 3) datasets, sampled equally


class TestTable:
    @pytest.mark.skipif(not LISTED.exists(), reason="the list of released arguments is not here")
    def test_every_released_argument_is_in_the_table_with_its_default(self):
        group, listed = "", 0
        for line in LISTED.read_text().splitlines():
            if found := re.match(r"\*\*(\w+)\*\*", line):
                group = found[1]
            elif found := re.match(r"- `(\w+)` = (.+?)( \(dead\))?$", line):
                listed += 1
                rows = [row for row in OPTIONS[group] if row.name == found[1]]
                assert rows, f"{group}.{found[1]}"
                default = "[20, 30, 40, 50, 60, 70, 80, 90]" if "..." in found[2] else found[2]
                assert rows[0].default == literal_eval(default), found[1]
                assert rows[0].kind == "dead" or not found[3], f"{found[1]} is dead there"
        assert listed > 150

    @pytest.mark.skipif(not LISTED.exists(), reason="the list of released arguments is not here")
    def test_the_trainers_options_that_the_scripts_use_are_in_the_table(self):
        text = LISTED.read_text().partition("the scripts use ")[2].partition(".")[0]
        names = {row.name for row in OPTIONS["TrainingArguments"]}
        used = re.findall(r"\w+", text)
        assert len(used) > 10 and set(used) <= names

    def test_every_option_of_ours_in_the_table_is_one(self):
        known = {*options(), "data.datasets", "evaluation.tasks", "evaluation.watch"}
        for rows in OPTIONS.values():
            for row in rows:
                assert set(filter(None, row.ours.split(", "))) <= known, row.name
                assert row.ours or row.kind != "mapped", row.name
                assert row.note or row.kind == "mapped", row.name

    def test_names_are_those_of_a_group_once(self):
        for rows in OPTIONS.values():
            assert len({row.name for row in rows}) == len(rows)

    def test_the_documentation_has_the_tables(self):
        text = (ROOT / "docs" / "released-options.md").read_text()
        assert as_markdown() in text and released_preparation.as_markdown() in text

    def test_what_stands_for_mining_and_dedup_are_arguments_with_the_released_values(self):
        rows = {verb: " ".join(row.ours for row in rows) for verb, rows in released_preparation.PREPARATION.items()}
        assert rows["tdro mine"].startswith("FILE FILE ") and rows["tdro dedup"].startswith("FILE ")
        mined = parse(mine.Arguments, "tdro mine FILE", rows["tdro mine"].split()[2:])
        assert (mined.corpus, mined.mining.encoder, mined.out) == ("PASSAGES", "NAME", "MINED.jsonl")
        assert (mined.mining.ranks, mined.mining.negatives) == ((2, 100), 16)
        assert mined.mining == MiningConfig(encoder="NAME")  # the rest is the default, as the notes say
        assert (mined.query_max_length, mined.passage_max_length) == (512, 512)
        found = parse(dedup.Arguments, "tdro dedup", rows["tdro dedup"].split())
        assert (found.train, found.against, found.out, found.level) == (("FILE",), ("EVAL",), "FOLDER", "simhash-k2")

    @pytest.mark.skipif(not LISTED.exists(), reason="the list of released arguments is not here")
    def test_every_released_argument_of_mining_and_dedup_is_in_the_tables(self):
        line = LISTED.read_text().partition("Mining and dedup scripts: ")[2].partition("\n")[0]
        names = re.findall(r"\w+", line.partition(";")[0])
        there = "".join(row.there for rows in released_preparation.PREPARATION.values() for row in rows)
        assert len(names) == 6 and not [name for name in names if f"--{name}" not in there]
