"""Reading and writing a study file: YAML text to a `Study` and back, with file and line in every refusal.

A file that begins with `extends: OTHER.yaml` says only what differs from another study file; the path is seen from its
own folder. Mappings are merged key by key, all the way down; everything else, lists too, takes the place of what the
other file says, and null takes away what the other file has. The other file may extend a third one.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tdro.config import Section, Study, section_of
from tdro.errors import ConfigError

_OPENING = (
    yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken, yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken,
)  # fmt: skip
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
_DEEPEST = 50

RAN_KEY = "ran"
"""Top-level key of `resolved.yaml` that records versions and fingerprints; ignored when the file is read again."""
EXTENDS_KEY = "extends"
"""Top-level key that names the study file which a file builds on."""


@dataclass(frozen=True)
class _File:
    """One file of a study: its text, its YAML with line numbers, and its values."""

    path: Path
    text: str
    node: yaml.Node | None
    values: dict[str, Any]


def load_study(path: Path) -> Study:
    """Read a study file, and the files that it extends.

    Raises:
        ConfigError: Missing or not YAML, an unknown key (with a suggestion), a wrong value, files that extend each
            other; with file:line.
    """
    files = _with_extended(path)
    try:
        return Study.model_validate(_joined(files))
    except ValidationError as error:
        raise _explain(error, files) from None


def study_text(path: Path) -> str:
    """Return a study as it was written, in one text that `load_study` reads wherever it is kept.

    A file that extends others becomes one file: its own first comment, then the values of all, without defaults.

    Raises:
        ConfigError: As `load_study`, but for wrong keys and values.
    """
    files = _with_extended(path)
    if len(files) == 1:
        return files[0].text
    comment = takewhile(lambda line: line.startswith("#"), files[0].text.splitlines())
    joined = "# Joined from " + ", ".join(str(file.path) for file in files)
    return "\n".join([*comment, joined, _as_yaml(_joined(files))])


def _with_extended(path: Path) -> list[_File]:
    """Read a study file, the one that it extends, and so on."""
    files = [_read(path)]
    while (other := files[-1].values.get(EXTENDS_KEY)) is not None:
        here = files[-1]
        where = f"{here.path}:{_line_of(here.node, [EXTENDS_KEY])[0]}:{EXTENDS_KEY}"
        if not isinstance(other, str):
            raise ConfigError("extends names one study file", where=where, saw=other, do="write extends: OTHER.yaml")
        found = here.path.parent / other
        if not found.is_file():
            raise ConfigError("study file to extend is not there", where=where, saw=other, do=_near_file(found))
        if any(found.samefile(file.path) for file in files):
            do = "remove one of the extends"
            raise ConfigError("study files extend each other in a circle", where=where, saw=other, do=do)
        files.append(_read(found))
    return files


def _joined(files: Sequence[_File]) -> dict[str, Any]:
    """Merge the values of files, the first of which has the last word."""
    values: dict[str, Any] = {}
    for file in reversed(files):
        values = _merged(values, file.values)
    return {key: value for key, value in values.items() if key not in (RAN_KEY, EXTENDS_KEY)}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Put values over others; mappings are merged, and null takes away what is there."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
        if value is None and key in below:
            del merged[key]
    return merged


def _read(path: Path) -> _File:
    """Read one file.

    Raises:
        ConfigError: Missing, not YAML or no mapping; with file:line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError("study file cannot be read", where=path, saw=error.strerror, do=_near_file(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError("study file is not UTF-8", where=path, saw=str(error), do="save it as UTF-8") from None
    try:
        _refuse_endless(text, path)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise ConfigError(
            "not YAML",
            where=where,
            saw=getattr(error, "problem", str(error)),
            do="check indentation, quotes and colons of this line and the one above",
        ) from None
    _refuse_repeated_keys(node, path)
    if not isinstance(raw, dict):
        raise ConfigError("a study is a mapping of keys to values", where=path, saw=raw, do="see recipes/demo.yaml")
    return _File(path, text, node, raw)


def save_study(study: Study, ran: Mapping[str, Any] | None = None) -> str:
    """Write a study with all its defaults as YAML text that `load_study` reads back to the same study.

    Args:
        study: The study.
        ran: Versions, fingerprints and so on, recorded under the key `ran`.
    """
    return _as_yaml(study.model_dump(mode="json") | ({RAN_KEY: dict(ran)} if ran else {}))


def _as_yaml(values: dict[str, Any]) -> str:
    """Write values as YAML text."""
    return yaml.dump(values, Dumper=_InFull, sort_keys=False, allow_unicode=True, width=120)


class _InFull(yaml.SafeDumper):
    """Writes what occurs twice twice: `load_study` takes no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        """Tell whether a value is written in full wherever it occurs."""
        return True


def _explain(error: ValidationError, files: Sequence[_File]) -> ConfigError:
    """Turn pydantic's first error into one block with file:line and, for an unknown key, a suggestion."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    file = max(files, key=lambda file: _line_of(file.node, location)[1])  # of equals the first: it had the last word
    where = f"{file.path}:{_line_of(file.node, location)[0]}:{'.'.join(location)}"
    if first["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        close = difflib.get_close_matches(location[-1].replace("-", "_"), known, n=1, cutoff=0.5)
        do = f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(known)}"
        return ConfigError("unknown key", where=where, saw=location[-1], do=do)
    if first["type"] == "missing":
        return ConfigError("key is missing", where=where, do=f"add {location[-1]!r}")
    return ConfigError(
        first["msg"].removeprefix("Value error, "),
        where=where,
        saw=first["input"],
        do="see tdro run --help, or the options of a recipe",
    )


def _keys_at(location: list[str]) -> list[str]:
    """Names of the keys that a section at a dotted location accepts."""
    section: type[Section] = Study
    in_mapping = False
    for part in location:
        if in_mapping:
            in_mapping = False
            continue
        inner, star = section_of(section.model_fields[part].annotation)
        section, in_mapping = inner or section, bool(star)
    return list(section.model_fields)


def _refuse_endless(text: str, path: Path) -> None:
    """Refuse what takes a small file endless time or memory: deep nesting, and `*name`, which may name itself."""
    depth = 0
    for token in yaml.scan(text):
        where = f"{path}:{token.start_mark.line + 1}"
        if isinstance(token, yaml.AliasToken):
            do = "write the values out where they are used, or quote a text that begins with *"
            raise ConfigError("a study file has no aliases", where=where, saw=f"*{token.value}", do=do)
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > _DEEPEST:
            raise ConfigError("values are nested too deeply", where=where, do="see recipes/demo.yaml")


def _refuse_repeated_keys(node: yaml.Node | None, path: Path) -> None:
    """Refuse a mapping that names a key twice: YAML would silently keep the last."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, path)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if (first := lines.get(str(key.value))) is not None:
            what, do = f"key occurs twice, also in line {first}", "keep one of them"
            raise ConfigError(what, where=f"{path}:{line}", saw=key.value, do=do)
        lines[str(key.value)] = line
        _refuse_repeated_keys(value, path)


def _line_of(node: yaml.Node | None, location: list[str]) -> tuple[int, int]:
    """Line, from 1, of the deepest part of a dotted location that the file has; and how many parts it has."""
    line, depth = 1, 0
    for part in location:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((key, value) for key, value in node.value if key.value == part), None)
        if found is None:
            break
        line, node, depth = found[0].start_mark.line + 1, found[1], depth + 1
    return line, depth


def _near_file(path: Path) -> str:
    """Suggest study files beside a path that does not exist."""
    folder = path.parent if path.parent.is_dir() else Path()
    near = sorted(str(p) for p in folder.glob("*.yaml"))[:5]
    return f"did you mean one of: {', '.join(near)}?" if near else "give the path of a YAML file"
