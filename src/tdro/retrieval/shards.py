"""Embeddings on disk: made shard by shard, memory-mapped, and never made twice.

A folder holds the embeddings of one sequence of texts. `manifest.json` says of which texts, made by which model with
which settings. A shard is a file `shard-000000.npy` with the embeddings of 8192 texts in a row; `numpy.load` reads it.
It appears under its name complete or not at all, and ends with 16 bytes that hash its content together with the
manifest. So a killed run goes on with the shards that are missing, and a damaged or foreign shard is made again. When
all are there the manifest also remembers their sizes and times; as long as these are the same, no shard is read to
open the folder. Which texts share a forward pass depends on the shards alone: after a kill the bytes are the same.
Processes that a launcher has started share the shards: rank r of R makes those whose number leaves r when divided by R.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from tdro.config import fingerprint
from tdro.data.store import stamp
from tdro.devices import ALONE, Ranks
from tdro.errors import CheckpointError, DataError, EnvironmentProblem
from tdro.files import atomic_path, read_json, write_json
from tdro.retrieval.arrays import map_array
from tdro.retrieval.search import Encode

SHARD = 8192
"""Texts in a shard."""

_FORM = 1  # part of every manifest: raise it when the bytes of a shard would differ
_HASH = 16  # bytes at the end of a shard

Precision = Literal["float32", "float16"]
Progress: TypeAlias = Callable[[int, int], None]


class Texts(Protocol):
    """Texts that can be counted and read slice by slice: a list, or something that reads them from a file."""

    def __len__(self) -> int:
        """Count the texts."""
        ...

    def __getitem__(self, part: slice, /) -> Sequence[str]:
        """Read texts that follow each other."""
        ...


class Embeddings:
    """The embeddings of n texts, [n, D], memory-mapped and read-only; made by `encode_shards`.

    A slice, or an array of numbers, gives a numpy array.

    Attributes:
        shape: (n, D).
    """

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self._shards = shards
        self.shape = (sum(map(len, shards)), shards[0].shape[1] if shards else 0)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice | np.ndarray) -> np.ndarray:
        if not isinstance(part, slice):
            return self._take(np.asarray(part, dtype=np.int64))
        start, stop, step = part.indices(len(self))
        if step != 1:
            return self._take(np.arange(start, stop, step))
        if stop <= start:
            return np.empty((0, self.shape[1]), np.float32)
        touched = range(start // SHARD, (stop - 1) // SHARD + 1)
        pieces = [self._shards[i][max(start - i * SHARD, 0) : stop - i * SHARD] for i in touched]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _take(self, number_B: np.ndarray) -> np.ndarray:
        """Copy some rows, in the order given."""
        if len(number_B) and not 0 <= number_B.min() <= number_B.max() < len(self):
            raise IndexError(f"embeddings {number_B.min()} to {number_B.max()} of {len(self)}")
        taken_BD = np.empty((len(number_B), self.shape[1]), self._shards[0].dtype if self._shards else np.float32)
        order_B = np.argsort(number_B, kind="stable")
        shards, starts = np.unique(number_B[order_B] // SHARD, return_index=True)
        for shard, here_B in zip(shards.tolist(), np.split(order_B, starts[1:]), strict=False):
            taken_BD[here_B] = self._shards[shard][number_B[here_B] - shard * SHARD]
        return taken_BD


@dataclass(frozen=True, slots=True)
class Embedder:
    """How texts become embeddings, what identifies them, and where they are kept.

    Args:
        encode: Texts -> float32 array [n, D].
        about: Everything besides the texts that decides the embeddings: model, tokenizer, instruction, lengths,
            pooling. Plain values, as JSON has them.
        folder: Folder of kept embeddings, one folder in it for each combination of texts and `about`; None where
            `about` does not identify the encoder, so that nothing can be kept beyond a call.
        precision: How embeddings are stored; float16 halves the disk and costs up to 0.05 % of a component.
        progress: Called with (texts done, texts) before the first shard that is missing and after each; under several
            ranks, with the texts of this one.
        ranks: Processes that make the shards together; each calls `embed` with the same texts.
    """

    encode: Encode
    about: Mapping[str, object] = field(default_factory=dict)
    folder: Path | None = None
    precision: Precision = "float32"
    progress: Progress | None = None
    ranks: Ranks = ALONE

    def embed(self, texts: Texts, content: str, scratch: Path) -> Embeddings:
        """Encode texts, or map what an earlier call has encoded.

        Args:
            texts: The texts.
            content: Fingerprint of the texts.
            scratch: Folder that is used where `folder` is None.
        """
        about = {**self.about, "content": content}
        folder = (self.folder or scratch) / fingerprint(about, self.precision)
        return encode_shards(
            texts, self.encode, folder, about, precision=self.precision, progress=self.progress, ranks=self.ranks
        )


def encode_shards(
    texts: Texts,
    encode: Encode,
    folder: Path,
    about: Mapping[str, object],
    *,
    precision: Precision = "float32",
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Embeddings:
    """Encode texts into a folder of shards, making only what is missing.

    Memory does not grow with the texts: one shard is read, encoded and written at a time. An error or a kill leaves
    the finished shards.

    Args:
        texts: n texts.
        encode: Texts -> float32 array [n, D]; called with the texts of one shard, so that it can sort them by length.
        folder: Where the shards go.
        about: What decides the embeddings, texts included; written to the manifest.
        precision: How they are stored.
        progress: Called with (texts done, n) before the first shard that is missing and after each; under several
            ranks n are the texts of this one's shards.
        ranks: Processes that make the shards together, in a folder that all of them see.

    Returns:
        The embeddings, memory-mapped, on every rank.

    Raises:
        CheckpointError: The folder holds embeddings of something else.
        DataError: An embedding is not finite, or there is not one per text.
        EnvironmentProblem: The folder cannot be written, another rank has stopped, or its shards are not to be seen.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> lengths = lambda texts: np.array([[len(text)] for text in texts], dtype=np.float32)
        >>> with TemporaryDirectory() as folder:
        ...     found = encode_shards(["bees", "dance"], lengths, Path(folder), {"model": "lengths"})
        ...     found.shape, found[np.array([1, 0])].tolist()
        ((2, 1), [[5.0], [4.0]])
    """
    place = ShardFolder(folder, about, len(texts), precision)
    place.claim(write=ranks.number == 0)
    ranks.barrier()
    own = range(ranks.number, place.count, ranks.count)
    missing = [number for number in own if place.open(number) is None]
    of = sum(map(place.texts_in, own))
    done = of - sum(map(place.texts_in, missing))
    for number in missing:
        if progress is not None and number == missing[0]:
            progress(done, of)
        place.make(number, texts, encode)
        done += place.texts_in(number)
        if progress is not None:
            progress(done, of)
    ranks.barrier()
    if ranks.number == 0:
        place.finish()
    ranks.barrier()
    return place.open_all()


class Gauge:
    """Joins the progress of shards with that of the forward passes within one, so that a bar moves all the time.

    Args:
        tell: Called with (texts done, texts).

    Example:
        >>> gauge = Gauge(lambda done, of: print(done, of))
        >>> gauge.shards(8192, 9000)
        8192 9000
        >>> gauge.passes(100, 808)
        8292 9000
    """

    def __init__(self, tell: Progress) -> None:
        self._tell, self._done, self._of = tell, 0, 0

    def shards(self, done: int, of: int) -> None:
        """Take the progress of `encode_shards`."""
        self._done, self._of = done, of
        self._tell(done, of)

    def passes(self, done: int, of: int) -> None:
        """Take the progress of `tdro.retrieval.encode.encode` within a shard."""
        self._tell(self._done + done, max(self._of, self._done + of))


class ShardFolder:
    """The shards of one sequence of texts on disk, made one by one, in any order and by any number of processes.

    Args:
        path: The folder.
        about: What decides the embeddings.
        texts: How many texts there are.
        precision: How embeddings are stored.

    Attributes:
        count: How many shards there are to be.
    """

    def __init__(self, path: Path, about: Mapping[str, object], texts: int, precision: Precision) -> None:
        form = {"form": _FORM, "texts": texts, "shard": SHARD, "precision": precision}
        self._about: dict[str, Any] = json.loads(json.dumps({**form, **about}))
        self._path, self._manifest, self._precision = path, path / "manifest.json", precision
        self._stamps: dict[int, object] = {}
        self._finished = False
        self.count = -(-texts // SHARD)

    def claim(self, *, write: bool) -> None:
        """Make sure that the folder belongs to the manifest, and write it where it is absent."""
        kept = self._read()
        fields = (kept.keys() | self._about.keys()) - {"stamps"} if kept else set()
        if differing := sorted(name for name in fields if kept.get(name) != self._about.get(name)):
            saw = {name: kept.get(name) for name in differing}
            do = "choose another folder, or delete this one"
            raise CheckpointError("the folder holds embeddings of something else", where=self._path, saw=saw, do=do)
        if not kept and write:
            with _disk(self._manifest):
                write_json(self._manifest, self._about)
        self._stamps = dict(enumerate(kept.get("stamps", ())))

    def texts_in(self, number: int) -> int:
        """Count the texts of a shard."""
        return min(SHARD, self._about["texts"] - number * SHARD)

    def open(self, number: int) -> np.ndarray | None:
        """Map a shard; None where it is to be made. It is read only if the manifest does not remember its stamp."""
        file = self._file(number)
        try:
            if stamp(file) != self._stamps.get(number):
                content = file.read_bytes()
                if self._hash(number, memoryview(content)[:-_HASH]) != content[-_HASH:]:
                    return None
            shard = map_array(file)
        except (OSError, ValueError, pa.ArrowException):
            return None
        return shard if shard.ndim == 2 and len(shard) == self.texts_in(number) else None

    def make(self, number: int, texts: Texts, encode: Encode) -> None:
        """Encode the texts of a shard and write it so that it appears complete or not at all."""
        part = texts[number * SHARD : (number + 1) * SHARD]
        form = io.BytesIO()
        np.lib.format.write_array(form, _checked(encode(part), part, self._precision), version=(1, 0))
        file = self._file(number)
        with _disk(file), atomic_path(file) as path:
            path.write_bytes(form.getvalue() + self._hash(number, form.getbuffer()))
        self._stamps.pop(number, None)
        if self.open(number) is None:
            raise EnvironmentProblem("stored embeddings cannot be read back", where=file, do="check the disk")

    def finish(self) -> None:
        """Note that all shards are good, which spares the next call to read them; a disk may refuse that."""
        try:
            stamps = [stamp(self._file(number)) for number in range(self.count)]
        except FileNotFoundError as problem:
            raise self._unseen(problem.filename) from problem
        self._stamps, self._finished = dict(enumerate(stamps)), True
        if self._read().get("stamps") != stamps:
            with suppress(OSError):
                write_json(self._manifest, self._about | {"stamps": stamps})

    def open_all(self) -> Embeddings:
        """Map every shard, once all have been made."""
        if not self._finished:  # another process did
            self._stamps = dict(enumerate(self._read().get("stamps", ())))
        shards = []
        for number in range(self.count):
            if (shard := self.open(number)) is None:
                raise self._unseen(self._file(number))
            shards.append(shard)
        return Embeddings(shards)

    def _unseen(self, file: object) -> EnvironmentProblem:
        """Say that a shard which was made is not here."""
        do = "put the folder where every rank sees it, and let nothing else write to it"
        return EnvironmentProblem("a shard that has been made is missing or damaged", where=file, do=do)

    def _read(self) -> dict[str, Any]:
        """Read the manifest; empty where it is absent or damaged."""
        try:
            kept = read_json(self._manifest)
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) and isinstance(kept.get("stamps", []), list) else {}

    def _hash(self, number: int, content: memoryview) -> bytes:
        """Hash a shard so that it is good in its own place only."""
        key = f"{fingerprint(self._about)} {number}".encode()
        return hashlib.blake2b(content, digest_size=_HASH, key=key).digest()

    def _file(self, number: int) -> Path:
        """Name the file of a shard."""
        return self._path / f"shard-{number:06d}.npy"


def _checked(vectors_nD: np.ndarray, texts: Sequence[str], precision: Precision) -> np.ndarray:
    """Bring embeddings into the form in which they are stored; refuse those that are none."""
    if vectors_nD.ndim != 2 or len(vectors_nD) != len(texts):
        raise DataError("an encoder gives one embedding per text", saw=f"{vectors_nD.shape} for {len(texts)} texts")
    with np.errstate(over="ignore"):
        stored_nD = np.ascontiguousarray(vectors_nD, dtype=precision)
    broken = np.flatnonzero(~np.isfinite(stored_nD).all(axis=1))
    if len(broken):
        what = f"{len(broken)} of {len(texts)} embeddings are not finite numbers in {precision}"
        raise DataError(what, saw=texts[int(broken[0])], do="use a model whose training did not diverge, or float32")
    return stored_nD


@contextmanager
def _disk(file: Path) -> Iterator[None]:
    """Say what to do where the disk refuses."""
    try:
        yield
    except OSError as problem:
        do = "free some space, check the rights, or use another cache folder (TDRO_CACHE)"
        raise EnvironmentProblem("embeddings cannot be kept", where=file, saw=str(problem), do=do) from problem
