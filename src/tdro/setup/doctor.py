"""Is this machine ready? A finding for everything that a study depends on, with the command that mends it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from tdro.errors import TdroError
from tdro.study_file import load_study

Status = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """What was found about one thing.

    Attributes:
        topic: What it is about: "versions", "devices".
        status: WARN: it will work, but worse than it could. FAIL: it will not.
        name: The thing.
        text: What was found.
        fix: The command, or the change, that mends it; empty where nothing need be mended.
    """

    topic: str
    status: Status
    name: str
    text: str
    fix: str = ""


def examine(study_path: Path | None = None) -> list[Finding]:
    """Look at this machine and, where one is given, at what a study needs of it.

    Nothing is trained or left behind; a base of the hub is fetched if it is not there. What goes wrong in a check is a
    finding, too.

    Args:
        study_path: A study file.
    """
    study, refused = None, []
    if study_path is not None:
        try:
            study = load_study(study_path)
        except TdroError as error:
            refused = [failure("study", str(study_path), error)]
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "versions": lambda: _module("packages").versions(),
        "extras": lambda: _module("packages").extras(study),
        "devices": lambda: _module("machine").devices(),
        "precision": lambda: _module("machine").precision(study),
        "attention": lambda: _module("machine").attention(study),
        "memory": lambda: _module("machine").memory(),
        "places": lambda: _module("machine").places(study),
        "launcher": lambda: _module("machine").launcher(study),
        "study": lambda: refused if study is None else _module("study").study_findings(study),
    }
    return [finding for topic, check in checks.items() for finding in _guarded(topic, check)]


def failure(topic: str, name: str, error: TdroError) -> Finding:
    """Turn an error into a finding."""
    lines = str(error).splitlines()
    details = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines[1:]}
    about = ", ".join(details[key] for key in ("where", "saw") if key in details)
    return Finding(topic, "FAIL", name, f"{lines[0]}{f' ({about})' if about else ''}", details.get("do", ""))


def _module(name: str) -> Any:
    """Import a module of checks when it is needed: where a library is broken, the other checks still run."""
    return import_module(f"tdro.setup.doctor_{name}")


def _guarded(topic: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a check; what goes wrong in it is a finding."""
    try:
        return list(check())
    except TdroError as error:
        return [failure(topic, topic, error)]
    except Exception as error:  # a broken installation may raise anything
        said = str(error).partition("\n")[0] or type(error).__name__
        fix = "pip install --force-reinstall tdro, in a new environment if that does not help"
        return [Finding(topic, "FAIL", topic, f"could not be looked at: {said}", fix)]
