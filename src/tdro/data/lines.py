"""Read text files, packed or not: their lines, and the JSON in them (one value per line, or one list around all)."""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

from tdro.errors import DataError

LONGEST_LINE = 1 << 28
"""Bytes of a line (or of a cell of a table) from which a file is taken for damaged rather than read into memory."""

_CHUNK = 1 << 20  # bytes of a list of rows that are read at a time
_SPACE = re.compile(r"[ \t\r\n]*")
_LIST_OF_ROWS = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:[{\[\]]|\Z)")
_ONE_PER_LINE = "write one JSON object per line"


@contextmanager
def opened(file: Path, packed: bool = False) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacked: one that is called packed, or begins like a gzip file."""
    with file.open("rb") as raw:
        if packed or raw.peek(2).startswith(b"\x1f\x8b"):
            yield io.BufferedReader(gzip.GzipFile(fileobj=raw))
        else:
            yield raw


@contextmanager
def reading(where: Callable[[], object]) -> Iterator[None]:
    """Report what opening, reading and unpacking a file raises, with the place that `where` returns then."""
    what, do, saw = "file cannot be read", "check its rights and its disk", None
    try:
        yield
        return
    except EOFError:
        what, do = "gzip file ends too early", "the file is cut off: copy or write it again"
    except (gzip.BadGzipFile, zlib.error) as problem:
        what, do = "not a gzip file, or a damaged one", "write it again, or name it .jsonl if it is not packed"
        saw = str(problem)
    except OSError as problem:
        saw = str(problem)
    raise DataError(what, where=where(), saw=saw, do=do)


def numbered_lines(file: Path, packed: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of every line, with its end, without a byte order mark.

    Args:
        file: The file.
        packed: Unpack it, even if it does not begin like a gzip file.

    Raises:
        DataError: The file cannot be read any further.
    """
    number = 0
    with reading(lambda: f"{file}:{number + 1}" if number else file), opened(file, packed) as stream:
        for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE), b""), start=1):
            if len(line) == LONGEST_LINE:
                raise too_long(f"{file}:{number}", line)
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def too_long(where: str, line: bytes) -> DataError:
    """Say that a line is so long that it can be no row."""
    do = "check that this is the right file; write one row per line"
    return DataError(f"line of more than {LONGEST_LINE // 10**6} MB", where=where, saw=line[:60], do=do)


def json_records(file: Path, packed: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield `file:line` and content of every record of a JSON file.

    Where the file begins with a list of objects or of lists, the list's members are the records, read one by one;
    otherwise every line that is not blank is one, and stays bytes until `decode` reads it.

    Raises:
        DataError: The file cannot be read any further.
    """
    if is_list_of_rows(file, packed):
        yield from _members(file, packed)
        return
    for number, line in numbered_lines(file, packed):
        line = line.rstrip()
        if line:
            yield f"{file}:{number}", line


def is_list_of_rows(file: Path, packed: bool = False) -> bool:
    """Tell whether a JSON file begins with a list of objects or of lists, and not with a line for each record.

    Raises:
        DataError: The file cannot be read.
    """
    with reading(lambda: file), opened(file, packed) as stream:
        return _LIST_OF_ROWS.match(stream.peek(1)[:4096]) is not None  # type: ignore[attr-defined]


def decode(unit: Any, place: str) -> Any:
    """Return the content of a record: a line of JSON is read here, anything else is what it is.

    Raises:
        DataError: The line is not UTF-8 or not JSON, or `unit` is a DataError.
    """
    if isinstance(unit, bytes):
        text = as_text(unit, place)
        try:
            return _DECODER.decode(text)
        except (ValueError, RecursionError) as problem:
            raise _not_json(problem, text, 0, place) from None
    if isinstance(unit, DataError):
        raise unit
    return unit


def as_text(line: bytes, place: str) -> str:
    """Return a line as text.

    Raises:
        DataError: It is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as problem:
        near = line[max(0, problem.start - 30) : problem.start + 30]
        do = f"save the file as UTF-8; byte {problem.start + 1} of the line is not"
        raise DataError("not UTF-8", where=place, saw=near, do=do) from None


class _Window:
    """The part of a JSON file that is in memory, and where in it reading has come to."""

    def __init__(self, file: Path, stream: IO[bytes]) -> None:
        self.file, self._stream = file, stream
        self.line = 1
        self._text, self._at = "", 0
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    @property
    def place(self) -> str:
        """`file:line` of where reading has come to."""
        return f"{self.file}:{self.line}"

    def next_character(self) -> str:
        """Skip white space and return the character that follows; empty at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._move(match.end() if match else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._grow():
                return ""

    def take(self) -> str:
        """Return the next character as well, and go past it."""
        character = self.next_character()
        self._move(self._at + len(character))
        return character

    def value(self) -> Any:
        """Return the JSON value that comes next, and go past it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as problem:
                is_cut = problem.msg.startswith("Unterminated string") or problem.pos + 16 > len(self._text)
                if not (is_cut and self._grow()):
                    raise _not_json(problem, self._text, self._at, self.place) from None
            except (ValueError, RecursionError) as problem:
                raise _not_json(problem, self._text, self._at, self.place) from None
            else:
                self._move(end)
                return value

    def _move(self, end: int) -> None:
        """Go to a place further on."""
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _grow(self) -> bool:
        """Read on, twice as far where what is in memory already is one value; False at the end of the file."""
        rest = self._text[self._at :]
        if len(rest) > LONGEST_LINE:
            raise too_long(self.place, rest[:60].encode())
        chunk = self._stream.read(max(_CHUNK, len(rest)))
        try:
            more = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as problem:
            line = self.line + rest.count("\n") + problem.object[: problem.start].count(b"\n")
            near = problem.object[max(0, problem.start - 30) : problem.start + 30]
            raise DataError("not UTF-8", where=f"{self.file}:{line}", saw=near, do="save the file as UTF-8") from None
        self._text, self._at = rest + more, 0
        return bool(chunk)


def _members(file: Path, packed: bool) -> Iterator[tuple[str, Any]]:
    """Yield place and content of every member of the one list that a file holds."""
    line = 1
    with reading(lambda: f"{file}:{line}"), opened(file, packed) as stream:
        window = _Window(file, stream)
        window.take()
        if window.next_character() == "]":
            window.take()
        else:
            after = ","
            while after == ",":
                window.next_character()
                line, place = window.line, window.place
                yield place, window.value()
                after = window.take()
            if after != "]":
                do = "put a comma between rows, and ] after the last one"
                what = "no comma between two rows of the list" if after else "the list around the rows is not closed"
                raise DataError(what, where=window.place, saw=after, do=do)
        if after := window.next_character():
            do = "keep one list per file, or write one JSON object per line without a list around them"
            raise DataError("text after the list of rows", where=window.place, saw=after, do=do)


class _Refused(ValueError):
    """JSON that Python would read and that we do not; `do` says what to do about it."""

    def __init__(self, what: str, do: str) -> None:
        super().__init__(what)
        self.do = do


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object whose keys differ."""
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in made if keys.count(key) > 1)
        raise _Refused(f"the key {twice!r} stands twice in one object", "keep one of the two")
    return made


def _refuse_constant(name: str) -> NoReturn:
    """Refuse NaN, Infinity and -Infinity, which are no JSON."""
    raise _Refused(f"{name} is no JSON number", "write null, or leave the field out")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)


def _not_json(problem: Exception, text: str, start: int, place: str) -> DataError:
    """Say what is wrong with JSON text that begins at `start`."""
    do = problem.do if isinstance(problem, _Refused) else _ONE_PER_LINE
    if isinstance(problem, json.JSONDecodeError):
        what = f"not JSON: {problem.msg} at column {problem.pos - start + 1}"
        return DataError(what, where=place, saw=text[max(start, problem.pos - 30) : problem.pos + 30], do=do)
    return DataError(f"not JSON that can be read: {problem}", where=place, saw=text[start : start + 1000], do=do)
