"""Every test has its own cache and one thread, so that tests neither share state nor fight for the cores."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the cache at an empty folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TDRO_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread: tiny models only lose time with more."""
    torch.set_num_threads(1)
