"""Cuts a shell script into commands and words, and remembers which quotes a piece of a word stood in."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tdro.errors import ConfigError

ASSIGNED = re.compile(r"([A-Za-z_]\w*)(\+?)=", re.ASCII)
"""Begins a word that sets a variable, or with `+` adds to it."""


@dataclass
class Word:
    """Pieces of text, each with the quotes that it stood in, or the words of an array."""

    line: int
    pieces: list[tuple[str, str]] = field(default_factory=list)
    array: list["Word"] | None = None

    def add(self, text: str, quotes: str = "") -> None:
        """Add text; what stands in the same quotes is one piece."""
        if self.pieces and self.pieces[-1][1] == quotes == "":
            self.pieces[-1] = (self.pieces[-1][0] + text, "")
        else:
            self.pieces.append((text, quotes))

    @property
    def bare(self) -> str:
        """The unquoted text it begins with."""
        return self.pieces[0][0] if self.pieces and self.pieces[0][1] == "" else ""


def lex(text: str, path: Path) -> Iterator[list[Word]]:
    """Cut a script into commands, each a list of words."""
    words: list[Word] = []
    word: Word | None = None
    i = skip = 0
    while i <= len(text):
        c = text[i : i + 1] or "\n"
        if c == "\\" and text[i + 1 : i + 2] == "\n":
            i += 2
            continue
        ends = c in " \t\n;&|<>()" and not (c == "(" and word and ASSIGNED.fullmatch(word.bare))
        if ends:
            if c in "<>" and word and word.bare.isdigit():
                word = None  # 2>file
            if word is not None and not skip:
                words.append(word)
            skip = 0 if word is not None else skip
            word = None
            if c in "<>":
                i, skip = _after_redirect(text, i)
                continue
            if c not in " \t":
                if words:
                    yield words
                words, skip = [], 0
            i += 1
            continue
        if c == "#" and word is None:
            end = text.find("\n", i)
            i = end if end >= 0 else len(text)
            continue
        word = word or Word(text.count("\n", 0, i) + 1)
        i = _take(text, i, word, path)


def _take(text: str, i: int, word: Word, path: Path) -> int:
    """Add what stands at a place to a word; returns where it ends."""
    c = text[i]
    if c == "\\":
        word.add(text[i + 1 : i + 2], "'")
        return i + 2
    if c == "'":
        end = text.find("'", i + 1)
        if end < 0:
            raise _unclosed(text, i, path)
        word.add(text[i + 1 : end], "'")
        return end + 1
    if c == '"':
        return _take_quoted(text, i, word, path)
    if c == "`" or text.startswith(("$(", "${"), i):
        end = text.find("`", i + 1) + 1 if c == "`" else closing(text, i + 1)
        if end <= 0:
            raise _unclosed(text, i, path)
        word.add(f"$({text[i + 1 : end - 1]})" if c == "`" else text[i:end])
        return end
    if c == "(":
        end = closing(text, i)
        if end <= 0:
            raise _unclosed(text, i, path)
        word.array = [item for words in lex(text[i + 1 : end - 1], path) for item in words]
        return end
    word.add(c)
    return i + 1


def _take_quoted(text: str, start: int, word: Word, path: Path) -> int:
    """Add what stands in double quotes to a word; returns where it ends."""
    i, piece = start + 1, ""
    while i < len(text) and text[i] != '"':
        if text[i] == "\\" and text[i + 1 : i + 2] in ("\\", '"', "$", "`", "\n"):
            word.add(piece, '"')
            word.add(text[i + 1].strip("\n"), "'")
            piece, i = "", i + 2
        elif text.startswith(("$(", "${"), i) and (end := closing(text, i + 1)) > 0:
            piece, i = piece + text[i:end], end
        else:
            piece, i = piece + text[i], i + 1
    if i >= len(text):
        raise _unclosed(text, start, path)
    word.add(piece, '"')
    return i + 1


def closing(text: str, start: int) -> int:
    """Find the end of what the bracket at a place opens, one past its partner; -1 if there is none."""
    opening, closing = text[start], {"(": ")", "{": "}"}[text[start]]
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == opening) - (text[i] == closing)
        if depth == 0:
            return i + 1
    return -1


def _after_redirect(text: str, i: int) -> tuple[int, int]:
    """Pass over `>`, `>>`, `2>&1`; returns where it ends and 1 if the next word is its file."""
    found = re.compile(r"[<>]+(?:&(?:\d|-))?").match(text, i)
    assert found is not None
    return found.end(), 0 if "&" in found[0] else 1


def _unclosed(text: str, i: int, path: Path) -> ConfigError:
    """Say which quote or bracket has no end."""
    where = f"{path}:{text.count(chr(10), 0, i) + 1}"
    return ConfigError("a quote or bracket is not closed", where=where, saw=text[i : i + 40], do="close it")
