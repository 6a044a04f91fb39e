"""`tdro dedup TRAIN... --against EVAL... --out DIR`: training rows that ask what an evaluation set asks."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tdro.cli.leakage_display import Outcome, count_rows, show
from tdro.cli.overrides import parse
from tdro.config import Study
from tdro.errors import ConfigError
from tdro.study_file import load_study

if TYPE_CHECKING:
    from tdro.data.store import Rows
    from tdro.prepare.evaluation_queries import EvaluationSet
    from tdro.prepare.leakage import DatasetLeaks
    from tdro.prepare.self_duplicates import Duplicates

HELP = """\
usage: tdro dedup TRAIN... [--against EVAL...] [--out DIR] [--level exact|near|simhash-k2] [--self]

Find training rows that ask what an evaluation set asks, and leave them out.

examples:
  tdro dedup study.yaml                                       report only; exit code 1 if rows leak
  tdro dedup train/*.jsonl.gz --against beir/scifact mkqa.jsonl.gz --out clean
  tdro dedup study.yaml --self --remove-self --out clean

  TRAIN    files or folders in any layout that tdro reads, or a study, which stands for all its datasets
  EVAL     BEIR folders (or a folder of them), MIRACL topics (.tsv), MKQA (.jsonl.gz), jsonl, csv, tsv or txt with a
           query per row; of a study by default its evaluation tasks and leakage.against
  --out    DIR/NAME.jsonl cleaned rows, DIR/removed/NAME.jsonl what was left out and why, DIR/leakage.json

levels:
  exact        equal but for case, punctuation, width and white space
  near         also with a typo, with words moved, with a word more or less (see --similarity)
  simhash-k2   the paper's filter, for comparison

Never left out, only reported: queries of the same pattern with another word or number in it, positives that are
relevant documents of a test query which the row does not ask, and what --semantic finds.

`tdro dedup TRAIN... --help` lists every option.
"""


@dataclass
class Arguments:
    """Find training rows that ask what an evaluation set asks."""

    train: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files or folders, or a study (.yaml)."""
    against: tuple[str, ...] = ()
    """Evaluation sets; of a study by default its tasks and leakage.against."""
    out: str = ""
    """Folder to write to; empty: report only, and exit code 1 if rows leak."""
    level: Literal["exact", "near", "simhash-k2"] = "near"
    """How alike a training query and a test query are."""
    similarity: float = 0.8
    """From which two queries are near; 1: the same words in any order."""
    split: str = "test"
    """Of the BEIR folders in --against."""
    documents: bool = True
    """Look at positives too: leaked pairs, a shared corpus, test queries among passages."""
    semantic: str = ""
    """Encoder that looks for the same meaning in other words; reported only."""
    semantic_similarity: float = 0.9
    """Cosine from which --semantic reports."""
    self: bool = False
    """Look for rows that occur twice, inside a dataset and across datasets."""
    remove_self: bool = False
    """Leave out all but the first of them."""
    examples: int = 2
    """Shown per dataset and evaluation set, and templates per dataset; leakage.json has five of each kind."""
    seed: int = 0
    """Of the self-test."""


def command(arguments: list[str]) -> int:
    """Compare training rows with test queries, show what was found and write what is left.

    Returns:
        0; 1 if rows leak and nothing was written.
    """
    if not arguments or arguments in (["-h"], ["--help"]):
        print(HELP, end="")
        return 0
    parsed = parse(Arguments, "tdro dedup", arguments)
    _refuse_impossible(parsed)
    return _run(parsed)


def _refuse_impossible(parsed: Arguments) -> None:
    """Refuse options that cannot be, or would not be read."""
    for option, value in (("--similarity", parsed.similarity), ("--semantic-similarity", parsed.semantic_similarity)):
        if not 0 < value <= 1:
            raise ConfigError("a similarity is above 0 and at most 1", where=option, saw=value)
    if parsed.remove_self and not (parsed.self and parsed.out):
        raise ConfigError("nothing would be removed", where="--remove-self", do="add --self and --out DIR")
    if len(parsed.train) > 1 and any(_is_study(path) for path in parsed.train):
        raise ConfigError("a study comes alone", where="TRAIN", saw=parsed.train, do="give one study, or files")


def _run(parsed: Arguments) -> int:
    """Read, compare, show, write."""
    from tdro.prepare.leakage import LeakIndex, find_leaks
    from tdro.prepare.planted import self_test

    study = load_study(Path(parsed.train[0])) if _is_study(parsed.train[0]) else None
    _refuse_to_overwrite(parsed, study)
    sets = _evaluation_sets(parsed, study)
    datasets = _study_rows(study) if study else _file_rows(parsed.train)
    against = f"{sum(len(one.queries) for one in sets):,} queries of {len(sets)} evaluation sets"
    print(
        f"{count_rows(datasets)} in {len(datasets)} datasets against {against}, level {parsed.level}", file=sys.stderr
    )
    index = LeakIndex(sets, parsed.level, parsed.similarity)
    planted = self_test(index, seed=parsed.seed)
    found = []
    for name, rows in datasets.items():
        print(f"  {name}: {len(rows):,} rows", file=sys.stderr)
        found.append(find_leaks(rows, index, documents=parsed.documents))
    duplicates = _duplicates(datasets) if parsed.self else None
    neighbours = _semantic(parsed, datasets, sets, found) if parsed.semantic else []
    leaking = sum(len(one.worst()) for one in found)
    outcome = Outcome(datasets, sets, found, planted, duplicates, neighbours)
    show(outcome, parsed.level, parsed.examples)
    if parsed.out:
        _write(parsed, outcome)
    return 1 if leaking and not parsed.out else 0


def _refuse_to_overwrite(parsed: Arguments, study: Study | None) -> None:
    """Refuse a folder in which a cleaned file would take the place of a dataset."""
    paths = [file for name in study.data.datasets for file in study.files_of(name)] if study else parsed.train
    for path in paths:
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        if parsed.out and folder.resolve() == Path(parsed.out).resolve():
            raise ConfigError("cleaned files need a folder of their own", where="--out", saw=parsed.out)


def _is_study(path: str) -> bool:
    """Whether a path names a study file."""
    return path.endswith((".yaml", ".yml"))


def _evaluation_sets(parsed: Arguments, study: Study | None) -> list["EvaluationSet"]:
    """Read what the training rows are compared with; no two sets have the same name."""
    from dataclasses import replace

    from tdro.prepare.evaluation_queries import read_evaluation_sets

    sets: list[EvaluationSet] = []
    if parsed.against:
        for path in parsed.against:
            sets += read_evaluation_sets(Path(path), split=parsed.split)
    elif study:
        from tdro.training.task_queries import query_sources

        for source in query_sources(study):
            sets += source.read()
    if not sets:
        do = "give --against EVAL..., or a study with evaluation tasks"
        raise ConfigError("there is nothing to compare with", where="--against", do=do)
    names = [one.name for one in sets]
    return [
        replace(one, name=f"{one.name}-{names[:i].count(one.name) + 1}") if one.name in names[:i] else one
        for i, one in enumerate(sets)
    ]


def _study_rows(study: Study) -> dict[str, "Rows"]:
    """Read the datasets of a study."""
    from tdro.data.reading import read_study_dataset

    return {name: read_study_dataset(study, name) for name in study.data.datasets}


def _file_rows(paths: tuple[str, ...]) -> dict[str, "Rows"]:
    """Read datasets; each has the name of its file or folder."""
    from tdro.data.reading import read_dataset
    from tdro.files import cache_folder
    from tdro.prepare.evaluation_queries import name_of

    rows: dict[str, Rows] = {}
    for path in paths:
        name = name_of(Path(path))
        if name in rows:
            do = "compare them one after the other, or rename one"
            raise ConfigError("two datasets would have the same name", where="TRAIN", saw=name, do=do)
        rows[name] = read_dataset(name, path, cache=cache_folder() / "datasets")
    return rows


def _duplicates(datasets: dict[str, "Rows"]) -> "Duplicates":
    """Look for rows that occur twice."""
    from tdro.prepare.self_duplicates import self_duplicates

    return self_duplicates(datasets)


def _semantic(
    parsed: Arguments, datasets: dict[str, "Rows"], sets: list["EvaluationSet"], found: list["DatasetLeaks"]
) -> list[dict[str, Any]]:
    """Look for test queries in other words, with an encoder."""
    import numpy as np

    from tdro.models.encoder import load_encoder
    from tdro.models.sides import side_of
    from tdro.prepare.semantic import semantic_neighbours

    model = side_of(load_encoder(parsed.semantic), "queries")

    def encode(texts: Any) -> np.ndarray:
        """Encode texts as vectors of length 1."""
        return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), np.float32)

    vector_TD = encode([query for one in sets for query in one.queries])
    neighbours = []
    for one in found:
        rows, leaking = datasets[one.name], one.worst()
        close = semantic_neighbours(rows, sets, encode, vector_TD, parsed.semantic_similarity)
        for row, place, query, score in close:
            if row not in leaking:
                mine, test = rows[row], sets[place]
                neighbours.append({
                    "train": one.name, "row": row, "query_id": mine.query_id, "query": mine.query, "level": "semantic",
                    "score": round(score, 4), "test": test.name, "test_query_id": test.ids[query],
                    "test_query": test.queries[query],
                })  # fmt: skip
    return neighbours


def _write(parsed: Arguments, outcome: Outcome) -> None:
    """Write cleaned rows, removed rows and the report."""
    from dataclasses import asdict

    from tdro.files import write_json
    from tdro.prepare.leakage_report import examples, reasons, table, write_cleaned

    out, removed = Path(parsed.out), {}
    for one in outcome.found:
        rows = outcome.datasets[one.name]
        gone = reasons(one, rows, outcome.sets)
        if outcome.duplicates and parsed.remove_self:
            for row, (first, number) in outcome.duplicates.rows[one.name].items():
                gone.setdefault(row, {"reason": "duplicate", "first": first, "first_row": number})
        removed[one.name] = len(gone)
        write_cleaned(rows, gone, out / f"{one.name}.jsonl", out / "removed" / f"{one.name}.jsonl")
    content = {
        "settings": {"level": parsed.level, "similarity": parsed.similarity, "split": parsed.split},
        "tests": {one.name: len(one.queries) for one in outcome.sets},
        "rows": {one.name: one.rows for one in outcome.found},
        "removed": removed,
        "table": table(outcome.found, outcome.sets),
        "examples": [
            example for one in outcome.found for example in examples(one, outcome.datasets[one.name], outcome.sets)
        ],
        "semantic": outcome.neighbours,
        "duplicates": outcome.duplicates
        and {"rows": outcome.duplicates.counts(), "repeated_queries": outcome.duplicates.repeated_queries},
        "self_test": asdict(outcome.planted),
    }
    write_json(out / "leakage.json", content)
    print(f"{sum(removed.values()):,} rows left out; cleaned rows, removed rows and leakage.json are in {out}")
