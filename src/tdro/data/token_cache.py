"""Tokenise once: the token lists of many texts on disk, memory-mapped, made shard by shard.

A folder holds the tokens of one sequence of texts, made by one tokenizer with one maximum length; its name is a hash
of all three. A shard is a file with the tokens of 8192 texts in a row, which appears under its name complete or not at
all and carries a hash of its content. So a build that was killed goes on with the shards that are missing, a damaged
shard is made again, and several processes may build the same folder: each begins at another shard and takes over what
the others have finished. What is stored depends on none of this, bit for bit. `tokens.json`, written last, remembers
size and times of every shard; as long as these are the same, opening a folder reads no shard.
"""

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from tdro.config import fingerprint
from tdro.data.collate import identify, tokenize_and_mark
from tdro.data.store import stamp
from tdro.errors import EnvironmentProblem
from tdro.files import read_json, temporary_name, write_json

_FORM = 1  # part of every key: raise it when the bytes of a shard would differ
_SHARD = 8192  # texts
_BLOCK = 1024  # texts that are read and tokenised together; bounds the memory
_MARK = b"tdrotok1"
_HASH = 16  # bytes; a shard begins with the hash of the rest
_COUNTS = struct.Struct("<8s5Q")  # mark, shard number, texts, tokens, texts cut, bytes per token
_BODY = _HASH + _COUNTS.size
_Block = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class _Shard:
    """The tokens of texts in a row, mapped: `ids[starts_n[i] : starts_n[i + 1]]` are those of text i."""

    starts_n: np.ndarray
    ids: np.ndarray
    was_cut_n: np.ndarray
    cut: int
    stamp: list[int]


class Tokens:
    """Token lists of n texts, memory-mapped and read-only; `tokens[i]` is that of text i. Made by `cached_tokens`."""

    def __init__(self, shards: Sequence[_Shard], numbers_n: np.ndarray | None = None) -> None:
        self._shards, self._numbers_n = shards, numbers_n
        self._length = sum(len(shard.was_cut_n) for shard in shards) if numbers_n is None else len(numbers_n)
        self._per_shard = len(shards[0].was_cut_n) if shards else 1

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> list[int]:
        return self.take([range(len(self))[i]])[0]

    def select(self, numbers_n: np.ndarray) -> "Tokens":
        """Return the tokens of some texts, in the order given; nothing is copied.

        Args:
            numbers_n: Numbers of texts, each from 0 to n - 1; a text may be named twice.
        """
        return Tokens(self._shards, numbers_n if self._numbers_n is None else self._numbers_n[numbers_n])

    def take(self, indexes: Sequence[int] | np.ndarray) -> list[list[int]]:
        """Return the token lists of some texts, in the order given; a text may be asked for twice.

        Args:
            indexes: Numbers of texts, each from 0 to n - 1.

        Raises:
            IndexError: There is no such text.
        """
        index_B = np.asarray(indexes, dtype=np.int64)
        if len(index_B) and not 0 <= index_B.min() <= index_B.max() < len(self):
            raise IndexError(f"texts {index_B.min()} to {index_B.max()} of {len(self)}")
        if self._numbers_n is not None:
            index_B = self._numbers_n[index_B]
        shard_B, place_B = np.divmod(index_B, self._per_shard)
        found = []
        for number, place in zip(shard_B.tolist(), place_B.tolist(), strict=True):
            shard = self._shards[number]
            found.append(shard.ids[shard.starts_n[place] : shard.starts_n[place + 1]].tolist())
        return found

    @property
    def lengths_n(self) -> np.ndarray:
        """int32, number of tokens of each text; read anew at every call."""
        return self._of_all([np.diff(shard.starts_n).astype(np.int32) for shard in self._shards], np.int32)

    @property
    def was_cut_n(self) -> np.ndarray:
        """Bool, whether each text was cut at the maximum length; read anew at every call."""
        return self._of_all([shard.was_cut_n for shard in self._shards], bool)

    @property
    def truncated(self) -> int:
        """How many texts were cut at the maximum length."""
        if self._numbers_n is None:
            return sum(shard.cut for shard in self._shards)
        return int(self.was_cut_n.sum())

    def _of_all(self, parts: list[np.ndarray], dtype: type) -> np.ndarray:
        """Join what there is of each shard, and pick."""
        found: np.ndarray = np.concatenate([np.empty(0, dtype), *parts])
        return found if self._numbers_n is None else found[self._numbers_n]


def cached_tokens(
    texts: Sequence[str],
    *,
    content: str,
    tokenizer: PreTrainedTokenizerBase | Tokenizer,
    max_length: int,
    cache: Path,
    identity: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Tokens:
    """Return the token lists of texts, making and keeping those that are not in the cache.

    They are exactly those of `tdro.data.collate.tokenize`. Texts are read once, 1024 at a time, in a thread that is one
    step ahead; the tokenizer itself uses all cores unless TOKENIZERS_PARALLELISM is "false". No text is read where
    nothing is missing. An error of the texts or the tokenizer ends the call; finished shards stay.

    Args:
        texts: n texts; read by slices only, so they need not be in memory.
        content: Fingerprint of the texts: other texts need another one.
        tokenizer: `model.tokenizer` of a sentence-transformers model.
        max_length: Most tokens of one text, special tokens included; longer texts are cut.
        cache: The cache folder; tokens are kept in `cache/tokens/KEY`, which may be deleted between runs.
        identity: What `identify` says of the tokenizer, for callers that know it; it takes 0.1 s for a large one.
        progress: Called with (texts done, n) after every shard that was missing.

    Returns:
        The tokens, memory-mapped.

    Raises:
        EnvironmentProblem: The cache cannot be written.
        ConfigError: `max_length` leaves no room for a text, or the tokenizer cannot be identified.
        DataError: A token list lost the end-of-text token that the tokenizer appends.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from tokenizers import models, pre_tokenizers
        >>> words = Tokenizer(models.WordLevel({"bees": 0, "dance": 1, "?": 2}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> texts = ["bees dance well", "bees"]
        >>> with TemporaryDirectory() as cache:
        ...     tokens = cached_tokens(texts, content="bees", tokenizer=words, max_length=2, cache=Path(cache))
        ...     tokens[0], tokens.take([1, 0]), tokens.truncated
        ([0, 1], [[0], [0, 1]], 1)
    """
    key = fingerprint(_FORM, _SHARD, content, identity or identify(tokenizer, max_length))
    folder = _Folder(cache / "tokens" / key, len(texts))
    found = dict(enumerate(folder.read()))
    missing = [number for number, shard in found.items() if shard is None]
    done = len(texts) - sum(len(folder.span(number)) for number in missing)
    turn = int(os.getpid() * 0.618033988749895 % 1 * len(missing))  # processes begin far from each other
    for number in missing[turn:] + missing[:turn]:
        found[number] = folder.open(number)  # another process may have made it meanwhile
        if found[number] is None:
            blocks = _read_ahead(texts, folder.span(number))
            found[number] = folder.write(number, (_pack(tokenizer, block, max_length) for block in blocks))
        done += len(folder.span(number))
        if progress is not None:
            progress(done, len(texts))
    shards = [shard for shard in found.values() if shard is not None]
    folder.finish(shards, {"content": content, "tokenizer": type(tokenizer).__name__, "max_length": max_length})
    return Tokens(shards)


def _read_ahead(texts: Sequence[str], span: range) -> Iterator[Sequence[str]]:
    """Yield texts block by block; the next block is read while the caller works on one."""
    with ThreadPoolExecutor(1) as thread:
        pending: list[Future[Sequence[str]]] = []
        for start in range(span.start, span.stop, _BLOCK):
            pending.append(thread.submit(texts.__getitem__, slice(start, min(start + _BLOCK, span.stop))))
            if len(pending) == 2:
                yield pending.pop(0).result()
        yield from (last.result() for last in pending)


def _pack(tokenizer: PreTrainedTokenizerBase | Tokenizer, texts: Sequence[str], max_length: int) -> _Block:
    """Tokenise texts into three arrays: tokens of each text, all tokens, whether each text was cut."""
    token_lists, was_cut = tokenize_and_mark(tokenizer, texts, max_length)
    lengths = np.fromiter(map(len, token_lists), np.int64, len(token_lists))
    ids = np.fromiter(chain.from_iterable(token_lists), np.uint32, int(lengths.sum()))
    return lengths, ids, np.array(was_cut, bool)


class _Folder:
    """The shards of a key on disk; those of `total` texts."""

    def __init__(self, path: Path, total: int) -> None:
        self._path, self._total = path, total

    def span(self, number: int) -> range:
        """Return which texts a shard holds."""
        return range(number * _SHARD, min((number + 1) * _SHARD, self._total))

    def read(self) -> list[_Shard | None]:
        """Open every shard; None stands for what is missing or damaged."""
        stamps = dict(enumerate(self._stamps()))
        return [self.open(number, stamps.get(number)) for number in range(-(-self._total // _SHARD))]

    def open(self, number: int, trusted: object = None) -> _Shard | None:
        """Map a shard; its content is compared with its hash unless the file still has the trusted stamp."""
        file = self._file(number)
        try:
            found = stamp(file)
            with pa.memory_map(str(file)) as mapped:
                buffer = mapped.read_buffer()  # stays mapped without an open file: there may be thousands of shards
        except (OSError, pa.ArrowException):
            return None
        return _parse(buffer, number, len(self.span(number)), found, checked=found == trusted)

    def write(self, number: int, blocks: Iterable[_Block]) -> _Shard:
        """Write a shard so that it appears complete or not at all, and open it."""
        file = self._file(number)
        with _disk(file):
            temporary = temporary_name(file.with_name(f"{file.name}.{uuid4().hex}"))
        try:
            with _disk(file):
                temporary.touch()  # refuse before the work, not after it
            lengths, ids, was_cut = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
            with _disk(file), temporary.open("wb") as stream:
                stream.write(_form(number, lengths, ids, was_cut))
                stream.flush()
                os.fsync(stream.fileno())
            with _disk(file), suppress(FileNotFoundError):  # another process finished the folder and cleared it up
                os.replace(temporary, file)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if (shard := self.open(number)) is None:
            raise EnvironmentProblem("stored tokens cannot be read back", where=file, do="check the disk")
        return shard

    def finish(self, shards: list[_Shard], about: dict[str, object]) -> None:
        """Note that all shards are good, which spares the next call to read them, and clear up."""
        stamps = [shard.stamp for shard in shards]
        if stamps == self._stamps():
            return
        with suppress(OSError):  # a folder that cannot be written is as good, only slower to open
            for left in self._path.glob(".shard-*.tmp"):
                left.unlink(missing_ok=True)
            write_json(self._path / "tokens.json", about | {"texts": self._total, "stamps": stamps})

    def _stamps(self) -> list[object]:
        """Read the stamps of the shards that were found good."""
        try:
            return list(read_json(self._path / "tokens.json")["stamps"])
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _file(self, number: int) -> Path:
        """Name the file of a shard."""
        return self._path / f"shard-{number:06d}.bin"


@contextmanager
def _disk(file: Path) -> Iterator[None]:
    """Say what to do where the disk refuses."""
    try:
        yield
    except OSError as problem:
        do = "free some space, check the rights, use another cache folder, or set data.tokens to fresh"
        raise EnvironmentProblem("tokens cannot be kept", where=file, saw=str(problem), do=do) from problem


def _form(number: int, lengths: np.ndarray, ids: np.ndarray, was_cut: np.ndarray) -> bytes:
    """Lay a shard out: header, where each text starts, ids as small as they fit, whether each text was cut."""
    starts_n = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")
    small = ids.astype("<u2" if ids.max(initial=0) < 1 << 16 else "<u4")
    counts = _COUNTS.pack(_MARK, number, len(lengths), len(ids), int(was_cut.sum()), small.itemsize)
    body = b"".join([counts, starts_n.tobytes(), small.tobytes(), was_cut.tobytes()])
    return _hash(body) + body


def _parse(buffer: pa.Buffer, number: int, texts: int, found: list[int], *, checked: bool) -> _Shard | None:
    """Take a mapped shard apart; None where it is not what it should be."""
    if buffer.size < _BODY:
        return None
    mark, of, count, tokens, cut, width = _COUNTS.unpack_from(buffer, _HASH)
    ids_at = _BODY + 8 * (count + 1)
    cut_at = ids_at + width * tokens
    if (mark, of, count, cut_at + count) != (_MARK, number, texts, buffer.size) or width not in (2, 4):
        return None
    if not checked and _hash(memoryview(buffer)[_HASH:]) != buffer[:_HASH].to_pybytes():
        return None
    starts_n = np.frombuffer(buffer, "<i8", count + 1, _BODY)
    ids = np.frombuffer(buffer, f"<u{width}", tokens, ids_at)
    return _Shard(starts_n, ids, np.frombuffer(buffer, bool, count, cut_at), cut, found)


def _hash(body: bytes | memoryview) -> bytes:
    """Hash the bytes of a shard."""
    return hashlib.blake2b(body, digest_size=_HASH).digest()
