"""Reading and writing a study file: YAML text to a `Study` and back, with file and line in every refusal."""

import difflib
from collections.abc import Mapping
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


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: Missing or not YAML, an unknown key (with a suggestion), a wrong value; with file:line.
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
    raw.pop(RAN_KEY, None)
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, path, node) from None


def save_study(study: Study, ran: Mapping[str, Any] | None = None) -> str:
    """Write a study with all its defaults as YAML text that `load_study` reads back to the same study.

    Args:
        study: The study.
        ran: Versions, fingerprints and so on, recorded under the key `ran`.
    """
    content = study.model_dump(mode="json") | ({RAN_KEY: dict(ran)} if ran else {})
    return yaml.dump(content, Dumper=_InFull, sort_keys=False, allow_unicode=True, width=120)


class _InFull(yaml.SafeDumper):
    """Writes what occurs twice twice: `load_study` takes no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        """Tell whether a value is written in full wherever it occurs."""
        return True


def _explain(error: ValidationError, path: Path, node: yaml.Node | None) -> ConfigError:
    """Turn pydantic's first error into one block with file:line and, for an unknown key, a suggestion."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    where = f"{path}:{_line_of(node, location)}:{'.'.join(location)}"
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
        if lines.setdefault(str(key.value), line) != line:
            do = "keep one of them"
            raise ConfigError(
                f"key occurs twice, also in line {lines[key.value]}", where=f"{path}:{line}", saw=key.value, do=do
            )
        _refuse_repeated_keys(value, path)


def _line_of(node: yaml.Node | None, location: list[str]) -> int:
    """Line of the deepest part of a dotted location that the file has, from 1."""
    line = 1
    for part in location:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((key, value) for key, value in node.value if key.value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _near_file(path: Path) -> str:
    """Suggest study files beside a path that does not exist."""
    folder = path.parent if path.parent.is_dir() else Path()
    near = sorted(str(p) for p in folder.glob("*.yaml"))[:5]
    return f"did you mean one of: {', '.join(near)}?" if near else "give the path of a YAML file"
