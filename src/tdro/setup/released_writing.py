"""A study file as text, with a comment beside every value that says where it comes from."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from tdro.setup.released_sections import Notes, Value

_WIDTH = 120
_COMMENTS_FROM = 34


def study_text(sections: Mapping[str, Any], notes: Notes, head: Sequence[str]) -> str:
    """Write a study file.

    Args:
        sections: Section -> key -> `Value`; mappings may be nested.
        notes: What a person should know; written on top.
        head: First lines.
    """
    lines = [line for text in head for line in _comment(text, "# ")]
    titles = {
        "NOT CARRIED OVER:": notes.lost,
        "Dead or broken there, and what it means here:": notes.broken,
        "Otherwise here, or assumed:": notes.other,
        "Not needed here:": notes.unneeded,
    }
    for title, sentences in titles.items():
        if sentences:
            lines += ["#", f"# {title}"]
            lines += [line for text in dict.fromkeys(sentences) for line in _comment(text, "# - ")]
    for key, value in sections.items():
        if isinstance(value, Mapping):
            lines += ["", f"{key}:", *_lines(value, 1)]
        else:
            lines += [_line(key, value, 0)]
    return "\n".join(lines) + "\n"


def _comment(text: str, start: str) -> list[str]:
    """Write a sentence as lines of comment."""
    after = "#" + " " * (len(start) - 1)
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=after, break_on_hyphens=False)


def _lines(section: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Write the keys of a section; a mapping without comments takes one line if it fits."""
    for key, value in section.items():
        if not isinstance(value, Mapping):
            yield _line(key, value, depth)
            continue
        begin = f"{'  ' * depth}{_scalar(key)}:"
        plain = {name: inner.value for name, inner in value.items() if isinstance(inner, Value) and not inner.comment}
        whole = f"{begin} {_scalar(plain)}"
        if len(plain) == len(value) and len(whole) <= _WIDTH:
            yield whole
        else:
            yield begin
            yield from _lines(value, depth + 1)


def _line(key: str, value: Value, depth: int) -> str:
    """Write one key with its comment."""
    text = f"{'  ' * depth}{_scalar(key)}: {_scalar(value.value)}"
    return f"{text:{_COMMENTS_FROM}} # {value.comment}" if value.comment else text


def _scalar(value: Any) -> str:
    """Write a value in one line of YAML."""
    style = '"' if isinstance(value, str) and "\n" in value else None
    text: str = yaml.safe_dump(
        value, default_flow_style=True, default_style=style, allow_unicode=True, width=10**9, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
