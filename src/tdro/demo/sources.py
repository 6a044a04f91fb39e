"""Find the documentation that lies on this machine: installed packages, the standard library, its reference topics."""

import ast
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePath

MAX_BYTES = 300_000
MIN_BYTES = 300
HELD_OUT_SHARE = 4
HELD_OUT_FACTOR = 5
STANDARD_LIBRARY = "stdlib"
LEFT_OUT_PACKAGES = frozenset({"tdro"})
LEFT_OUT_MODULES = frozenset({"encodings", "idlelib", "lib2to3", "pydoc_data", "test", "turtledemo"})
LEFT_OUT_FOLDERS = frozenset(
    {"_vendor", "_vendored", "vendor", "vendored", "externals", "extern", "_external", "third_party", "thirdparty"}
    | {"_click", "_distutils", "distutils", "test", "tests", "site-packages", "__pycache__"}
)


@dataclass(frozen=True)
class SourceFile:
    """One Python file and the dotted name of the module in it."""

    path: Path
    module: str


@dataclass(frozen=True)
class Package:
    """An installed distribution or one top-level module of the standard library.

    `held_out` packages serve evaluation only. `summary` and `readme` are empty for the standard library.
    """

    name: str
    version: str
    held_out: bool
    summary: str
    readme: str
    files: tuple[SourceFile, ...]


def stable_hash(text: str) -> int:
    """Hash a text to the same 64-bit integer on every machine and in every process.

    Example:
        >>> stable_hash("numpy") == stable_hash("numpy") != stable_hash("scipy")
        True
    """
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def is_held_out(package: str) -> bool:
    """Tell whether a package serves evaluation only; a fact of its name, whatever else is installed.

    A quarter of the names is held out. Leading underscores do not count: `_pydecimal` goes with `pydecimal`.
    """
    return stable_hash(f"held-out:{package.lstrip('_')}") % HELD_OUT_SHARE == 0


def find_packages(*, max_files: int, seed: int) -> list[Package]:
    """List every installed package and standard library module, by name, with a sample of their source files.

    Tests, vendored copies of other packages, tdro itself, and very small or very large files are left out.

    Args:
        max_files: Most files per package, `HELD_OUT_FACTOR` times as many where it is held out; a larger package is
            sampled by a hash of seed and module name.
        seed: Seed of that sample.
    """
    packages = [*_standard_library(), *_distributions()]
    return [_sample(package, max_files, seed) for package in sorted(packages, key=lambda package: package.name)]


def reference_topics() -> dict[str, str]:
    """Read the language reference topics behind `help("with")`; empty where Python is installed without them."""
    path = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py")
    if not path.is_file():
        return {}
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return dict(sorted(ast.literal_eval(node.value).items()))
    return {}


def _standard_library() -> Iterator[Package]:
    """Yield one package per top-level module of the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    version = ".".join(map(str, sys.version_info[:3]))
    for top in sorted(root.iterdir()):
        if top.stem in LEFT_OUT_MODULES or not top.stem.isidentifier():
            continue
        files = _tree(root, top)
        if files:
            yield Package(f"{STANDARD_LIBRARY}/{top.stem}", version, is_held_out(top.stem), "", "", files)


def _distributions() -> Iterator[Package]:
    """Yield every distribution on the path once, the first one found where there are several of a name."""
    seen = set(LEFT_OUT_PACKAGES)
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if not name or name in seen:
            continue
        seen.add(name)
        about = distribution.metadata.json
        readme, summary = str(about.get("description", "")), str(about.get("summary", ""))
        yield Package(name, distribution.version, is_held_out(name), summary, readme, _installed(distribution))


def _installed(distribution: metadata.Distribution) -> tuple[SourceFile, ...]:
    """List a distribution's source files: from its record, or from the folder of its name where there is none."""
    if distribution.files is None:
        root = Path(str(distribution.locate_file("")))
        return _tree(root, root / re.sub(r"[-.]+", "_", distribution.metadata["Name"]))
    paths = [path for path in distribution.files if path.suffix == ".py" and ".." not in path.parts]
    return tuple(SourceFile(Path(str(path.locate())), _module(path)) for path in paths if _wanted(path))


def _tree(root: Path, top: Path) -> tuple[SourceFile, ...]:
    """List the source files at or below `top`."""
    paths = [top] if top.suffix == ".py" else top.rglob("*.py") if top.is_dir() else []
    inside = ((path, path.relative_to(root)) for path in paths)
    return tuple(SourceFile(path, _module(relative)) for path, relative in inside if _wanted(relative))


def _wanted(relative: PurePath) -> bool:
    """Say whether a file is no test, no vendored copy and no script."""
    parts = relative.with_suffix("").parts
    return LEFT_OUT_FOLDERS.isdisjoint(parts) and all(part.isidentifier() for part in parts)


def _module(relative: PurePath) -> str:
    """Turn `numpy/linalg/__init__.py` into `numpy.linalg`."""
    return ".".join(part for part in relative.with_suffix("").parts if part != "__init__")


def _sample(package: Package, max_files: int, seed: int) -> Package:
    """Keep so many files of usable size, the same ones in every run."""
    most = max_files * HELD_OUT_FACTOR if package.held_out else max_files
    ranked = sorted(set(package.files), key=lambda file: (stable_hash(f"{seed}:{file.module}"), file.module))
    kept: list[SourceFile] = []
    for file in ranked:
        if len(kept) == most:
            break
        if file.path.is_file() and MIN_BYTES <= file.path.stat().st_size <= MAX_BYTES:
            kept.append(file)
    kept.sort(key=lambda file: file.module)
    return Package(package.name, package.version, package.held_out, package.summary, package.readme, tuple(kept))
