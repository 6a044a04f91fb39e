"""Take docstrings apart: what a thing does, its parameters, related names, worked examples."""

import re
import textwrap
from collections.abc import Iterator

_SECTION_WORDS = (
    "args|arguments|parameters|params|other parameters|keyword args|keyword arguments|returns|return|yields|raises|"
    "warns|attributes|methods|see also|note|notes|warning|warnings|references|example|examples|usage|reference|todo"
)
_UNDERLINED = re.compile(r"^(?P<title>[A-Z][\w /-]{2,30})\n[-=~]{3,}[ ]*$", re.MULTILINE)
_COLON = re.compile(rf"^(?P<title>{_SECTION_WORDS}):{{1,2}}[ ]*$", re.MULTILINE | re.IGNORECASE)
_END_OF_PROSE = re.compile(
    r"^:(param|parameter|arg|type|returns?|rtype|raises?|keyword)\b|"
    r"^[ ]*(>>>|```|~~~|@|\$[ ])|^[ ]*Examples?\b.{,60}:[ ]*$|^[ ]*\w+ \(`",
    re.MULTILINE,
)
_SPHINX_PARAMETER = re.compile(
    r"^:(?:param|parameter|arg)\s+(?:[^:\n]*\s)?\*{0,2}(?P<name>\w+):[ ]*(?P<text>.*(?:\n[ \t]+\S.*)*)", re.MULTILINE
)
_ENTRY = re.compile(r"^\*{0,2}(?P<name>\w+)(?:\s*\((?P<kind>.*?)\))?\s*:(?P<rest>.*)$")
_PARAMETER_TITLES = frozenset({"args", "arguments", "parameters", "params", "other parameters", "keyword arguments"})


def plain(text: str) -> str:
    """Strip reStructuredText and Markdown markup from running text and squeeze its white space.

    Example:
        >>> plain("See :func:`~numpy.sort` or ``list.sort``,\\n  [docs](https://x.org).")
        'See numpy.sort or list.sort, docs.'
    """
    text = re.sub(r"!?\[([^\]]*)\]\([^)\s]*\)", r"\1", text)
    text = re.sub(r":[a-zA-Z:+-]+:`[~!]?([^`<]*?)\s*(?:<([^>`]*)>)?`", lambda match: match[1] or match[2] or "", text)
    text = re.sub(r"\[`+~?([^`\]]+)`+\](?:_)?", r"\1", text)
    text = re.sub(r"`([^`<]*?)\s*<[^>`]*>`_{1,2}", r"\1", text)
    text = re.sub(r"`+~?([^`]*)`+_{0,2}", r"\1", text)
    text = re.sub(r"\*\*([^*\n]+)\*\*", r"\1", text)
    text = re.sub(r"\s\[\d+\]_", "", text)
    text = re.sub(r"::(?=\s|$)", ":", text.replace("\\ ", " "))
    return " ".join(text.split())


def sections(doc: str) -> list[tuple[str, str, bool]]:
    """Cut a docstring into (lower-case title, dedented body, is the title underlined?); the first part has title ''."""
    marks = sorted([*_UNDERLINED.finditer(doc), *_COLON.finditer(doc)], key=lambda mark: mark.start())
    ends = [*(mark.start() for mark in marks), len(doc)]
    parts = [("", doc[: ends[0]], False)]
    for mark, end in zip(marks, ends[1:], strict=True):
        body = textwrap.dedent(doc[mark.end() : end].strip("\n"))
        parts.append((mark["title"].lower(), body, mark.re is _UNDERLINED))
    return parts


def prose(doc: str) -> str:
    """Return the running text at the beginning of a docstring: before parameters, examples, directives, fields.

    Example:
        >>> prose("Sort a list.\\n\\nIn place.\\n\\nArgs:\\n    x: the list\\n")
        'Sort a list. In place.'
    """
    head = sections(doc)[0][1]
    end = _END_OF_PROSE.search(head)
    kept: list[str] = []
    for paragraph in re.split(r"\n\s*\n", head[: end.start()] if end else head):
        start = paragraph.lstrip()
        if not (start.startswith("..") or _is_ruled(start) or (kept and paragraph.startswith("    "))):
            kept.append(plain(paragraph))
    return " ".join(kept).strip()


def summary(doc: str) -> str:
    """Return the first sentence of a docstring.

    Example:
        >>> summary("Return e.g. the root, see Foo.bar. It is cached.\\n\\nMore.")
        'Return e.g. the root, see Foo.bar.'
    """
    first = prose(doc.strip().split("\n\n")[0])
    end = re.search(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)[.!?](?=\s+[A-Z`\"'(])", first)
    return first[: end.end()] if end else first


def parameters(doc: str) -> Iterator[tuple[str, str]]:
    """Yield (name, description) of the parameters described in NumPy, Google or Sphinx style."""
    for match in _SPHINX_PARAMETER.finditer(doc):
        yield match["name"], plain(match["text"])
    for title, body, underlined in sections(doc):
        if title in _PARAMETER_TITLES:
            yield from _entries(body, underlined)


def related(doc: str) -> Iterator[tuple[str, str]]:
    """Yield (last part of the name, description) of what is listed under See Also; the description may be empty."""
    bodies = [body for title, body, _ in sections(doc) if title == "see also"]
    for entry in re.split(r"\n(?=\S)", "\n".join(bodies)):
        head, _, description = re.sub(r":\w+:`", "`", entry).partition(":")
        if re.fullmatch(r"[\w.`~,\s]+", head):
            for name in head.split(","):
                yield name.strip(" `~\n").rpartition(".")[2].strip("~"), plain(description)


def examples(doc: str) -> Iterator[tuple[str, str]]:
    """Yield (paragraph just above, session) for every `>>>` session in a docstring; the paragraph may be empty."""
    lead: list[str] = []
    session: list[str] = []
    closed = False
    for line in [*doc.splitlines(), ""]:
        stripped = line.strip()
        if stripped.startswith(">>>") or (session and stripped):
            session.append(line)
        elif session:
            yield plain(" ".join(lead)).rstrip(":"), textwrap.dedent("\n".join(session))
            lead, session = [], []
        elif _is_ruled(stripped):
            lead = []
        elif stripped:
            lead, closed = [stripped] if closed else [*lead, stripped], False
        else:
            closed = True


def typed_code(session: str) -> str:
    """Return what a user typed in a `>>>` session, without prompts and printed results.

    Example:
        >>> typed_code(">>> x = 1\\n>>> x\\n1")
        'x = 1\\nx'
    """
    return "\n".join(line[4:].rstrip() for line in session.splitlines() if line.startswith((">>> ", "... ")))


def _entries(body: str, underlined: bool) -> Iterator[tuple[str, str]]:
    """Yield (name, description) of a parameter list; under an underlined title the rest of the first line is a type."""
    name, text = "", ""
    for line in [*body.splitlines(), "end:"]:
        match = _ENTRY.match(line)
        if match:
            if name and text.strip():
                yield name, plain(text)
            name, text = match["name"], "" if underlined else match["rest"]
        elif line.strip() and not line.startswith((" ", "\t")):
            if name and text.strip():
                yield name, plain(text)
            name, text = "", ""
        elif not line.lstrip().startswith(("..", ">>>")):
            text += " " + line


def _is_ruled(text: str) -> bool:
    """Tell a table or a ruler from running text."""
    return text.startswith(("+-", "|")) or bool(re.search(r"^[ ]*[=+|~*-]{3,}[-=+ ]*$", text, re.MULTILINE))
