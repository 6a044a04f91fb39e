"""What launchers may ask for: their files in recipes/launch, and what is refused."""

import os
import re
import shlex
import types
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from tdro.devices import be_deterministic
from tdro.errors import EnvironmentProblem
from tdro.sharding import refuse_other_sharding

FILES = sorted((Path(__file__).parents[1] / "recipes" / "launch").glob("*.yaml"))
SETTINGS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG")
SETTINGS += ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_OFFLOAD_PARAMS")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has launched this test."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


def arguments_of(file: Path) -> list[str]:
    """The command in a file's first line, as run in the repository."""
    first = file.read_text().splitlines()[0]
    assert first.startswith("# accelerate launch ")
    words = shlex.split(first.removeprefix("# accelerate launch "))
    return [str(file) if word.startswith("recipes/") else word for word in words]


def test_the_files_are_there() -> None:
    assert [file.stem for file in FILES] == ["ddp", "fsdp", "multi_node"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_a_file_and_its_command_and_tdro_takes_what_they_ask_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word if word != "N" else "1" for word in arguments_of(file)]
    settings = load_config_from_file(str(file))
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert arguments.num_processes == settings.num_processes and arguments.num_machines == settings.num_machines
    assert (arguments.module, arguments.training_script) == (True, "tdro")
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name in SETTINGS:
            monkeypatch.setenv(name, value)
    study_asks = re.search(r"--model.sharding (\w+)", " ".join(arguments.training_script_args))
    refuse_other_sharding(study_asks[1] if study_asks else "none")
    if file.stem == "fsdp":
        with pytest.raises(EnvironmentProblem, match=r"asks for FSDP, the study does not(?s:.*)--model.sharding full"):
            refuse_other_sharding("none")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "does not train under DeepSpeed(?s:.*)--model.sharding full"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "does not train under Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "does not train under a parallelism_config"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "does not shard in this way(?s:.*)FSDP_VERSION"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "does not shard in this way"),
    ],
)
def test_what_tdro_does_not_do_is_refused(settings: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentProblem, match=said):
        refuse_other_sharding("full")


@pytest.mark.parametrize("settings", [{}, {"ACCELERATE_USE_DEEPSPEED": "false"}, {"FSDP_OFFLOAD_PARAMS": "true"}])
def test_nothing_is_refused_that_was_not_asked_for(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    refuse_other_sharding("none")


def test_deterministic_asks_torch_for_it_before_a_gpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    cudnn = types.SimpleNamespace(benchmark=True, deterministic=False)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr("torch.use_deterministic_algorithms", asked.append)
    monkeypatch.setattr("torch.backends.cudnn", cudnn)
    be_deterministic()
    assert (asked, os.environ["CUBLAS_WORKSPACE_CONFIG"]) == ([True], ":4096:8")
    assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
