"""A finished study for the tests that look at what it left behind."""

import pytest
from studies import tiny_study

from tdro.training.pipeline import run_study
from tdro.training.run import Run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that ran to its end."""
    run = Run(tiny_study(tmp_path_factory.mktemp("study"), "static"))
    return run, run_study(run)
