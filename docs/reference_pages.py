"""Pages that are made from the code while Sphinx builds: the options of a study, the help of every command.

Also turns our docstrings, which are Markdown as far as they are marked up at all, into what autodoc expects, and keeps
links within the site.
"""

import contextlib
import io
import os
import posixpath
import re
from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Any
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tdro.cli.main import OTHER_VERBS, STUDY_VERBS, main
from tdro.config import Study

WIDTH = 100
"""Columns of a command's help."""


class Options(SphinxDirective):
    """`tdro-options`: a table for each section of a study, from its schema."""

    def run(self) -> list[nodes.Node]:
        """Make the tables."""
        return self.parse_text_to_nodes(options_page(), allow_section_headings=True)


class Commands(SphinxDirective):
    """`tdro-commands`: what `--help` prints, for every verb."""

    def run(self) -> list[nodes.Node]:
        """Make a section for each verb."""
        return self.parse_text_to_nodes(commands_page(), allow_section_headings=True)


def options_page() -> str:
    """Write the options of a study as Markdown."""
    schema = Study.model_json_schema(mode="serialization")  # the other mode says nothing of values that become sections
    plain: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for name, option in schema["properties"].items():
        section = _section(option, schema)
        (sections if section else plain)[name] = section or option
    pages = ["## The study itself", _table(plain, schema)]
    for name, section in sections.items():
        pages += [f"## {name}", section.get("description", ""), _table(section["properties"], schema)]
    for title, name in (("A dataset", "DatasetConfig"), ("An evaluation task", "TaskConfig")):
        section = schema["$defs"][name]
        pages += [f"## {title}", section.get("description", ""), _table(section["properties"], schema)]
    return "\n\n".join(pages) + "\n"


def commands_page() -> str:
    """Write the help of every command as Markdown."""
    pages = []
    for verb in ["", "demo", *STUDY_VERBS, *OTHER_VERBS]:
        command = f"tdro {verb} --help".replace("  ", " ")
        pages.append(f"## {f'tdro {verb}'.strip()}\n\n```text\n$ {command}\n{help_of(verb)}```\n")
    return "\n".join(pages)


def help_of(verb: str) -> str:
    """Return what a command's `--help` prints."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS=str(WIDTH), NO_COLOR="1", TERM="dumb"),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main([*([verb] if verb else []), "--help"])
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def _section(option: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return the section that an option stands for, if it stands for one."""
    name = option.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = schema["$defs"].get(name, {})
    return found if "properties" in found else None


def _table(options: dict[str, Any], schema: dict[str, Any]) -> str:
    """Write options as a table."""
    lines = ["| option | value | default | meaning |", "|---|---|---|---|"]
    for name, option in options.items():
        default = _value(option["default"]) if "default" in option else "**required**"
        meaning = option.get("description", "").replace("\n", " ")
        lines.append(f"| `{name}` | {_kind(option, schema)} | {default} | {_cell(meaning)} |")
    return "\n".join(lines)


def _kind(option: dict[str, Any], schema: dict[str, Any]) -> str:
    """Say what an option may be."""
    if "anyOf" in option:
        return " or ".join(dict.fromkeys(_kind(each, schema) for each in option["anyOf"]))
    if "$ref" in option:
        name = option["$ref"].rpartition("/")[2]
        titles = {"DatasetConfig": "[dataset](#a-dataset)", "TaskConfig": "[task](#an-evaluation-task)"}
        return titles.get(name) or _kind(schema["$defs"][name], schema)
    if "enum" in option:
        return ", ".join(_value(each) for each in option["enum"])
    if "const" in option:
        return _value(option["const"])
    if option.get("type") == "array":
        if "prefixItems" in option:
            return "[" + ", ".join(_kind(each, schema) for each in option["prefixItems"]) + "]"
        return f"list of {_kind(option.get('items', {}), schema)}"
    if option.get("type") == "object":
        named = [*option.get("patternProperties", {}).values(), option.get("additionalProperties", {})]
        return f"name: {_kind(named[0], schema)}"
    names = {"integer": "integer", "number": "number", "string": "text", "boolean": "true, false", "null": "nothing"}
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [f"{words} {option[key]:g}" for key, words in limits.items() if key in option and option[key] < 2**53]
    return " ".join([names.get(option.get("type", ""), "anything"), ", ".join(said)]).strip()


def _value(value: object) -> str:
    """Write a value as it stands in a study file."""
    if value is None or value == "":
        return "nothing" if value is None else '`""`'
    if isinstance(value, bool):
        return f"`{value}`".lower()
    return f"`{_cell(str(list(value) if isinstance(value, tuple) else value))}`"


def _cell(text: str) -> str:
    """Keep bars and line ends from ending a cell."""
    return text.replace("|", "\\|").replace("\n", "\\n")


def markdown_docstring(_app: Sphinx, _what: str, _name: str, _object: object, _options: Any, lines: list[str]) -> None:
    """Mark a docstring up for autodoc, in place."""
    lines[:] = list(_marked_up(lines))


def _marked_up(lines: list[str]) -> Iterator[str]:
    """Yield a docstring's lines as reStructuredText; examples stay as they are."""
    code_indent: int | None = None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        following = next((each.strip() for each in lines[number + 1 :] if each.strip()), "")
        if code_indent is not None and line.strip() and indent <= code_indent:
            code_indent = None
        if code_indent is not None or line.lstrip().startswith((">>>", "...")) or _after_prompt(lines, number):
            yield line
        elif line.strip() == "Example:" and not following.startswith(">>>"):
            code_indent = indent
            yield from (" " * indent + "Example::", "")
        else:
            yield _escaped(line)


def _after_prompt(lines: list[str], number: int) -> bool:
    """Tell whether a line is what an example prints."""
    for line in reversed(lines[:number]):
        if not line.strip():
            return False
        if line.lstrip().startswith((">>>", "...")):
            return bool(lines[number].strip())
    return False


def _escaped(line: str) -> str:
    """Write a line of Markdown as reStructuredText: code in double backticks, everything else without meaning."""
    parts = re.split(r"`([^`]+)`", line)
    meaning = re.compile(r"[*|]|_(?!\w)|(?<=\w):(?=\w)")  # emphasis, substitution, reference, scheme of an address
    plain = (meaning.sub(r"\\\g<0>", part) for part in parts[::2])
    code = (f"``{part}``\\ " for part in parts[1::2])
    return "".join(chain.from_iterable(zip_longest(plain, code, fillvalue="")))


def links_within(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead links to Markdown files outside of this folder, which work in the repository, to a page or to nothing."""

    def within(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(docname), link[2]))
        inside = {"../SECURITY.md": "/security.md"}.get(target, link[2] if not target.startswith("..") else "")
        return f"[{link[1]}]({inside}{link[3]})" if inside else link[1]

    source[0] = re.sub(r"\[([^\]\n]+)\]\(([\w./-]+\.md)((?:#[\w-]+)?)\)", within, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx what is here."""
    app.add_directive("tdro-options", Options)
    app.add_directive("tdro-commands", Commands)
    app.connect("source-read", links_within)
    app.connect("autodoc-process-docstring", markdown_docstring, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
