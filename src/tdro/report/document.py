"""What a report is made of: sections of blocks, which `page` writes as HTML and `markdown` as Markdown."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tdro.report.charts import Drawing


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence or two that must not be overlooked; `level` is told by a word and a sign, not by colour alone."""

    level: Literal["good", "warning", "note"]
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """Sentences, one each."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Its first column names the row, the others are numbers unless they are named in `words`; `total` says that the last
    row sums the others up.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    words: tuple[str, ...] = ()
    total: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture.

    Attributes:
        title: What it shows.
        description: The same in words, for whoever cannot see it: the text alternative, and all that Markdown has.
        draw: Draws it for a width in pixels.
    """

    title: str
    description: str
    draw: Callable[[int], Drawing]


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage that a model found: its rank in words, and whether it is relevant."""

    rank: str
    relevant: bool
    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """A query with what two models found for it."""

    task: str
    text: str
    change: str
    found: tuple[tuple[str, tuple[Passage, ...]], ...]


@dataclass(frozen=True, slots=True)
class Code:
    """A text to be shown as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The controls that compute other plans; `data` is what the page's script is given."""

    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that are shown when asked for, and printed."""

    title: str
    blocks: tuple["Block", ...]


Block = Text | Note | Bullets | Table | Figure | Query | Code | WhatIf | Fold


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report with a heading; `anchor` is its address within the page."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole report.

    Attributes:
        title: Name of the run.
        subtitle: What the study is, in one line.
        headline: The verdict in a few words.
        sections: From the verdict to how to read the page.
    """

    title: str
    subtitle: str
    headline: str
    sections: tuple[Section, ...]
