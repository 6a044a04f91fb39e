"""Cut README files and reference topics into sections under their headings."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from tdro.demo.docstrings import plain

_MARKDOWN_HEADING = re.compile(r"^(#{1,6})[ ]+(.+?)[ #]*$")
_RULE = re.compile(r"^([=\-~^*\"'#+])\1{2,}\s*$")
_DEFINITION = re.compile(r"^(?P<term>[a-z]\w*(?:\.\w+)+(?:\(.*\))?)\n\n(?P<body>(?:[ ]{3}.*\n|\n)+)", re.MULTILINE)
_CHANGELOG = re.compile(
    r"change ?log|changes|(release )?history|release notes|what's new|.*\bv?\d+\.\d+(\.\d+|\b.*\d{4})", re.I
)
_TAGS = (
    "a|b|br|center|code|details|div|em|font|h[1-6]|hr|i|img|kbd|li|ol|p|picture|pre|source|span|strong|sub|summary|sup|"
    "table|tbody|td|th|thead|tr|ul"
)
_HTML = re.compile(rf"<!--.*?-->|</?({_TAGS})(\s[^<>]*)?/?>", re.IGNORECASE | re.DOTALL)
_NOT_PROSE = re.compile(r"^\s*(\.\. |:\w+:|<|\[!\[|!\[|\[[^\]]+\]:|\|)")


@dataclass(frozen=True)
class Section:
    """The running text and code under one heading. `heading` is empty for the text before the first one."""

    heading: str
    text: str


def readme_sections(text: str) -> Iterator[Section]:
    """Yield the sections of a Markdown or reStructuredText README up to its list of changes.

    Badges, images, tables and HTML are left out.
    """
    heading, fenced = "", False
    kept: list[str] = []
    lines = [*text.replace("\r\n", "\n").split("\n"), "# end", ""]
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        found = None if fenced else _heading(line, below)
        if found is not None:
            yield Section(plain(_HTML.sub("", heading)), _squeeze(kept))
            heading, kept = found, []
            if _CHANGELOG.match(heading):
                return
        elif fenced or not (_NOT_PROSE.match(line) or _RULE.match(line)):
            kept.append(line)


def topic_sections(text: str) -> Iterator[Section]:
    """Yield the sections of a reference topic and its indented definitions such as `str.join(iterable)`."""
    yield from readme_sections(_DEFINITION.sub("", text))
    for match in _DEFINITION.finditer(text + "\n"):
        yield Section(match["term"], _squeeze(textwrap.dedent(match["body"]).split("\n")))


def _heading(line: str, below: str) -> str | None:
    """Return the heading a line is, Markdown or underlined, or None."""
    match = _MARKDOWN_HEADING.match(line)
    if match:
        return match[2]
    ruled = _RULE.match(below) and len(below.rstrip()) >= len(line.rstrip()) - 1
    return line.strip() if ruled and line[:1].strip() and not _RULE.match(line) else None


def _squeeze(lines: list[str]) -> str:
    """Join the lines of every paragraph, without markup; sessions and indented code keep their lines."""
    text = _HTML.sub("", "\n".join(lines))
    blocks = []
    for block in re.split(r"\n\s*\n", re.sub(r"^[ ]*(```|~~~).*$", "\n", text, flags=re.MULTILINE)):
        is_code = re.match(r"\s*>>>|[ ]{3,}|\t|(import|from|pip|\$) ", block)
        blocks.append(textwrap.dedent(block).strip() if is_code else plain(block))
    return "\n".join(block for block in blocks if block)
