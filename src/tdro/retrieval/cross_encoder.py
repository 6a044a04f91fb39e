"""Cross-encoders: models that read a query and a passage together and score the pair."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import CrossEncoder

from tdro.errors import ConfigError
from tdro.models.bases import find_encoder
from tdro.models.encoder import LOADING_ERRORS
from tdro.models.quiet import quiet
from tdro.models.trust import refuse_code


def load_cross_encoder(
    name: str, *, device: str = "cpu", where: str = "mining.cross_encoder"
) -> Callable[[Sequence[tuple[str, str]]], np.ndarray]:
    """Load a cross-encoder of sentence-transformers as a function from pairs to scores.

    Scores are what its own `predict` gives: from 0 to 1 for most models. Code of the model is never run.

    Args:
        name: A folder, `package:NAME/folder` inside an installed package, or a hub name.
        device: Where it goes.
        where: Option that names it, for errors.

    Returns:
        A function of n pairs (query, passage) that returns float32 [n].

    Raises:
        ConfigError: It is not found, is no cross-encoder, or gives more than one score per pair.
    """
    folder = find_encoder(name)
    do = "give a cross-encoder with config, tokenizer and safetensors weights"
    if not _scores_pairs(folder):
        raise ConfigError(f"{name} is not a cross-encoder", where=where, saw=str(folder), do=do)
    try:
        with quiet():
            refuse_code(folder)
            model = CrossEncoder(
                str(folder), device=device, local_files_only=True, model_kwargs={"use_safetensors": True}
            )
    except LOADING_ERRORS as error:
        raise ConfigError(f"{name} cannot be loaded as a cross-encoder", where=where, saw=str(error), do=do) from error
    if model.num_labels != 1:
        do = "use a cross-encoder with one output"
        raise ConfigError(f"{name} gives {model.num_labels} scores per pair", where=where, do=do)

    def score(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        found = model.predict(list(pairs), show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(found, dtype=np.float32)

    return score


def _scores_pairs(folder: Path) -> bool:
    """Tell whether a model was saved with a head that scores; without one the library would make up a random head."""
    try:
        saved = folder / "config_sentence_transformers.json"
        if saved.is_file() and json.loads(saved.read_bytes()).get("model_type") == "CrossEncoder":
            return True
        architectures = json.loads((folder / "config.json").read_bytes()).get("architectures") or [""]
    except (OSError, ValueError):
        return False
    return str(architectures[0]).endswith("ForSequenceClassification")
