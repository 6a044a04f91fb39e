"""Completion: what is offered, in a real bash, and fast enough to wait for."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tdro.cli.completion import command
from tdro.cli.main import OTHER_VERBS, STUDY_VERBS
from tdro.config import options
from tdro.errors import ConfigError
from tdro.setup.completion import complete, study_options

VERBS = ["demo", *STUDY_VERBS, *OTHER_VERBS]
STUDY = "name: a\ndata:\n  datasets: {my_bees: x, ants: y}\nmodel: {base: m}\nevaluation:\n  tasks: {hive: z}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with a study, a run and other things."""
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "more.yaml").write_text("extends: study.yaml\ndata: {datasets: {wasps: w}}\n")
    (tmp_path / "stuff.txt").touch()
    (tmp_path / "studies").mkdir()
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "resolved.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("comp", ["compare", "completion"]),
        ("run st", ["studies/", "study.yaml"]),
        ("check study.yaml --leakage.g", ["--leakage.gate"]),
        ("run study.yaml --leakage.gate ", ["off", "remove", "stop", "warn"]),
        ("run study.yaml --leakage.gate = re", ["remove"]),
        ("run study.yaml --leakage.gate=re", ["--leakage.gate=remove"]),
        ("run study.yaml --data.datasets.my-bees.sy", ["--data.datasets.my-bees.symmetric"]),
        ("run study.yaml --data.datasets.a", None),
        ("run study.yaml --evaluation.tasks.hive.k", ["--evaluation.tasks.hive.kind"]),
        ("run study.yaml --evaluation.tasks.hive.kind b", ["beir"]),
        ("run study.yaml --data.datasets.no", []),
        ("weights study.yaml --see", ["--seed", "--seed-steps", "--seeds"]),
        ("run study.yaml --see", ["--seed"]),
        ("run more.yaml --data.datasets.my-bees.sy", ["--data.datasets.my-bees.symmetric"]),
        ("run study.yaml --weights.steps ", []),
        ("config sh", ["show"]),
        ("config show --cha", ["--changed"]),
        ("completion f", ["fish"]),
        ("export runs/", ["runs/first"]),
        ("run runs/", ["runs/first/"]),
        ("export runs/first --wh", ["--which"]),
        ("export runs/first --robust.p", ["--robust.plan"]),
        ("export runs/first --reference.s", []),
        ("track runs/first --fo", ["--follow"]),
        ("nonsense --", []),
        ("", sorted(VERBS)),
    ],
)
def test_what_is_offered(line, offered, folder):
    found = complete(line.split(" "), VERBS)
    if offered is None:
        offered = sorted(found)
        assert offered and all(option.startswith("--data.datasets.ants.") for option in offered)
    assert found == offered


def test_every_option_of_a_study_is_offered():
    names = {f"--{name.replace('_', '-')}" for name in options()}
    switches = {name for name in study_options() if ".no-" in name}
    assert set(study_options()) == names | switches and "--model.no-normalize" in switches


def test_a_new_config_is_noticed_and_a_damaged_cache_mended(own_cache):
    complete(["run", "s.yaml", "--se"], VERBS)
    (kept,) = (own_cache / "completion").iterdir()
    kept.write_text('{"--made-up": []}')
    assert complete(["run", "s.yaml", "--made"], VERBS) == ["--made-up"]
    kept.write_text("{")
    assert complete(["run", "s.yaml", "--seed"], VERBS) == ["--seed"]


def test_it_answers_in_less_than_300_ms_of_cpu_without_torch_or_pydantic(folder):
    code = (
        "import resource, sys; from tdro.cli.main import main; sys.argv = ['tdro'];"
        "main(['completion', '--words', 'run', 'study.yaml', '--data.datasets.a']);"
        "assert not {'torch', 'pydantic', 'numpy', 'tyro'} & set(sys.modules);"
        "usage = resource.getrusage(resource.RUSAGE_SELF); print(usage.ru_utime + usage.ru_stime)"
    )
    complete(["run", "study.yaml", "--se"], VERBS)  # fills the cache, as the first one does
    lines = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert "--data.datasets.ants.path" in lines[0].stdout
    assert min(float(line.stdout.split()[-1]) for line in lines) < 0.3


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_real_bash_completes_what_is_typed(folder, tmp_path_factory):
    """Keys are typed into an interactive bash: a verb, an option and its value are completed by the tab key."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process, terminal = pty.fork()
    if process == 0:
        environment = os.environ | {"PATH": path, "PS1": "> ", "INPUTRC": "/dev/null", "TERM": "dumb"}
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
    try:
        _type(terminal, "source <(tdro completion bash); echo rea''dy\n", "ready")
        _type(terminal, "tdro che\t", "tdro check ")
        _type(terminal, "stu\t", "stud")  # a file and a folder begin so
        _type(terminal, "y\t", "y.yaml ")
        _type(terminal, "--leakage.ga\t", "--leakage.gate ")
        _type(terminal, "rem\t", "remove ")
    finally:
        os.write(terminal, b"\x15\x04")
        os.close(terminal)
        os.waitpid(process, 0)


def _type(terminal: int, keys: str, expected: str) -> None:
    """Type keys, and wait until something is on the screen."""
    os.write(terminal, keys.encode())
    seen, end = "", time.monotonic() + 20
    while expected not in seen:
        ready, _, _ = select.select([terminal], [], [], 0.5)
        if ready:
            seen += os.read(terminal, 4096).decode(errors="replace").replace("\x07", "")
        assert time.monotonic() < end, f"{expected!r} did not appear; the screen has {seen!r}"


def test_scripts_are_printed_and_other_shells_refused(capsys):
    for shell in ("bash", "zsh", "fish"):
        assert command([shell]) == 0
        assert "tdro completion --words" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no completion for this shell"):
        command(["csh"])
    assert command([]) == 0 and "examples:" in capsys.readouterr().out
