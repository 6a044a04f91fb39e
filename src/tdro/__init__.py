"""Learn how often each dataset should be sampled when a dense retriever is fine-tuned on many of them."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tdro.config import Study
    from tdro.data.weights_file import read_weights
    from tdro.errors import TdroError
    from tdro.models.encoder import load_encoder
    from tdro.retrieval.retriever import IndexSettings, Retriever, build_index
    from tdro.study_file import load_study
    from tdro.training.pipeline import run_study
    from tdro.training.replay import learn_weights
    from tdro.training.run import Run

_HOMES = {
    "IndexSettings": "tdro.retrieval.retriever",
    "Retriever": "tdro.retrieval.retriever",
    "Run": "tdro.training.run",
    "Study": "tdro.config",
    "TdroError": "tdro.errors",
    "build_index": "tdro.retrieval.retriever",
    "learn_weights": "tdro.training.replay",
    "load_encoder": "tdro.models.encoder",
    "load_study": "tdro.study_file",
    "read_weights": "tdro.data.weights_file",
    "run_study": "tdro.training.pipeline",
}
__all__ = [
    "IndexSettings",
    "Retriever",
    "Run",
    "Study",
    "TdroError",
    "build_index",
    "learn_weights",
    "load_encoder",
    "load_study",
    "read_weights",
    "run_study",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import tdro` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tdro' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
