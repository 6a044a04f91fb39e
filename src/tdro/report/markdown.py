"""A report as Markdown: the same words and tables; pictures become their descriptions."""

from collections.abc import Sequence

from tdro.report.document import Block, Bullets, Code, Figure, Fold, Note, Query, Report, Table, Text


def as_markdown(report: Report) -> str:
    """Write a report as Markdown.

    Args:
        report: The report.

    Returns:
        The text; what comes from datasets and models is no markup in it.
    """
    parts = [f"# {plain(report.title)}", plain(report.subtitle), f"**{plain(report.headline)}**"]
    for section in report.sections:
        parts.append(f"## {plain(section.title)}")
        parts += _blocks(section.blocks, 3)
    return "\n\n".join(filter(None, parts)) + "\n"


def plain(text: str) -> str:
    """Keep Markdown from reading a text as markup.

    Example:
        >>> plain("a_b <script> | c")
        'a\\\\_b &lt;script> \\\\| c'
    """
    for sign in "\\`*_|[]#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())


def _blocks(blocks: Sequence[Block], level: int) -> list[str]:
    """Write blocks; headings within them begin at a level."""
    parts: list[str] = []
    for block in blocks:
        match block:
            case Text(text):
                parts.append(plain(text))
            case Note(kind, title, text):
                parts.append(f"> **{kind}: {plain(title)}** {plain(text)}".rstrip())
            case Bullets(items):
                parts.append("\n".join(f"- {plain(item)}" for item in items))
            case Table():
                parts.append(_table(block))
            case Figure(title, description):
                parts.append(f"*Figure: {plain(title)}.* {plain(description)}")
            case Query():
                parts.append(_query(block))
            case Code(text):
                parts.append("\n".join(f"    {line}" for line in text.splitlines()))
            case Fold(title, inner):
                parts += [f"{'#' * level} {plain(title)}", *_blocks(inner, level + 1)]
            case _:
                parts.append("The HTML page has controls for other plans here.")
    return parts


def _table(table: Table) -> str:
    """Write a table, with its caption below."""
    align = ["---" if k == 0 or name in table.words else "---:" for k, name in enumerate(table.header)]
    lines = [map(plain, table.header), align, *(map(plain, row) for row in table.rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{plain(table.caption)}" if table.caption else text


def _query(query: Query) -> str:
    """Write a query and what was found for it as nested lists."""
    lines = [f"- {plain(query.task)}: {plain(query.change)} **{plain(query.text)}**"]
    for name, passages in query.found:
        lines.append(f"  - {plain(name)}")
        for passage in passages:
            mark = " (relevant)" if passage.relevant else ""
            lines.append(f"    - {passage.rank}{mark}: {plain(passage.text)}")
    return "\n".join(lines)
