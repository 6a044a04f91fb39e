"""Tell what is odd about a text, by looking at its characters alone."""

import re
from collections.abc import Iterator
from typing import Literal

LONGEST = {"query": 5_000, "passage": 50_000}
"""Characters; a longer text is worth a note."""
SHORTEST = {"query": 2, "passage": 5}
"""Characters; a shorter text is worth a note."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufff0-\ufffb\ufffe\uffff]")
_HTML = re.compile(
    r"</?(?:a|b|blockquote|br|code|div|em|font|h[1-6]|hr|i|iframe|img|li|ol|p|pre|script|span|strong|style|sub|sup|"
    r"table|tbody|td|th|tr|u|ul)(?:\s[^<>=]{0,60}=[^<>]{0,300})?\s?/?>|&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,6}|#x[0-9a-f]{2,5});",
    re.IGNORECASE,
)
_LATER_BYTES = "".join(  # what the second and later bytes of a UTF-8 character look like
    chr(byte) + bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xC0)
)
_C = f"[{_LATER_BYTES}]"
_MOJIBAKE_STARTS = re.compile("[ÂÃâÐÑïã-é]")
_MOJIBAKE = re.compile(f"[ÂÃ]{_C}|â[€\x80]|ï»¿|ï¿½|[ÐÑ]{_C}[ÐÑ]{_C}|(?:[ã-é]{_C}{{2}}){{2}}")


def oddities(text: str, role: Literal["query", "passage"]) -> Iterator[tuple[str, str]]:
    """Yield the codes of what is odd about a text, and the part of it that shows it.

    Tags count as HTML only by the names of common elements, so that `List<String>` is none. Signs of a wrong decoding
    are sequences that hardly occur in any language: a capital A with tilde and a control or punctuation character, as
    UTF-8 gives when it is read as Latin-1 or Windows-1252.

    Args:
        text: Not empty.
        role: What the text is; it decides what is short and long.

    Example:
        >>> [code for code, _ in oddities("What is a caf\u00c3\u00a9 &amp; bar?", "query")]
        ['mojibake', 'html']
        >>> list(oddities("Was ist ein Café?", "query"))
        []
    """
    is_mojibake = False
    if not text.isascii():
        if "\ufffd" in text:
            yield "replacement-characters", _near(text, text.index("\ufffd"))
        if _MOJIBAKE_STARTS.search(text) and (found := _MOJIBAKE.search(text)):
            is_mojibake = True
            yield "mojibake", _near(text, found.start())
    if not is_mojibake and not text.isprintable() and (found := _CONTROL.search(text)):
        yield "control-characters", ascii(_near(text, found.start()))
    if ("<" in text or "&" in text) and (found := _HTML.search(text)):
        yield "html", _near(text, found.start())
    if not any(map(str.isalnum, text)):
        yield "no-words", text
    elif len(text.strip()) < SHORTEST[role]:
        yield "short-text", text
    if len(text) > LONGEST[role]:
        yield "long-text", f"{len(text):,} characters"


def _near(text: str, position: int) -> str:
    """Return what stands around a position."""
    return text[max(0, position - 30) : position + 30]
