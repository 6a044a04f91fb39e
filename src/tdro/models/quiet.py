"""Loading without the libraries' bars and reports; missing weights are an error of our own instead."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, loading reports and advice; missing weights are reported as an error instead."""
    other = logging.getLogger("sentence_transformers")
    level = other.level
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        other.setLevel(level)
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
