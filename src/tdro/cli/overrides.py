"""Options on the command line: tyro reads them, and what it refuses becomes an error like all others."""

import contextlib
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from tdro.errors import ConfigError

if TYPE_CHECKING:
    from tdro.cli.live import Mode

T = TypeVar("T")
_ASCII = str.maketrans("╭╮╰╯│─", "++++|-")


@dataclass(kw_only=True)
class Shown:
    """Options of all commands that train: what they show."""

    quiet: Annotated[bool, tyro.conf.arg(aliases=("-q",))] = False
    """Show only what came out, at the end."""
    json: bool = False
    """Show every event as one line of JSON, and nothing else on standard output."""

    @property
    def mode(self) -> "Mode":
        """What is shown."""
        return "json" if self.json else "quiet" if self.quiet else "full"


def parse(kind: type[T], prog: str, arguments: Sequence[str], default: T | None = None, description: str = "") -> T:
    """Read options.

    Args:
        kind: What they make: a dataclass, or a section of a study.
        prog: The command, for the help.
        arguments: What stands behind the command.
        default: Has the values of options that are not given.
        description: Stands on top of `--help`.

    Raises:
        ConfigError: An option is unknown, lacks its value or has one that it cannot have.
        SystemExit: Help was asked for, and printed.
    """
    said = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            found: T = tyro.cli(kind, prog=prog, args=list(arguments), description=description or None, **given)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise _refusal(_parts(said.getvalue()), list(arguments), prog) from None
    _refuse_idle(found, arguments)
    return found


_NEEDS = {
    "--robust.share": ("--robust.plan", ("top-share", "bottom-share")),
    "--weights.shrinkage": ("--weights.measure", ("relative", "excess-relative", "initial")),
}
"""Option -> the option that it needs, and the values of that one with which it decides what is trained."""


def _refuse_idle(found: object, arguments: Sequence[str]) -> None:
    """Refuse an option that decides nothing with what the study, or the default, has for the option that it needs."""
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    for option, (needed, values) in _NEEDS.items():
        if option in given and needed not in given:
            section, name = needed.removeprefix("--").split(".")
            value = getattr(getattr(getattr(found, "study", found), section), name)
            if value not in values:
                do = f"add {needed} {values[0]}, or {needed} {value} where that is meant"
                raise ConfigError(f"with {needed} {value} it does not change what is trained", where=option, do=do)


def _parts(box: str) -> list[list[str]]:
    """Take the lines out of the box that tyro draws, in lines or in ASCII: a list for each part between its rules."""
    parts: list[list[str]] = [[]]
    for line in box.translate(_ASCII).splitlines():
        inside = line[2:-1].rstrip() if line.startswith("|") else line
        if re.fullmatch(r"-{8,}", inside.strip()):
            parts.append([])
        elif not line.startswith("+"):
            parts[-1].append(inside)
    titled = len(parts) > 1 and not any(mark in " ".join(parts[0]) for mark in ":'")  # in ASCII the title is inside
    return [textwrap.dedent("\n".join(part)).splitlines() for part in parts[titled:]]


def _refusal(parts: list[list[str]], arguments: list[str], prog: str) -> ConfigError:
    """Say in our words what tyro has refused."""
    said, see = " ".join(" ".join(parts[0]).split()), f"see {prog} --help"
    near = re.findall(r"--[\w.-]+", " ".join(line for part in parts[1:-1] for line in part))
    if found := re.match(r"Unrecognized options: (\S+?)(?:,|$)", said):
        if not found[1].startswith("-"):
            do = f"options begin with --, and a switch takes no value (--no-NAME turns it off); {see}"
            return ConfigError("this belongs to no option", saw=found[1], do=do)
        do = f"did you mean {' or '.join(dict.fromkeys(near[:2]))}?" if near else see
        return ConfigError("unknown option", saw=found[1], do=do)
    if found := re.match(r"Error parsing (?:study\.)?(\S*): \d+ validation errors? for", said):
        return _out_of_range(found[1], parts[0], arguments, see)
    if found := re.match(r"Error parsing (--\S+): (.*)", said):
        about = " ".join(" ".join(line for part in parts[1:-1] for line in part[1:]).split())
        saw = _given(found[1], arguments)
        return ConfigError("the value cannot be read", where=found[1], saw=saw, do=about or see)
    if found := re.match(r"invalid choice '(.*?)' for argument '(\S+?)'. Expected one of \((.*?),?\)", said):
        return ConfigError("there is no such choice", where=found[2], saw=found[1], do=f"use one of {found[3]}")
    if found := re.match(r"Missing value for argument '(\S+?)'", said):
        return ConfigError("the option lacks its value", where=found[1], do=f"{found[1]} VALUE; {see}")
    return ConfigError(said or "the options cannot be read", do=see)


def _out_of_range(section: str, lines: list[str], arguments: list[str], see: str) -> ConfigError:
    """Say what a section of the study refuses: the value of an option, or options that do not go together."""
    texts = [line.strip() for line in lines]
    what = re.split(r"validation errors? for \w+ ", " ".join(texts))[-1]
    first, _, rest = what.partition(" ")
    field, what = (first, rest) if first in texts else ("", what)
    what = what.partition(" [type=")[0].partition(" For further")[0].removeprefix("Value error, ")
    what = what.replace("Input should", "the value must")
    option = "--" + ".".join(filter(None, [section, field])).replace("_", "-")
    return ConfigError(what or "the value is refused", where=option, saw=_given(option, arguments), do=see)


def _given(option: str, arguments: list[str]) -> str | None:
    """Find what was given for an option."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == option:
            following = [a for a in arguments[place + 1 :] if not a.startswith("--")]
            return value if equals else (following[0] if following else None)
    return None
