"""What the study's recipes read: the data of a folder, datasets as users have them, and the static encoders."""

import gzip
import json
import random
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from packaged_models import decoder, made_once, static_model, three_layers

from tdro.demo.encoder import build_encoder

Row = dict[str, Any]
SMALL = ("jaquad", "snli", "stackexchange_qa", "zh_wiki_qa")
"""Datasets that are cut to 300 rows in the collection as users have it."""
_SMALL_ROWS = 300


def prepare(data: Path, work: Path, settings: Collection[str]) -> None:
    """Link the data, write the made datasets and build the encoders, unless that is done.

    Args:
        data: Folder with train/*.jsonl.gz and eval/*.
        work: Folder of the study.
        settings: Those that will be done: the larger models come from further packages.
    """
    root = work / "data"
    root.mkdir(parents=True, exist_ok=True)
    for name in ("train", "eval"):
        if not (root / name).exists():
            (root / name).symlink_to((data / name).resolve())
    made_once(root / "made", lambda folder: _write_made(root / "train", folder))
    static_model(work / "pretrained")
    made_once(work / "scratch", lambda folder: build_encoder(folder, _texts(root / "train"), seed=0))
    if "users-transformer" in settings:
        three_layers(work / "minilm-3")
    if "users-decoder" in settings:
        decoder(work / "smollm2")


def _write_made(train: Path, folder: Path) -> None:
    """Write the made datasets."""
    for name, rows in _made(train):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _made(train: Path) -> Iterator[tuple[str, list[Row]]]:
    """Yield the datasets that users have and the data have not: noise, a copy, an easy one, small ones."""
    chance = random.Random(0)
    for name in SMALL:
        rows = _read(train, name)
        yield f"{name}-small", [rows[i] for i in sorted(chance.sample(range(len(rows)), _SMALL_ROWS))]
    yield "noise30", _shuffled(_half(_read(train, "agnews"), chance), 0.3, chance)
    yield "noise100", _shuffled(_half(_read(train, "package_desc"), chance), 1.0, chance)
    yield "medquad_copy", _read(train, "medquad")
    yield "easy", [_its_own_query(row) for row in _half(_read(train, "scitldr"), chance)]


def _half(rows: list[Row], chance: random.Random) -> list[Row]:
    """Half of the rows, in their order."""
    return [rows[i] for i in sorted(chance.sample(range(len(rows)), len(rows) // 2))]


def _shuffled(rows: list[Row], share: float, chance: random.Random) -> list[Row]:
    """Give a share of the rows the positives of another row each: they move one on in a random round."""
    wrong = chance.sample(range(len(rows)), round(share * len(rows)))
    source = dict(zip(wrong, wrong[1:] + wrong[:1], strict=True))
    return [{**row, "positive_passages": rows[source.get(i, i)]["positive_passages"]} for i, row in enumerate(rows)]


def _its_own_query(row: Row) -> Row:
    """The first twelve words of the passage as its query."""
    return {**row, "query": " ".join(row["positive_passages"][0]["text"].split()[:12])}


def _texts(train: Path) -> Iterator[str]:
    """Yield all training texts."""
    for file in sorted(train.glob("*.jsonl.gz")):
        for row in _read(train, file.name.removesuffix(".jsonl.gz")):
            yield row["query"]
            yield from (" ".join(filter(None, (p.get("title"), p["text"]))) for p in row["positive_passages"])


def _read(train: Path, name: str) -> list[Row]:
    """Read a dataset."""
    with gzip.open(train / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
