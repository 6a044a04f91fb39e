"""What a shell can offer next to a half-written `tdro` command: verbs, files, options and their values.

It has to answer while somebody waits, so it imports neither the options (pydantic) nor any verb: the options are kept
in the cache, and those of the other verbs are the words that begin with `--` in their help.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from tdro.files import cache_folder, read_json, write_json

STUDY_SUFFIXES = (".yaml", ".yml")
_PACKAGE = Path(__file__).parents[1]
_HELP = re.compile(r'^(\w*HELP) = """\\?\n(.*?)^"""', re.MULTILINE | re.DOTALL)
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]")
_RUN_VERBS = {"report", "track", "export"}
_EXTENDED = 5  # files that extend each other
_STUDY_VERBS = {"estimate", "usefulness", "check", "run", "mine", "reference", "weights", "robust", "evaluate"}
_WITHIN = {"config": ("show", "diff", "schema"), "completion": ("bash", "zsh", "fish")}


def complete(words: Sequence[str], verbs: Sequence[str]) -> list[str]:
    """Return what the last word may become.

    Args:
        words: Of the command line without `tdro`; the last one is the half-written one, perhaps empty. A `=` may be a
            word of its own, as in bash.
        verbs: All verbs.

    Returns:
        Sorted candidates; a folder ends with `/`. Empty where the shell may offer files.

    Example:
        >>> complete(["com"], ["compare", "completion", "run"])
        ['compare', 'completion']
        >>> complete(["run", "study.yaml", "--robust.plan", "t"], ["run"])
        ['top-share']
    """
    words = [word for word in words[:-1] if word != "="] + [words[-1] if words and words[-1] != "=" else ""]
    *before, current = words
    if not before:
        return sorted(verb for verb in verbs if verb.startswith(current))
    if before[0] not in verbs:
        return []
    return sorted(set(_candidates(before, current)))


def _candidates(before: Sequence[str], current: str) -> Iterator[str]:
    """Yield candidates for a word after a verb."""
    verb, previous = before[0], before[-1]
    inner = _WITHIN.get(verb, ())
    if inner and len(before) == 1:
        yield from (name for name in inner if name.startswith(current))
        return
    takes_study = verb in _STUDY_VERBS or (verb == "config" and before[1] == "show")
    known = _study_options() if takes_study or verb in ("demo", "export") else {}
    option, equals, value = current.partition("=")
    if equals and option.startswith("--"):
        yield from (f"{option}={choice}" for choice in _values(known, option) if choice.startswith(value))
    elif current.startswith("-"):
        names = {*_help_options(verb), *(known if verb != "export" else _section(known, "robust"))}
        names = {name for pattern in names for name in _filled_in(pattern, before)}
        yield from (name for name in names if name.startswith(current))
    elif previous.startswith("--") and _values(known, previous):
        yield from (choice for choice in _values(known, previous) if choice.startswith(current))
    elif not previous.startswith("--"):
        yield from _files(current, folders_count=verb in _RUN_VERBS or verb == "config")


def _values(known: Mapping[str, list[str]], option: str) -> list[str]:
    """Return the values that an option can have, where they are few."""
    if option in known:
        return known[option]
    return next((values for name, values in known.items() if "*" in name and _pattern(name).fullmatch(option)), [])


def _pattern(name: str) -> re.Pattern[str]:
    """Turn the name of an option with `*` into a pattern."""
    return re.compile(re.escape(name).replace(r"\*", r"[^.]+"))


def _section(known: Mapping[str, list[str]], section: str) -> list[str]:
    """Return the options of a section."""
    return [name for name in known if name.startswith(f"--{section}.")]


def _filled_in(name: str, before: Sequence[str]) -> Iterator[str]:
    """Put the names of the study's datasets, or tasks, in the place of `*`."""
    if "*" not in name:
        yield name
        return
    study = next((word for word in before[1:] if word.endswith(STUDY_SUFFIXES)), "")
    section = name.removeprefix("--").partition(".*")[0]
    for found in _names(study, section):
        yield name.replace("*", found.replace("_", "-"))


def _names(study: str, section: str) -> list[str]:
    """Read the names of the datasets or tasks of a study, and of those that it extends."""
    names: list[str] = []
    for _ in range(_EXTENDED):
        content = _read(Path(study))
        try:
            section_of: Any = content
            for key in section.split("."):
                section_of = section_of[key]
            names += map(str, section_of)
        except (KeyError, TypeError):
            pass  # the file that it extends may name some
        if not isinstance(other := content.get("extends"), str):
            break
        study = os.path.join(os.path.dirname(study), other)
    return names


def _read(study: Path) -> dict[str, Any]:
    """Read a study file; nothing where it cannot be read."""
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where it was built
        return dict(yaml.load(study.read_text(encoding="utf-8-sig"), loader))
    except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError):
        return {}


def _files(current: str, *, folders_count: bool) -> Iterator[str]:
    """Yield study files and folders that a word may become; a run folder stands without `/`."""
    typed = os.path.dirname(current)
    folder = Path(typed or ".").expanduser()
    hidden = os.path.basename(current).startswith(".")
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        name = os.path.join(typed, entry.name)
        if not name.startswith(current) or (entry.name.startswith(".") and not hidden):
            continue
        if entry.is_dir():
            is_run = folders_count and os.path.exists(os.path.join(entry.path, "resolved.yaml"))
            yield name if is_run else f"{name}/"
        elif entry.name.endswith(STUDY_SUFFIXES):
            yield name


def _help_options(verb: str) -> list[str]:
    """Return the options that the help of a verb names."""
    module = "study" if verb in _STUDY_VERBS - {"check", "estimate", "usefulness"} else verb.replace("-", "_")
    try:
        source = (_PACKAGE / "cli" / f"{module}.py").read_text(encoding="utf-8")
    except OSError:
        return []
    own = ("HELP", f"{verb.upper()}_HELP")
    options = {option for name, text in _HELP.findall(source) if name in own for option in _OPTION.findall(text)}
    return sorted({option for option in options if not option.startswith("--section.")} | {"--help", "--debug"})


def _study_options() -> dict[str, list[str]]:
    """Return every option of a study with the values it can have; from the cache while config.py stays as it is."""
    about = (_PACKAGE / "config.py").stat()
    kept = cache_folder() / "completion" / f"{about.st_mtime_ns}-{about.st_size}.json"
    try:
        return dict(read_json(kept))
    except (OSError, ValueError, TypeError):
        found = study_options()
    with suppress(OSError):  # a cache that cannot be written costs a third of a second
        write_json(kept, found)
    return found


def study_options() -> dict[str, list[str]]:
    """Return every option of a study as it is written on the command line, with the values it can have.

    `*` stands for the name of a dataset or task; values are listed where they are few.

    Example:
        >>> study_options()["--leakage.gate"], study_options()["--seed"]
        (['off', 'warn', 'remove', 'stop'], [])
    """
    from tdro.config import Section, Study, section_of

    def walk(section: type[Section], prefix: str) -> Iterator[tuple[str, list[str]]]:
        for name, field in section.model_fields.items():
            inner, star = section_of(field.annotation)
            option = f"{prefix}{name.replace('_', '-')}"
            if inner is not None:
                yield from walk(inner, f"{option}.{star}")
            elif field.annotation is bool:
                head, _, last = option.rpartition(".")
                yield from ((option, []), (f"{head}.no-{last}" if head else f"--no-{last[2:]}", []))
            else:
                is_choice = get_origin(field.annotation) is Literal
                yield option, [str(value) for value in get_args(field.annotation)] if is_choice else []

    return dict(walk(Study, "--"))
