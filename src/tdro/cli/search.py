"""`tdro search INDEX "query"`: the passages of an index that answer a query."""

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from tdro.cli.overrides import parse
from tdro.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from tdro.retrieval.retriever import Hit, Retriever

HELP = """\
usage: tdro search INDEX ["query" ...] [--file FILE] [--k N] [--json] [--encoder NAME] [--device NAME]
                   [--search exact|flat|ivf-pq]

Show the passages of an index that answer a query best: rank, score, title, the part that has most of the query's
words, and the id. Without a query it asks for one after the other.

examples:
  tdro search wiki-index "who wrote the opera that is set in Seville"
  tdro search wiki-index --file queries.txt --k 100 --json > found.jsonl
  tdro search wiki-index

  --file FILE     more queries, one per line
  --k N           passages per query (default: 10)
  --json          a line per query, {"query", "hits": [{"rank", "id", "score", "title", "text"}]}, texts in full;
                  with faiss also "search": {"kind", "recall", "measured_on"}
  --encoder NAME  where the encoder of the index is now, if it has moved
  --device NAME   cpu or cuda (default: the GPU if there is one)
  --search KIND   exact (default), or flat or ivf-pq with faiss (extra `faiss`), made in memory at the start; its recall
                  is measured on up to 100 of the queries and shown with the results
"""

_LONG = 20  # letters of a word that a snippet does not cut
_CHARACTER = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CHARACTER}]|[^\W{_CHARACTER}]+")  # single characters where spaces do not separate words


@dataclass
class Arguments:
    """An index and what to look for."""

    index: tyro.conf.Positional[str]
    """Folder that tdro index has written."""
    queries: tyro.conf.Positional[tuple[str, ...]] = ()
    """Queries."""
    file: str = ""
    """File with more queries, one per line."""
    k: int = 10
    """Passages per query."""
    json: bool = False
    """Print a JSON object per query."""
    encoder: str = ""
    """Where the encoder is now."""
    device: str = ""
    """cpu or cuda."""
    search: Literal["exact", "flat", "ivf-pq"] = "exact"
    """How to search; flat and ivf-pq with faiss, and their recall is measured."""


def command(arguments: list[str]) -> int:
    """Answer queries."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    parsed = parse(Arguments, "tdro search", arguments)
    if parsed.k < 1:
        raise ConfigError("k must be at least 1", where="--k", saw=parsed.k, do="ask for one passage or more")
    queries = [*parsed.queries, *_read(parsed.file)]
    if not queries and not sys.stdin.isatty():
        raise ConfigError("no query is given", where="tdro search", do='tdro search INDEX "query", or --file FILE')
    from rich.console import Console

    from tdro.retrieval.retriever import Retriever

    retriever = Retriever(parsed.index, parsed.device or None, encoder=parsed.encoder, search=parsed.search)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if not queries:
        return _converse(retriever, parsed, console)
    for query, hits in zip(queries, retriever.search(queries, parsed.k), strict=True):
        _show(query, hits, parsed, retriever, console, headed=len(queries) > 1)
    return 0


def _read(file: str) -> list[str]:
    """Read the queries of a file, one per line; empty lines are none."""
    if not file:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        do = "give a text file in UTF-8 with a query per line"
        raise DataError("the queries cannot be read", where=file, saw=str(problem), do=do) from problem
    if not (queries := [line.strip() for line in lines if line.strip()]):
        raise DataError("the file has no query", where=file, do="write a query per line")
    return queries


def _converse(retriever: "Retriever", parsed: Arguments, console: "Console") -> int:
    """Ask for queries until an empty line, the end of the input, or an interruption."""
    import readline  # noqa: F401  (lines can be edited, and earlier ones recalled)

    console.print(f"{len(retriever):,} passages; an empty line ends", markup=False)
    while True:
        try:
            query = console.input("[bold]query>[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return 0
        if not query:
            return 0
        _show(query, retriever.search([query], parsed.k)[0], parsed, retriever, console)


def _show(
    query: str,
    hits: "Sequence[Hit]",
    parsed: Arguments,
    retriever: "Retriever",
    console: "Console",
    headed: bool = False,
) -> None:
    """Print the hits of a query and, where they are approximate, the recall of the search that found them."""
    measured = retriever.measured
    if parsed.json:
        ranked = [{"rank": rank, **asdict(hit)} for rank, hit in enumerate(hits, 1)]
        answer: dict[str, object] = {"query": query, "hits": ranked}
        if measured:
            about = {"kind": parsed.search, "recall": measured.recall, "measured_on": measured.measured_on}
            answer["search"] = about
        print(json.dumps(answer, ensure_ascii=False))
        return
    from rich.padding import Padding
    from rich.text import Text

    if headed:
        console.print(Text(query, style="bold"))
    if measured:
        console.print(Text(measured.note, style="dim"))
    for rank, hit in enumerate(hits, 1):
        title = f"{hit.title}  " if hit.title else ""
        console.print(Text.assemble(f"{rank:3}  {hit.score:7.4f}  ", (title, "bold"), (f"[{hit.id}]", "dim")))
        if part := snippet(hit.text, query):
            console.print(Padding(Text(part), (0, 0, 0, 5)) if console.is_terminal else Text(f"     {part}"))
    console.print()


def snippet(text: str, query: str, width: int = 240) -> str:
    """Cut out the part of a text that has the most of a query's words, long words counting more.

    Args:
        text: The text; white space is collapsed.
        query: The query. Words match without regard to case; where spaces do not separate words, characters do.
        width: Most characters; an ellipsis stands for what is cut.

    Example:
        >>> snippet("Bees dance. Bread rises because yeast turns sugar into gas.", "Is yeast a sugar gas?", 36)
        '…because yeast turns sugar into gas.'
    """
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    wanted = {match.group().casefold() for match in _WORD.finditer(query)}
    words = [(match.start(), match.end(), match.group().casefold()) for match in _WORD.finditer(text)]
    first, last = _densest([word for word in words if word[2] in wanted], width)
    start = max(0, min(first - (width - (last - first)) // 2, len(text) - width))
    stop = start + width
    if start and text[start - 1] != " ":  # begin and end between words, unless a word is very long
        start = text.find(" ", start, min(first, start + _LONG)) + 1 or start
    if stop < len(text) and text[stop] != " ":
        space = text.rfind(" ", max(last, stop - _LONG), stop)
        stop = space if space > 0 else stop
    return f"{'…' * (start > 0)}{text[start:stop].strip()}{'…' * (stop < len(text))}"


def _densest(words: Sequence[tuple[int, int, str]], width: int) -> tuple[int, int]:
    """Return where the stretch of at most `width` characters starts and ends whose different words are longest."""
    best, place, first, letters = 0, (0, 0), 0, 0
    inside: Counter[str] = Counter()
    for last, (_, end, word) in enumerate(words):
        letters += len(word) * (not inside[word])
        inside[word] += 1
        while first < last and end - words[first][0] > width:
            left = words[first][2]
            inside[left] -= 1
            letters -= len(left) * (not inside[left])
            first += 1
        if letters > best:
            best, place = letters, (words[first][0], min(end, words[first][0] + width))
    return place
