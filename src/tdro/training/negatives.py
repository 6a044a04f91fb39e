"""The stage before training: datasets whose rows lack hard negatives get them mined."""

import json
from pathlib import Path

from tdro.config import DatasetConfig, fingerprint
from tdro.data.reading import Rows, read_dataset
from tdro.files import cache_folder, write_json
from tdro.prepare.mining import mine
from tdro.training.encoders import Encoders
from tdro.training.run import Run, encoder_fingerprint

STAGE = "negatives"


def negatives(run: Run) -> dict[str, Rows]:
    """Return the rows of every dataset with hard negatives, mining them where the study asks for it.

    Mined datasets are kept in data/negatives/NAME.jsonl beside a report; they are mined again only when their rows, the
    encoder or the settings change.
    """
    config = run.study.mining
    wanted = {
        name
        for name, rows in run.source_rows.items()
        if config.when == "always" or (config.when == "missing" and rows.without_negatives)
    }
    encoder_name = run.study.fill_root(config.encoder or run.study.model.base)
    identity = encoder_fingerprint(encoder_name) if wanted else ""
    encoders: Encoders | None = None
    result = {}
    for done, (name, rows) in enumerate(run.source_rows.items()):
        if name not in wanted:
            result[name] = rows
            continue
        out = run.folder / "data" / "negatives" / f"{name}.jsonl"
        options = run.study.data.datasets[name]
        inputs = fingerprint(rows.info.fingerprint, identity, config, *_text_settings(run, options), run.study.seed)
        if not _is_made_from(out, inputs):
            encoders = encoders or Encoders(run, run.load(encoder_name))
            _mine(run, encoders, name, rows, out, inputs, done)
        result[name] = read_dataset(name, out, cache=cache_folder() / "datasets")
    return result


def _mine(run: Run, encoders: Encoders, name: str, rows: Rows, out: Path, inputs: str, done: int) -> None:
    """Mine one dataset and write its report."""
    config = run.study.mining
    run.journal.progress(STAGE, done, len(run.source_rows), dataset=name)
    encode_query, encode_corpus = encoders.of_dataset(name, rows)
    _report_of(out).unlink(missing_ok=True)  # it vouches for the file that is about to be replaced
    report = mine(
        rows,
        out,
        dataset=name,
        encode_query=encode_query,
        encode_corpus=encode_corpus,
        seed=run.study.seed,
        ranks=config.ranks,
        negatives=config.negatives,
        only_missing=config.when == "missing",
        device=run.device.name,
    )
    write_json(_report_of(out), {"inputs": inputs, **report.as_dict()})
    run.journal.write("mined", STAGE, dataset=name, **report.as_dict())


def _text_settings(run: Run, options: DatasetConfig) -> tuple[object, ...]:
    """What changes the vectors that mining compares."""
    data, model = run.study.data, run.study.model
    lengths = (data.query_max_length, data.passage_max_length)
    return options.instruction, options.symmetric, data.instruction_template, lengths, model.pooling, model.normalize


def _report_of(out: Path) -> Path:
    """Where the report of a mined file is."""
    return out.with_suffix(".json")


def _is_made_from(out: Path, inputs: str) -> bool:
    """Say whether a mined file is there and was made from these inputs."""
    try:
        return out.exists() and json.loads(_report_of(out).read_text("utf-8"))["inputs"] == inputs
    except (OSError, ValueError, KeyError):
        return False
