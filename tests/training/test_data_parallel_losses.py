"""Two ranks train what one trains, with every option of the loss."""

import os
from pathlib import Path

import numpy as np
import pytest
from launch import run_ranks
from loss_rank_cases import CASES, prepare, train_cases
from test_data_parallel import numbers_of

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, trained by one rank and by two."""
    folder = tmp_path_factory.mktemp("ranks")
    prepare(folder)
    os.environ["TDRO_CACHE"] = str(folder / "cache-two")
    run_ranks([str(HERE / "loss_rank_cases.py"), str(folder), str(folder / "two")], 2)
    os.environ["TDRO_CACHE"] = str(folder / "cache-one")
    train_cases(folder, folder / "one")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_compute_what_one_computes(trained: Path, case: str) -> None:
    one, two = (numbers_of(trained / side / case) for side in ("one", "two"))
    assert one.keys() == two.keys() and len(one) > 20
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-9, atol=1e-9, err_msg=name)
