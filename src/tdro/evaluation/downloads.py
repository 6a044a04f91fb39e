"""Fetching BEIR, MIRACL and MKQA from where they are published, in the layouts that evaluation reads.

A file is written under a temporary name, goes on where an earlier call has stopped, and is compared with its published
checksum before anything is unpacked or moved to its place. A set is there with all its files or not at all.

    TO/scifact/{corpus.jsonl,queries.jsonl,qrels/test.tsv}        beir/scifact; cqadupstack has a folder for each forum
    TO/miracl/miracl-v1.0-sw/{topics,qrels}/*.tsv                 miracl/sw
    TO/miracl/miracl-corpus-v1.0-sw/docs-N.jsonl.gz
    TO/mkqa/mkqa.jsonl.gz                                         mkqa; its documents are those of beir/nq
"""

import gzip
import hashlib
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tdro.errors import ConfigError, DataError, EnvironmentProblem
from tdro.evaluation.transfer import download, require_space
from tdro.files import atomic_folder
from tdro.locks import lock_for, one_at_a_time

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

BEIR_URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{name}.zip"
BEIR = {
    "arguana": ("8ad3e3c2a5867cdced806d6503f29b99", "8.67K"),
    "climate-fever": ("8b66f0a9126c521bae2bde127b4dc99d", "5.42M"),
    "cqadupstack": ("4e41456d7df8ee7760a7f866133bda78", "457K"),
    "dbpedia-entity": ("c2a39eb420a3164af735795df012ac2c", "4.63M"),
    "fever": ("5a818580227bfb4b35bb6fa46d9b6c03", "5.42M"),
    "fiqa": ("17918ed23cd04fb15047f73e6c3bd9d9", "57K"),
    "hotpotqa": ("f412724f78b0d91183a0e86805e16114", "5.23M"),
    "msmarco": ("444067daf65d982533ea17ebd59501e4", "8.84M"),
    "nfcorpus": ("a89dba18a62ef92f7d323ec890a0d38d", "3.6K"),
    "nq": ("d4d3d2e48787a744b6f6e691ff534307", "2.68M"),
    "quora": ("18fb154900ba42a600f84b839c173167", "523K"),
    "scidocs": ("38121350fc3a4d2f48850f6aff52e4a9", "25K"),
    "scifact": ("5f7d1de60b170fc8027bb7898e2efca1", "5K"),
    "trec-covid": ("ce62140cb23feb9becf6270d0d1fe6d1", "171K"),
    "webis-touche2020": ("46f650ba5a527fc69e0a6521c5a23563", "382K"),
}
"""The 15 public sets: name -> md5 of the zip file and number of documents, as the table in BEIR's README has them."""
NOT_PUBLIC = ("bioasq", "robust04", "signal1m", "trec-news")
"""BEIR's other sets; their owners give them out."""

MIRACL = {
    "ar": "2.06M", "bn": "297K", "de": "15.9M", "en": "32.9M", "es": "10.4M", "fa": "2.21M", "fi": "1.88M",
    "fr": "14.6M", "hi": "506K", "id": "1.45M", "ja": "6.95M", "ko": "1.49M", "ru": "9.54M", "sw": "132K",
    "te": "518K", "th": "542K", "yo": "49K", "zh": "4.93M",
}  # fmt: skip
"""Language -> number of passages."""
MIRACL_PARTS = (
    ("miracl/miracl", "5be20db9509754dadad47689368639fcec739c00", "miracl-v1.0-{language}"),
    ("miracl/miracl-corpus", "d921ec7e349ce0d28daf30b2da9da5ee698bef0d", "miracl-corpus-v1.0-{language}"),
)
"""Dataset of the hub, its commit, and the folder of a language in it: topics with judgements, and documents."""

MKQA_URL = "https://github.com/apple/ml-mkqa/raw/651b8cc85c407270b024157aff06ee6ab8c4fc6d/dataset/mkqa.jsonl.gz"
MKQA_BYTES = 11_903_948
"""No checksum is published; the commit, the size and the checksum inside the gzip file hold it."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes; 0 bytes where nobody knows."""

_CHUNK = 1 << 20
_LARGEST_RATIO = 100  # text shrinks to a fifth or so; a zip file that promises far more is no corpus


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Write out groups: `beir` is its 15 public sets, `miracl` its 18 languages, and `mkqa` needs the documents of NQ.

    Raises:
        ConfigError: A name is unknown, or its set is not public.

    Example:
        >>> expand(["mkqa", "miracl/sw", "beir/nq"])
        ('mkqa', 'beir/nq', 'miracl/sw')
    """
    found: dict[str, None] = {}
    for name in names:
        group, _, member = name.partition("/")
        members = {"beir": tuple(BEIR), "miracl": tuple(MIRACL), "mkqa": ()}.get(group)
        if group == "beir" and member in NOT_PUBLIC:
            do = "ask its owners: https://github.com/beir-cellar/beir/tree/main/examples/dataset says how"
            raise ConfigError("this set is not public", where=name, do=do)
        if members is None or (member and member not in members):
            known = ", ".join(members) if members else "beir, beir/NAME, miracl, miracl/LANGUAGE, mkqa, mteb/NAME"
            raise ConfigError("no such benchmark", saw=name, do=f"known: {known}")
        wanted = [name, "beir/nq"] if group == "mkqa" else [name] if member else [f"{group}/{m}" for m in members]
        found |= dict.fromkeys(wanted)
    return tuple(found)


def fetched(name: str, folder: Path) -> bool:
    """Whether a set is in a folder already."""
    return all(path.exists() for path in _places(name, folder))


def fetch(name: str, folder: Path, progress: Progress = lambda what, done, of: None) -> None:
    """Fetch one set into a folder; what is there already is left alone, and what was stopped goes on.

    Args:
        name: One of those that `expand` returns.
        folder: Where the folder of the set goes.
        progress: Called while bytes come in.

    Raises:
        DataError: A file does not have its published checksum or size, or an archive is not what it should be.
        EnvironmentProblem: The server cannot be reached or refuses, the hub wants a token, or the disk is full.
    """
    group, _, member = name.partition("/")
    for place in _places(name, folder):
        with one_at_a_time(lock_for(place)):
            if place.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if group == "beir":
                _fetch_beir(member, place, progress)
            elif group == "mkqa":
                _fetch_mkqa(place, progress)
            else:
                _fetch_from_hub(place, progress)


def _places(name: str, folder: Path) -> list[Path]:
    """What is there once a set is complete; each appears at once."""
    group, _, member = name.partition("/")
    if group == "beir":
        return [folder / member]
    if group == "mkqa":
        return [folder / "mkqa" / "mkqa.jsonl.gz"]
    return [folder / "miracl" / part.format(language=member) for _, _, part in MIRACL_PARTS]


def _fetch_beir(name: str, target: Path, progress: Progress) -> None:
    """Fetch the zip file of a BEIR set, or take one that the user has put beside the target, and unpack it."""
    url, md5 = BEIR_URL.format(name=name), BEIR[name][0]
    given, part = target.with_name(f"{name}.zip"), target.with_name(f".{name}.zip.part")

    def fault(file: Path) -> str | None:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        return None if found == md5 else f"md5 {found}, published is {md5}"

    if given.exists():
        if saw := fault(given):
            raise DataError("this is not the published file", where=given, saw=saw, do="remove it, or fetch it again")
    else:
        _download(url, part, given, fault, lambda done, of: progress(f"beir/{name}", done, of))
    unpack(given if given.exists() else part, name, target, lambda done, of: progress(f"unpack {name}", done, of))
    part.unlink(missing_ok=True)


def _fetch_mkqa(target: Path, progress: Progress) -> None:
    """Fetch the one file of MKQA."""

    def fault(file: Path) -> str | None:
        if file.stat().st_size != MKQA_BYTES:
            return f"{file.stat().st_size} bytes, published are {MKQA_BYTES}"
        try:
            with gzip.open(file) as stream:
                while stream.read(_CHUNK):
                    pass
        except (OSError, EOFError, zlib.error) as problem:
            return f"a damaged gzip file: {problem}"
        return None

    part = target.with_name(f".{target.name}.part")
    _download(MKQA_URL, part, target, fault, lambda done, of: progress("mkqa", done, of))
    _settle(part, target)


def _settle(source: Path, target: Path) -> None:
    """Give a file or folder its name once the disk has all of it."""
    for file in source.rglob("*") if source.is_dir() else [source]:
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    os.replace(source, target)


def _download(
    url: str, part: Path, target: Path, fault: Callable[[Path], str | None], progress: Callable[[int, int], None]
) -> None:
    """Download a file and make sure that it is the right one; a part that was left over is not trusted twice."""
    for resumed in (part.exists(), False):
        download(url, part, target, progress)
        saw = fault(part)
        if saw is None:
            return
        part.unlink()
        if not resumed:
            do = "try again later; a proxy or a changed file is the usual cause"
            raise DataError("what was downloaded is not the published file", where=url, saw=saw, do=do)


def unpack(archive: Path, name: str, target: Path, progress: Callable[[int, int], None]) -> None:
    """Unpack the folder `name` of a zip file as the folder `target`, whole or not at all.

    Raises:
        DataError: It is no zip file, holds names that lead elsewhere, links, encrypted or damaged files, would grow
            beyond measure, or has no corpus.
        EnvironmentProblem: The disk has too little space.
    """
    with _zip_faults(archive), zipfile.ZipFile(archive) as opened:
        members = list(_members(opened, name))
        total = sum(info.file_size for info, _ in members)
        if total > max(_CHUNK, _LARGEST_RATIO * archive.stat().st_size):
            raise DataError("archive would grow beyond measure", where=archive, saw=f"{total} bytes")
        if not any(path.name == "corpus.jsonl" for _, path in members):
            raise DataError("archive holds no BEIR set", where=archive, saw=opened.namelist()[:5])
        require_space(target.parent, total)
        done = 0
        with atomic_folder(target) as folder:
            for info, path in members:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, (folder / path).open("xb") as file:
                    while chunk := source.read(_CHUNK):
                        file.write(chunk)
                        done += len(chunk)
                        progress(done, total)


def _members(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Yield the files below a folder of an archive with their paths in it; refuse an archive that is out for harm."""
    for info in archive.infolist():
        path, kind = PurePosixPath(info.filename), stat.S_IFMT(info.external_attr >> 16)
        leads_out = path.is_absolute() or ".." in path.parts or re.search(r"[\\:\0]", info.filename)
        if leads_out or kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
            what = "archive holds a name that leads elsewhere, a link, or an encrypted file"
            raise DataError(what, where=archive.filename, saw=info.filename, do="do not use this file")
        if not info.is_dir() and path.parts[0] == name and len(path.parts) > 1:
            yield info, path.relative_to(name)


@contextmanager
def _zip_faults(archive: Path) -> Iterator[None]:
    """Say which archive is damaged."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, FileExistsError) as problem:
        raise DataError("archive is damaged", where=archive, saw=str(problem), do="remove it") from problem


def _fetch_from_hub(target: Path, progress: Progress) -> None:
    """Fetch one folder of a dataset of the hub; its files are compared with the hashes that the hub lists."""
    repository, commit, _ = next(
        part for part in MIRACL_PARTS if re.fullmatch(part[2].format(language=r"\w\w"), target.name)
    )
    staging, hub = target.with_name(f".{target.name}.part"), _hub()
    with _hub_faults(repository):
        files = list(_hub_files(hub, repository, commit, target.name))
        total, done = sum(file.size for file in files), 0
        staging.mkdir(exist_ok=True)
        require_space(staging, total - sum(p.stat().st_size for p in staging.rglob("*") if p.is_file()))
        for file in files:
            bar = _bar(partial(_add, progress, target.name, done, total))
            _fetch_file(hub, repository, commit, file, staging, bar)
            done += file.size
    _settle(staging / target.name, target)
    shutil.rmtree(staging)


def _hub() -> "HfApi":
    """The hub, as its own settings name it (HF_ENDPOINT, HF_TOKEN)."""
    from huggingface_hub import HfApi

    return HfApi()


def _hub_files(hub: "HfApi", repository: str, commit: str, folder: str) -> Iterator["RepoFile"]:
    """List the files below a folder of a dataset."""
    from huggingface_hub.hf_api import RepoFile

    for entry in hub.list_repo_tree(repository, folder, recursive=True, revision=commit, repo_type="dataset"):
        if isinstance(entry, RepoFile):
            yield entry


def _fetch_file(hub: "HfApi", repository: str, commit: str, file: "RepoFile", staging: Path, bar: type) -> None:
    """Fetch one file; a wrong one is fetched a second time, because a part of it may have been left over."""
    for again in (False, True):
        path = hub.hf_hub_download(
            repository, file.path, repo_type="dataset", revision=commit, local_dir=staging, tqdm_class=bar,
            force_download=again,
        )  # fmt: skip
        with Path(path).open("rb") as stream:
            saw = _hub_hash(stream, file)
        if saw == (file.lfs.sha256 if file.lfs else file.blob_id):
            return
        Path(path).unlink()
    raise DataError("what was downloaded is not the published file", where=f"{repository}/{file.path}", saw=saw)


def _hub_hash(stream: BufferedReader, file: "RepoFile") -> str:
    """Hash a file as the hub does: sha256 for large files, git's own hash for small ones."""
    if file.lfs:
        return hashlib.file_digest(stream, "sha256").hexdigest()
    content = stream.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _add(progress: Progress, what: str, done: int, total: int, more: int) -> None:
    """Report the bytes of one file on top of those of the files before it."""
    progress(what, done + more, total)


def _bar(tell: Callable[[int], None]) -> type:
    """Make what the hub's library takes for a progress bar; it draws nothing and passes on the bytes of a file."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *, initial: int = 0, **_: object) -> None:
            super().__init__(disable=True)
            self.bytes = initial

        def update(self, n: float | None = 1) -> None:
            self.bytes += int(n or 0)
            tell(self.bytes)

    return Bar


@contextmanager
def _hub_faults(repository: str) -> Iterator[None]:
    """Turn what the hub's library raises into what the user can do."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        yield
    except (DataError, EnvironmentProblem):
        raise
    except RepositoryNotFoundError as problem:  # also those that are hidden, or open only to those who ask
        do = f"accept the terms at https://huggingface.co/datasets/{repository}, and set HF_TOKEN or `hf auth login`"
        raise EnvironmentProblem("the hub does not let you in", where=repository, saw=str(problem), do=do) from problem
    except Exception as problem:  # the library lets through what its own libraries raise without a network
        saw = f"{type(problem).__name__}: {problem}"
        do = "check the network and HF_ENDPOINT; the same command goes on where this one stopped"
        raise EnvironmentProblem("the hub cannot be reached", where=repository, saw=saw, do=do) from problem
