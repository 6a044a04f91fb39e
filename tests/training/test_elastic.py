"""What happens to several ranks: stopped and started again as more or fewer, killed, launched by real launchers."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import start_ranks
from rank_cases import EXACT
from studies import tiny_study
from test_data_parallel import numbers_of
from test_resume import disturb

from tdro.config import Study
from tdro.study_file import save_study
from tdro.training.journal import Journal
from tdro.training.loop import Stopped
from tdro.training.pipeline import run_study
from tdro.training.run import Run

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, dict[str, Any]]:
    """A study, and what one rank computes that nobody stops."""
    folder = tmp_path_factory.mktemp("undisturbed")
    os.environ["TDRO_CACHE"] = str(folder / "cache")
    study = tiny_study(folder, model=EXACT)
    run_study(Run(study))
    return study, numbers_of(study.run_folder)


def disturbed(study: Study, event: str, stage: str, step: int, *options: str) -> tuple[list[int], str]:
    """Run a study with two ranks to which something happens; return how they ended and what they printed."""
    file = study.run_folder.parent / "study.yaml"
    file.write_text(save_study(study, {}), encoding="utf-8")
    ranks = start_ranks([str(HERE / "disturbed_rank.py"), str(file), event, stage, str(step), *options], 2)
    try:
        printed = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], "\n".join(printed)


def saved(study: Study, stage: str) -> list[str]:
    """Checkpoints of a stage."""
    return sorted(path.name for path in (study.run_folder / stage / "checkpoints").iterdir())


def assert_same(study: Study, expected: dict[str, Any]) -> None:
    """Compare what a run computed."""
    found = numbers_of(study.run_folder)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-9, err_msg=name)


def test_one_rank_then_two_then_one_then_two_halves_then_one(undisturbed, tmp_path, monkeypatch):
    study = undisturbed[0].model_copy(update={"output": str(tmp_path / "run")})
    for one, two in [
        (("reference", 1), ("stopped", "weights", 1)),
        (("weights", 3), ("one-stopped", "robust", 2, "--model.sharding", "full")),
    ]:
        with monkeypatch.context() as patch:
            disturb(patch, *one, "signal")
            with pytest.raises(Stopped):
                run_study(Run(study))
        codes, printed = disturbed(study, *two)
        assert codes == [130, 130], printed
        assert saved(study, two[1])[-1] == f"step-{two[2] + 1:08d}"
    run_study(Run(study))
    assert_same(study, undisturbed[1])
    ranks = [event["ranks"] for event in Journal(study.run_folder).read("environment", "run")]
    assert ranks == [1, 2, 1, 2, 1]


def test_a_lost_rank_ends_the_others_and_leaves_the_last_checkpoint(undisturbed, tmp_path):
    study = undisturbed[0].model_copy(update={"output": str(tmp_path / "run")})
    codes, printed = disturbed(study, "killed", "weights", 5)
    assert codes == [3, -signal.SIGKILL], printed
    assert "error: another rank has stopped" in printed and "Traceback" not in printed
    assert saved(study, "weights") == ["step-00000004"]
    run_study(Run(study))
    assert_same(study, undisturbed[1])


def test_ranks_that_drift_apart_are_noticed_before_anything_is_saved(undisturbed, tmp_path):
    study = undisturbed[0].model_copy(update={"output": str(tmp_path / "run")})
    codes, printed = disturbed(study, "drifted", "", 0)
    assert codes == [3, 3], printed
    assert re.search(r"(?s)ranks have different parameters.*rank 1 of 2", printed), printed
    assert not (study.run_folder / "reference" / "checkpoints").exists()


def launched(command: list[str], study: Study, **environment: str) -> subprocess.Popen[str]:
    """Start a launcher in the folder of a study file, as a user does."""
    here = study.run_folder.parent
    (here / "study.yaml").write_text(save_study(study, {}), encoding="utf-8")
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        command,
        cwd=here,
        env=os.environ | quiet | {"PATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def short(folder: Path, steps: int = 2) -> Study:
    """A study of a few steps."""
    return tiny_study(folder, reference={"steps": steps}, weights={"steps": steps})


TORCHRUN = ["torchrun", "--nproc-per-node", "2", "-m", "tdro", "run", "study.yaml"]
"""The command of the README, with as many processes as there are cores here."""


def test_the_command_of_the_readme(tmp_path: Path) -> None:
    study = short(tmp_path)
    process = launched(TORCHRUN, study, PET_STANDALONE="1")
    printed = process.communicate(timeout=240)[0]
    assert process.returncode == 0, printed
    assert [event["ranks"] for event in Journal(study.run_folder).read("environment", "run")] == [2]
    assert len(re.findall("robust +done in", printed)) == 1  # rank 0 alone talks


def test_accelerate_launch_with_its_file_and_deterministic_operations(tmp_path: Path) -> None:
    study = short(tmp_path)
    options = ["--config_file", str(ROOT / "recipes/launch/ddp.yaml"), "--num_processes", "2"]
    options += ["--main_process_port", "0"]  # a free one
    options += ["-m", "tdro", "run", "study.yaml", "--model.deterministic"]
    process = launched(["accelerate", "launch", *options], study)
    printed = process.communicate(timeout=240)[0]
    assert process.returncode == 0, printed
    (environment,) = Journal(study.run_folder).read("environment", "run")
    assert (environment["ranks"], environment["deterministic"], environment["device"]) == (2, True, "cpu")


def test_a_launcher_that_is_told_to_end_lets_the_ranks_save(tmp_path: Path) -> None:
    study = short(tmp_path, steps=5000)
    process = launched(TORCHRUN, study, PET_STANDALONE="1")
    journal = study.run_folder / "events.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and '"event": "step"' in journal.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=120)[0]
    last = max(event["step"] for event in Journal(study.run_folder).read("step", "reference"))
    assert saved(study, "reference")[-1] == f"step-{last + 1:08d}", printed
