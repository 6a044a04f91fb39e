"""What a study needs: its base and the tokenizer's end-of-text token, its datasets and tasks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tdro.config import Study
from tdro.data.hub import is_address
from tdro.data.sources import find_source
from tdro.errors import TdroError
from tdro.evaluation.tasks import find_task
from tdro.models.bases import find_encoder
from tdro.models.frame import frame
from tdro.models.quiet import quiet
from tdro.setup.doctor import Finding, failure


def study_findings(study: Study) -> Iterator[Finding]:
    """Look for everything that the study names; no text is read and no weight loaded."""
    yield Finding("study", "OK", "file", f"{study.name} is valid; --dry-run shows its plan")
    try:
        folder = find_encoder(study.fill_root(study.model.base))
        yield Finding("study", "OK", "base", str(folder))
        yield _end_of_text(study, folder)
    except TdroError as error:
        yield failure("study", "base", error)
    yield from _files(study)


def _end_of_text(study: Study, folder: Path) -> Finding:
    """Say what the tokenizer appends to a text, and whether the pooling relies on it."""
    name, modules = "tokenizer", _read(folder / "modules.json")
    if not (folder / "config.json").is_file() and not any(folder.glob("*/config.json")):
        return Finding("study", "OK", name, "static embeddings: no end-of-text token is needed")
    from transformers import AutoTokenizer

    inside = folder / modules[0].get("path", "") if isinstance(modules, list) and modules else folder
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(inside), local_files_only=True, trust_remote_code=False)
    end, is_saved_encoder = tokenizer.eos_token, bool(modules)
    last = frame(tokenizer)[1] if tokenizer.is_fast else None
    if last is not None:
        return Finding("study", "OK", name, f"ends every text with {tokenizer.convert_ids_to_tokens(last)!r}")
    if not _pools_last(study, folder, is_saved_encoder):
        return Finding("study", "OK", name, "appends no end-of-text token, and the pooling does not need one")
    if end is None:
        fix = f"set eos_token in {inside / 'tokenizer_config.json'}"
        return Finding("study", "FAIL", name, "the last token is pooled, but there is no end-of-text token", fix)
    if is_saved_encoder and study.model.pooling != "last":
        text = "the saved encoder pools the last token, but its tokenizer appends no end-of-text token"
        return Finding("study", "FAIL", name, text, "--model.pooling last (other vectors than the saved encoder's)")
    return Finding("study", "OK", name, f"tdro appends {end!r} when it loads the base, and saves it with the model")


def _pools_last(study: Study, folder: Path, is_saved_encoder: bool) -> bool:
    """Tell whether the embedding will be the last token's."""
    if study.model.pooling != "auto":
        return study.model.pooling == "last"
    if is_saved_encoder:
        pooling = [_read(file) for file in folder.glob("*_Pooling/config.json")]
        return any(p.get("pooling_mode_lasttoken") or p.get("pooling_mode") == "lasttoken" for p in pooling)
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = _read(folder / "config.json").get("model_type")
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _files(study: Study) -> Iterator[Finding]:
    """Look for the files of datasets and tasks; those that are missing have a line of their own."""
    missing = []
    for name in study.data.datasets:
        for path in study.files_of(name):
            if isinstance(path, str) and is_address(path):
                continue
            try:
                find_source(Path(path))
            except TdroError as error:
                missing.append(failure("study", f"dataset {name}", error))
    for name, options in {**study.evaluation.tasks, **study.evaluation.watch}.items():
        try:
            find_task(name, options, Path(study.data.root))
        except TdroError as error:
            missing.append(failure("study", f"task {name}", error))
    yield from missing
    if not missing:
        tasks = len(study.evaluation.tasks) + len(study.evaluation.watch)
        text = f"{len(study.data.datasets)} datasets and {tasks} evaluation sets are there"
        yield Finding("study", "OK", "files", f"{text}; tdro check reads them")


def _read(file: Path) -> Any:
    """Read a JSON file; empty where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
