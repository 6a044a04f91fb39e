"""Damaged variants of valid files: of their bytes, their values, and the tables and archives that they are."""

import contextlib
import gzip
import io
import json
import math
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

DEEP, DIGITS = "@deep@", "@digits@"  # stand for what no writer of JSON would write
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 10**400, 0.1, -0.0, 1e-320, 1e308, math.nan, math.inf,
    -math.inf, "", " ", "\n", "a", "0", "nan", "1e999", "\x00", "\ud800", "\ufeff", "\u2028", "é" * 3, "x" * 5000,
    "../..", "/", "/dev/null", "*", "@x", "2020-01-01", [], {}, [[]], [None], {"": None}, [1, "a"], {"a": {"b": []}},
    DEEP, DIGITS,
)  # fmt: skip
"""Values that a careless reader stumbles over."""

BITS = (
    b"", b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"\r", b"\n", b"\r\n", b"\t", b'"',
    b"'", b"{", b"}", b"[", b"]", b":", b",", b"-", b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"!!binary ",
    b"|\n", b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"9" * 5000, b"\\ud800", b"\\u0000", b"null", b"true", b"0x",
    b"1_0", b"0o8", b"[" * 3000, b'{"a":' * 3000, b"- " * 3000, b"\xe2\x80\xa8", b"\x1f\x8b", b"PAR1", b"ARROW1",
    b"#", b"%", b"---\n",
)  # fmt: skip
"""Bytes that mean something to a parser."""

Damage = Callable[[bytes, random.Random], bytes]


def damage(content: bytes, kind: str, chance: random.Random) -> bytes:
    """Return a damaged variant of a file.

    Args:
        content: The valid file.
        kind: "json", "jsonl", "csv", "parquet", "bytes", or one of these behind "gz:".
        chance: Draws the damage.
    """
    if kind.startswith("gz:"):
        inner = damage(gzip.decompress(content), kind.removeprefix("gz:"), chance)
        packed = gzip.compress(inner, compresslevel=1, mtime=0)
        return _bytes(packed, chance) if chance.random() < 0.3 else packed
    if kind == "bytes" or chance.random() < 0.4:
        return _bytes(content, chance)
    with contextlib.suppress(pa.ArrowException, OverflowError, RecursionError, ValueError):
        return {"json": _json, "jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[kind](content, chance)
    return _bytes(content, chance)


def _bytes(content: bytes, chance: random.Random) -> bytes:
    """Flip, cut, repeat, swap or insert bytes, once or some times."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        start = chance.randrange(len(found) + 1)
        stop = min(len(found), start + int(chance.expovariate(0.1)))
        match chance.randrange(6):
            case 0 if start < len(found):
                found[start] ^= 1 << chance.randrange(8)
            case 1:
                del found[start:stop]
            case 2:
                found[start:start] = found[start:stop] * chance.choice((1, 2, 100))
            case 3:
                found[start:stop] = chance.choice(BITS)
            case 4:
                del found[start:]
            case _:
                found[start:start] = chance.choice(BITS)
    return bytes(found)


def _json(content: bytes, chance: random.Random) -> bytes:
    """Change values of a JSON file."""
    return _as_text(_tree(json.loads(content), chance), chance)


def _jsonl(content: bytes, chance: random.Random) -> bytes:
    """Change values of lines of a JSON-lines file, or the lines' order or number."""
    lines = content.splitlines()
    for _ in range(chance.choice((1, 1, 2))):
        at = chance.randrange(len(lines))
        match chance.randrange(5):
            case 0:
                lines[at] = lines[chance.randrange(len(lines))]
            case 1 if len(lines) > 1:
                del lines[at]
            case _:
                lines[at] = _as_text(_tree(json.loads(lines[at]), chance), chance)
    return b"\n".join(lines) + b"\n" * chance.randrange(3)


def _csv(content: bytes, chance: random.Random) -> bytes:
    """Swap fields of a table of texts for odd ones."""
    rows = [line.split(b"\t" if b"\t" in content else b",") for line in content.splitlines()]
    for _ in range(chance.choice((1, 1, 2, 4))):
        row = chance.choice(rows)
        if row:
            odd = (
                chance.choice(BITS)
                if chance.random() < 0.5
                else str(chance.choice(ODD)).encode("utf-8", "surrogatepass")
            )
            row[chance.randrange(len(row))] = odd
        if chance.random() < 0.2:
            row.append(b"more")
    return b"\n".join((b"\t" if b"\t" in content else b",").join(row) for row in rows)


def _parquet(content: bytes, chance: random.Random) -> bytes:
    """Write a parquet table again with other values, types or columns."""
    table = pq.read_table(io.BytesIO(content))
    name = chance.choice(table.column_names)
    at = table.column_names.index(name)
    match chance.randrange(7):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.rename_columns(
                [chance.choice(("", "x", name)) if n == name else n for n in table.column_names]
            )
        case 2:
            table = table.slice(0, chance.randrange(2))
        case 3:
            types = (pa.string(), pa.large_string(), pa.int8(), pa.float16(), pa.binary(), pa.bool_(), pa.float64())
            table = table.set_column(at, name, table[name].cast(chance.choice(types), safe=False))
        case 4:
            table = table.set_column(
                at, name, pa.nulls(len(table), chance.choice((pa.null(), table.schema.field(at).type)))
            )
        case 5:
            table = table.append_column(name, table[name])
        case _:
            values = table[name].to_pylist()
            for _ in range(chance.choice((1, 3))):
                values[chance.randrange(len(values))] = chance.choice(ODD)
            fitting = table.schema.field(at).type if chance.random() < 0.5 else None
            table = table.set_column(at, name, pa.array(values, fitting))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _tree(value: Any, chance: random.Random) -> Any:
    """Change something somewhere in a tree of values."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        changed = dict(value)
        match chance.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[str(chance.choice(ODD))[:50]] = changed.pop(key)
            case 2:
                changed[key] = changed[chance.choice(list(changed))]
            case _:
                changed[key] = _tree(value[key], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.85:
        items = list(value)
        at = chance.randrange(len(items))
        match chance.randrange(6):
            case 0:
                del items[at]
            case 1:
                items.insert(at, chance.choice(ODD))
            case 2:
                items = items * 3
            case _:
                items[at] = _tree(items[at], chance)
        return items
    return chance.choice(ODD)


def _as_text(value: Any, chance: random.Random) -> bytes:
    """Write JSON as a careless program would: NaN, surrogates, keys that occur twice, endless nesting and digits."""
    text = json.dumps(value, ensure_ascii=chance.random() < 0.7)
    deep = chance.choice((50, 3000, 100_000))
    text = text.replace(f'"{DEEP}"', "[" * deep + "]" * deep).replace(
        f'"{DIGITS}"', "9" * chance.choice((19, 400, 5000))
    )
    if text.startswith("{") and len(text) > 2 and chance.random() < 0.1:
        text = text[:-1] + ", " + text[1:]
    return text.encode("utf-8", "surrogatepass")


def csv_of(rows: list[dict[str, str]], delimiter: str) -> bytes:
    """Write rows as a table of texts."""
    buffer = io.BytesIO()
    csv.write_csv(pa.Table.from_pylist(rows), buffer, csv.WriteOptions(delimiter=delimiter))
    return buffer.getvalue()


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    """Write rows as a parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
