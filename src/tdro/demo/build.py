"""Build the demo: training datasets, evaluation sets and an encoder from the documentation on this machine."""

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tdro.data.reading import write_rows
from tdro.data.records import Passage, Row
from tdro.demo.pairs import EVALUATION, TRAINING, Kind, topic_pairs
from tdro.demo.selection import Candidate, SeenInTraining, choose, clean, surround
from tdro.demo.sources import Package, find_packages, reference_topics
from tdro.demo.syntax import read_module
from tdro.errors import ConfigError, EnvironmentProblem
from tdro.files import atomic_folder

QUERIES = 250
MIN_ROWS = 20
SUMMARY_FILE = "demo.json"
_ENTRIES = frozenset({"train", "eval", "encoder", SUMMARY_FILE})
_Candidates = Mapping[str, Sequence[Candidate]]


@dataclass(frozen=True)
class EvaluationSize:
    """How large an evaluation set is; every query has one relevant document."""

    queries: int
    documents: int


@dataclass(frozen=True)
class DemoSummary:
    """What the demo's folder holds.

    Attributes:
        seed: Seed it was built with.
        fingerprint: Hash of the seed, the installed packages and the code that built it.
        train: Rows of every training dataset, by name.
        evaluation: Size of every evaluation set, by name.
        held_out: Packages that serve evaluation only.
    """

    seed: int
    fingerprint: str
    train: Mapping[str, int]
    evaluation: Mapping[str, EvaluationSize]
    held_out: tuple[str, ...]


def build_demo(
    folder: Path, *, seed: int = 0, max_files: int = 60, progress: Callable[[str], None] | None = None
) -> DemoSummary:
    """Build the demo's folder from the documentation of the installed packages, or return at once if it is there.

    Nothing is downloaded and no scanned module is imported. The folder holds `train/NAME.jsonl.gz` (rows without
    negatives), `eval/NAME/` (corpus, queries, qrels), `encoder/` (a static embedding model with random weights) and
    `demo.json`. Evaluation uses whole packages that no training row comes from. The folder appears complete or not at
    all.

    Args:
        folder: Where to build. A demo in it that was built from other packages, code or options is replaced.
        seed: Seed of the choice of files and rows and of the encoder's weights.
        max_files: Most source files read of one package, five times as many where it serves evaluation;
            60 takes about half a minute.
        progress: Called with one line of text when a step begins.

    Returns:
        What the folder holds.

    Raises:
        ConfigError: `folder` holds something else, which is left alone.
        EnvironmentProblem: The installation has too little source code (no `.py` files, for instance).

    Example:
        >>> summary = build_demo(Path("demo"))  # doctest: +SKIP
        >>> summary.train["comment_code"]  # doctest: +SKIP
        3000
    """
    say = progress or (lambda line: None)
    if max_files < 1:
        raise ConfigError("no files to build the demo from", where="max_files", saw=max_files, do="use 1 or more")
    _refuse_foreign(folder)
    packages = find_packages(max_files=max_files, seed=seed)
    fingerprint = _fingerprint(packages, seed, max_files)
    if (found := _read_summary(folder)) and found.fingerprint == fingerprint:
        say(f"the demo in {folder} is up to date")
        return found
    with atomic_folder(folder) as building:
        return _build(building, packages, seed, fingerprint, say)


def _build(
    folder: Path, packages: Sequence[Package], seed: int, fingerprint: str, say: Callable[[str], None]
) -> DemoSummary:
    """Write everything into an empty folder, the summary last."""
    say(f"reading {sum(len(package.files) for package in packages):,} files of {len(packages)} packages")
    candidates = _read(packages)
    chosen = {kind.name: choose(candidates[kind.name], kind.most, seed=seed) for kind in TRAINING}
    seen = SeenInTraining()
    for text in _texts(chosen):
        seen.add(text)
    say(f"writing {len(TRAINING)} training datasets and {len(EVALUATION)} evaluation sets")
    train = {name: _write_dataset(folder / "train" / f"{name}.jsonl.gz", rows) for name, rows in chosen.items()}
    evaluation = {
        kind.name: _write_evaluation(folder / "eval" / kind.name, kind, candidates[kind.name], seen, seed)
        for kind in EVALUATION
    }
    del candidates, seen
    say("training the encoder's tokenizer")
    from tdro.demo.encoder import build_encoder  # imports torch: only when there is something to build

    build_encoder(folder / "encoder", _texts(chosen), seed=seed)
    held_out = tuple(package.name for package in packages if package.held_out and package.files)
    summary = DemoSummary(seed, fingerprint, train, evaluation, held_out)
    (folder / SUMMARY_FILE).write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    return summary


def _read(packages: Iterable[Package]) -> _Candidates:
    """Make the pairs of every kind, from the packages that serve it."""
    candidates: dict[str, list[Candidate]] = defaultdict(list)
    for package in packages:
        modules = [module for module in map(read_module, package.files) if module is not None]
        for kind in EVALUATION if package.held_out else TRAINING:
            cleaned = (clean(pair, kind) for pair in kind.make(package, modules))
            candidates[kind.name] += [Candidate(package.name, pair) for pair in cleaned if pair]
    manual = next(kind for kind in TRAINING if kind.name == "manual_section")
    for pair in topic_pairs(reference_topics()):
        if cleaned_pair := clean(pair, manual):
            candidates[manual.name].append(Candidate(f"reference/{pair.title}", cleaned_pair))
    return candidates


def _texts(chosen: _Candidates) -> Iterable[str]:
    """Yield every query and every text with its title."""
    for candidates in chosen.values():
        for candidate in candidates:
            yield candidate.pair.query
            yield f"{candidate.pair.title} {candidate.pair.text}".strip()


def _write_dataset(path: Path, chosen: Sequence[Candidate]) -> int:
    """Write one training dataset; ids tell the package a row comes from."""
    if len(chosen) < MIN_ROWS:
        raise _too_little(path.name.split(".")[0], len(chosen))
    return write_rows(
        (
            Row(f"{candidate.package}:{number}", candidate.pair.query, (_passage(candidate, number),), ())
            for number, candidate in enumerate(chosen)
        ),
        path,
    )


def _passage(candidate: Candidate, number: int) -> Passage:
    """Make the passage of a candidate."""
    return Passage(f"{candidate.package}:{number}", candidate.pair.title, candidate.pair.text)


def _write_evaluation(
    folder: Path, kind: Kind, candidates: Iterable[Candidate], seen: SeenInTraining, seed: int
) -> EvaluationSize:
    """Write one evaluation set: queries, their documents, and other documents of the same kind around them."""
    unseen = [candidate for candidate in candidates if candidate.pair.text not in seen]
    asked = choose((found for found in unseen if found.pair.query not in seen), QUERIES, seed=seed)
    if len(asked) < MIN_ROWS:
        raise _too_little(kind.name, len(asked))
    (folder / "qrels").mkdir(parents=True)
    relevant = {candidate: f"q{number}" for number, candidate in enumerate(asked)}
    judged = ["query-id\tcorpus-id\tscore\n"]
    documents = surround(asked, unseen, kind.most, seed=seed)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as corpus:
        for number, candidate in enumerate(documents):
            passage = _passage(candidate, number)
            corpus.write(_json({"_id": passage.id, "title": passage.title, "text": passage.text}))
            if candidate in relevant:
                judged.append(f"{relevant[candidate]}\t{passage.id}\t1\n")
    queries = "".join(_json({"_id": name, "text": found.pair.query}) for found, name in relevant.items())
    (folder / "queries.jsonl").write_text(queries, encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("".join(judged), encoding="utf-8")
    return EvaluationSize(len(asked), len(documents))


def _json(record: Mapping[str, str]) -> str:
    """Write one line of JSON."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def _too_little(name: str, rows: int) -> EnvironmentProblem:
    """Say that the installation cannot carry the demo."""
    return EnvironmentProblem(
        "too little source code is installed to build the demo from",
        where=name,
        saw=f"{rows} rows, at least {MIN_ROWS} are needed",
        do="raise max_files, or use a Python whose packages are installed as .py files",
    )


def _fingerprint(packages: Sequence[Package], seed: int, max_files: int) -> str:
    """Hash everything the demo depends on: options, Python, installed packages, the code of this room."""
    digest = hashlib.sha256(json.dumps([seed, max_files, sys.version_info[:3]]).encode())
    for package in packages:
        digest.update(f"{package.name}=={package.version}\n".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _read_summary(folder: Path) -> DemoSummary | None:
    """Read the summary of a demo that was built earlier; None where it or a part of the demo is missing."""
    if _ENTRIES - {entry.name for entry in _entries(folder)}:
        return None
    try:
        found = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        sizes = {name: EvaluationSize(**size) for name, size in found.pop("evaluation").items()}
        return DemoSummary(evaluation=sizes, held_out=tuple(found.pop("held_out")), **found)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_foreign(folder: Path) -> None:
    """Make sure that building would replace a demo and nothing else."""
    names = {entry.name for entry in _entries(folder)}
    if names and not (SUMMARY_FILE in names and names <= _ENTRIES):
        raise ConfigError(
            "the folder for the demo holds something else",
            where=folder,
            saw=", ".join(sorted(names - _ENTRIES)) or f"no {SUMMARY_FILE}",
            do="name a new folder, or move away what is in this one",
        )


def _entries(folder: Path) -> list[Path]:
    """List what is in a folder, or the file that is in its place."""
    return list(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
