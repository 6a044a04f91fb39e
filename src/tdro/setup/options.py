"""The options of a study one by one: their values, what differs from the defaults, and the schema of a study file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tdro.config import Section, Study, section_of
from tdro.errors import ConfigError
from tdro.study_file import EXTENDS_KEY, RAN_KEY, load_study

SCHEMA = "https://json-schema.org/draft/2020-12/schema"


def open_study(path: Path) -> tuple[Study, dict[str, Any]]:
    """Read a study file, or the study of a run folder.

    Returns:
        The study, and what `resolved.yaml` records of the run: versions, data and so on; empty for other files.

    Raises:
        ConfigError: There is no study.
    """
    if path.is_dir():
        if not (path / "resolved.yaml").is_file():
            runs = sorted(str(near.parent) for near in path.glob("*/resolved.yaml"))
            do = f"did you mean one of: {', '.join(runs[:5])}?" if runs else "give a study file, or the folder of a run"
            raise ConfigError("there is no run in this folder", where=path, do=do)
        path = path / "resolved.yaml"
    study = load_study(path)
    raw = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    return study, raw.get(RAN_KEY) or {}


def write_value(value: Any) -> str:
    """Write a plain value as YAML in one line.

    Example:
        >>> write_value("a\\nb"), write_value([2, 100]), write_value("2 %"), write_value({"path": "x: y"})
        ('"a\\\\nb"', '[2, 100]', '2 %', "{path: 'x: y'}")
    """
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)
    text = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False, explicit_end=False
    )
    return text.removesuffix("\n").removesuffix("\n...").strip()


def changed(section: Section) -> dict[str, Any]:
    """Return the options of a section without sections of its own that differ from their defaults, as plain values."""
    plain, fields = section.model_dump(mode="json"), type(section).model_fields
    return {
        name: plain[name]
        for name, field in fields.items()
        if field.is_required() or getattr(section, name) != field.default
    }


def show(section: Section, *, only_changed: bool = False, indent: str = "") -> Iterator[tuple[str, str]]:
    """Write a study as YAML lines that are read back to the same study.

    A dataset or task stands in one line, with the options that differ from the defaults.

    Args:
        section: The study, or a part of it.
        only_changed: Leave out what has its default.
        indent: Put in front of every line.

    Yields:
        A line such as `  steps: 170`, and the default where it differs, as YAML; empty where it does not.
    """
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        inner, star = section_of(field.annotation)
        value = getattr(section, name)
        if inner and star and value:
            yield f"{indent}{name}:", ""
            yield from (
                (f"{indent}  {write_value(key)}: {write_value(changed(one))}", "") for key, one in value.items()
            )
        elif inner and not star:
            lines = list(show(value, only_changed=only_changed, indent=indent + "  "))
            yield from [(f"{indent}{name}:", ""), *lines] if lines else []
        elif field.is_required() or value != field.default or not only_changed:
            differs = not field.is_required() and value != field.default
            yield f"{indent}{name}: {write_value(plain[name])}", write_value(_plain(field.default)) if differs else ""


def flatten(section: Section, prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> plain value of every option; the options of a dataset stand under its name.

    Example:
        >>> from tdro.config import LeakageConfig
        >>> flatten(LeakageConfig(), "leakage.")["leakage.gate"]
        'warn'
    """
    plain, found = section.model_dump(mode="json"), {}
    for name in type(section).model_fields:
        inner, star = section_of(type(section).model_fields[name].annotation)
        value = getattr(section, name)
        if inner is None:
            found[prefix + name] = plain[name]
        elif star:
            for key, one in value.items():
                found |= flatten(one, f"{prefix}{name}.{key}.")
        else:
            found |= flatten(value, f"{prefix}{name}.")
    return found


def study_schema() -> dict[str, Any]:
    """Return the JSON schema of a study file, for editors: types, limits, defaults, and the docstrings as descriptions.

    A dataset or task may also be a bare path, and a dataset a list of them. A file that extends another needs no key.
    What `resolved.yaml` records of a run is accepted.
    """
    schema = Study.model_json_schema()
    a_path: dict[str, Any] = {"type": "string"}
    for section, field, bare in (
        ("DataConfig", "datasets", [a_path, {"type": "array", "items": a_path}]),
        ("EvaluationConfig", "tasks", [a_path]),
        ("EvaluationConfig", "watch", [a_path]),
    ):
        mapping = schema["$defs"][section]["properties"][field]
        named = mapping["patternProperties"]
        mapping |= {"patternProperties": {name: {"anyOf": [full, *bare]} for name, full in named.items()}}
        mapping["additionalProperties"] = False
    schema["properties"][RAN_KEY] = {"description": "What a run records; not read.", "type": "object"}
    schema["properties"][EXTENDS_KEY] = {"description": "Study file that this one builds on.", "type": "string"}
    needed = {name: schema["$defs"][name].pop("required") for name in ("DataConfig", "ModelConfig", "DatasetConfig")}
    complete = {"anyOf": [{"type": ["string", "array"]}, {"required": needed["DatasetConfig"]}]}
    data = {"required": needed["DataConfig"], "properties": {"datasets": {"additionalProperties": complete}}}
    alone = {
        "required": schema.pop("required"),
        "properties": {"data": data, "model": {"required": needed["ModelConfig"]}},
    }
    extends = {"if": {"required": [EXTENDS_KEY]}, "else": alone}  # what is not here is in the other file
    return {"$schema": SCHEMA, **schema, **extends}


def _plain(value: Any) -> Any:
    """Return a default as JSON has it."""
    return list(value) if isinstance(value, tuple) else value
