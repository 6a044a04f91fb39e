"""The stage before training: datasets whose rows lack hard negatives get them mined."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from tdro.config import DatasetConfig, fingerprint
from tdro.data.examples import with_instruction
from tdro.data.reading import Rows, read_dataset
from tdro.files import cache_folder, write_json
from tdro.prepare.mining import mine
from tdro.retrieval.encode import encode
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
    encoder: SentenceTransformer | None = None
    result = {}
    for done, (name, rows) in enumerate(run.source_rows.items()):
        if name not in wanted:
            result[name] = rows
            continue
        out = run.folder / "data" / "negatives" / f"{name}.jsonl"
        options = run.study.data.datasets[name]
        inputs = fingerprint(rows.info.fingerprint, identity, config, *_text_settings(run, options), run.study.seed)
        if not _is_made_from(out, inputs):
            encoder = encoder or run.load(encoder_name)
            _mine(run, encoder, name, rows, out, inputs, done)
        result[name] = read_dataset(name, out, cache=cache_folder() / "datasets")
    return result


def encoders_for(
    run: Run,
    model: SentenceTransformer,
    instruction: str,
    symmetric: bool,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Callable[[Sequence[str]], np.ndarray], Callable[[Sequence[str]], np.ndarray]]:
    """Make the functions that encode queries and passages with a study's lengths and an instruction."""
    data, max_tokens = run.study.data, run.max_tokens

    def encoder(instruction: str, max_length: int) -> Callable[[Sequence[str]], np.ndarray]:
        def encode_texts(texts: Sequence[str]) -> np.ndarray:
            texts = [with_instruction(text, instruction, data.instruction_template) for text in texts]
            with run.device.precision():
                return encode(model, texts, max_length=max_length, max_tokens=max_tokens, progress=progress)

        return encode_texts

    passage_instruction = instruction if symmetric else ""
    return encoder(instruction, data.query_max_length), encoder(passage_instruction, data.passage_max_length)


def _mine(run: Run, encoder: SentenceTransformer, name: str, rows: Rows, out: Path, inputs: str, done: int) -> None:
    """Mine one dataset and write its report."""
    config, options = run.study.mining, run.study.data.datasets[name]
    run.journal.progress(STAGE, done, len(run.source_rows), dataset=name)
    encode_query, encode_corpus = encoders_for(run, encoder, options.instruction, options.symmetric)
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
