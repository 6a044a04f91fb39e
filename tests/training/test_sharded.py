"""A sharded model learns what a whole one learns: losses, weights and parameters, in every stage."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from launch import run_ranks
from rank_cases import SHARDED, train_cases
from sentence_transformers import SentenceTransformer
from studies import tiny_study
from test_data_parallel import events_of, numbers_of

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
FOUR = ("bert-idle", "bert-watched")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, trained by one rank with a whole model and by two with half of one each."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny_study(folder)  # makes data and model
    tiny_study(folder / "qwen2", "qwen2")
    os.environ["TDRO_CACHE"] = str(folder / "cache-two")
    run_ranks([str(HERE / "rank_cases.py"), str(folder), str(folder / "two"), "full"], 2)
    os.environ["TDRO_CACHE"] = str(folder / "cache-one")
    train_cases(folder, folder / "one", cases=SHARDED)
    return folder


@pytest.fixture(scope="module")
def trained_by_four(trained: Path) -> Path:
    """Cases trained by four ranks with a quarter each, of which some never have a micro-batch."""
    os.environ["TDRO_CACHE"] = str(trained / "cache-four")
    run_ranks([str(HERE / "rank_cases.py"), str(trained), str(trained / "four"), "full", *FOUR], 4)
    return trained


@pytest.mark.parametrize("case", SHARDED)
def test_halves_learn_what_a_whole_learns(trained: Path, case: str) -> None:
    one, two = (numbers_of(trained / side / case) for side in ("one", "two"))
    assert one.keys() == two.keys() and len(one) > 20
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-8, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("case", FOUR)
def test_quarters_learn_what_a_whole_learns(trained_by_four: Path, case: str) -> None:
    one, four = (numbers_of(trained_by_four / side / case) for side in ("one", "four"))
    assert one.keys() == four.keys()
    for name, values in one.items():
        np.testing.assert_allclose(four[name], values, rtol=1e-8, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("case", SHARDED)
def test_rank_0_leaves_the_same_files_and_events(trained: Path, case: str) -> None:
    one, two = (trained / side / case for side in ("one", "two"))
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (one, two)]
    assert names[0] == names[1]
    events = [events_of(run) for run in (one, two)]
    assert events[0] == events[1]


def test_watching_sees_the_whole_model(trained: Path) -> None:
    one, two = (json.loads((trained / side / "bert-watched/robust/watch.json").read_text()) for side in ("one", "two"))
    assert one == two and len(one["steps"]) == 3


def test_what_is_saved_is_a_plain_model(trained: Path) -> None:
    for case in ("bert", "qwen2-lora"):
        folder = trained / "two" / case / "robust" / "model"
        config = json.loads(next(folder.rglob("config.json")).read_text())
        assert not any(name.startswith("FSDP") for name in config["architectures"])
        assert SentenceTransformer(str(folder), device="cpu").encode(["a bee"]).shape == (1, 32)
