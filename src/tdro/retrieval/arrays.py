"""Arrays on disk, and the fingerprint of a sequence of texts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa


def content_of(texts: Sequence[str]) -> str:
    """Hash a sequence of texts into 32 hexadecimal digits, for `Embedder.embed`.

    Example:
        >>> content_of(["a", "b"]) == content_of(["a", "b"]) != content_of(["ab"])
        True
    """
    digest = hashlib.blake2b(digest_size=16)
    add_content(digest, texts)
    return digest.hexdigest()


def add_content(digest: "hashlib.blake2b", texts: Sequence[str]) -> None:
    """Add texts to the hash of a sequence, so that neither order nor borders are lost."""
    for text in texts:
        plain = text.encode("utf-8", "surrogatepass")
        digest.update(len(plain).to_bytes(8, "little"))
        digest.update(plain)


def map_array(file: Path) -> np.ndarray:
    """Map an .npy file without keeping it open: there may be thousands of them.

    Raises:
        OSError, ValueError: It is not there, or no such file.
    """
    with file.open("rb") as stream:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        offset = stream.tell()
    with pa.memory_map(str(file)) as mapped:
        flat = np.frombuffer(mapped.read_buffer(), dtype, int(np.prod(shape)), offset)
    return flat.reshape(shape)


def save_array(file: Path, array: np.ndarray) -> None:
    """Write an .npy file that `map_array` reads."""
    with file.open("wb") as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0))
