"""Two ranks train what one trains: losses, weights, parameters and scores, in every stage."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from launch import run_ranks
from rank_cases import CASES, study_of, train_cases
from safetensors.numpy import load_file
from studies import tiny_study

from tdro.training.journal import Journal

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, trained by one rank and by two."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny_study(folder)  # makes data and model
    os.environ["TDRO_CACHE"] = str(folder / "cache-two")
    run_ranks([str(HERE / "rank_cases.py"), str(folder), str(folder / "two"), "none"], 2)
    os.environ["TDRO_CACHE"] = str(folder / "cache-one")
    train_cases(folder, folder / "one")
    return folder


def numbers_of(run: Path) -> dict[str, Any]:
    """Everything that a run computed, as arrays: models, weights, and what each step gave."""
    found: dict[str, Any] = {}
    for file in sorted(run.rglob("*.safetensors")):
        if "checkpoints" not in file.parts:
            found |= {f"{file.relative_to(run)}:{name}": values for name, values in load_file(file).items()}
    for table in ("trajectory", "statistics"):
        columns = pq.read_table(run / "weights" / f"{table}.parquet").to_pydict()
        found |= {
            f"{table}.{name}": np.array(values, float) for name, values in columns.items() if name not in ("dataset",)
        }
    for stage in ("reference", "weights", "robust"):
        steps = list(Journal(run).read("step", stage))
        found |= {f"{stage}.{key}": np.array([step[key] for step in steps]) for key in ("loss", "gradient_norm")}
    return found


def events_of(run: Path) -> list[tuple[str, str, int | None]]:
    """What a journal tells of, without numbers."""
    records = map(json.loads, (run / "events.jsonl").read_text("utf-8").splitlines())
    return [(record["event"], record["stage"], record.get("step")) for record in records]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_compute_what_one_computes(trained: Path, case: str) -> None:
    one, two = (numbers_of(trained / side / case) for side in ("one", "two"))
    assert one.keys() == two.keys() and len(one) > 20
    tolerance = 2e-3 if case == "float32" else 1e-9
    for name, values in one.items():
        if case == "float32" and name.endswith("key.bias"):
            continue  # its gradient is 0 but for rounding, which AdamW makes as large as any other step
        np.testing.assert_allclose(two[name], values, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_only_rank_0_writes(trained: Path, case: str) -> None:
    one, two = (trained / side / case for side in ("one", "two"))
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (one, two)]
    assert names[0] == names[1]
    events = [events_of(run) for run in (one, two)]
    assert events[0] == events[1]


def test_scores_agree(trained: Path) -> None:
    for case in CASES:
        if case != "float32":
            one, two = (
                json.loads((trained / side / case / "evaluation" / "summary.json").read_text())
                for side in ("one", "two")
            )
            assert one == two


def test_the_cases_differ(trained: Path) -> None:
    losses = {
        case: tuple(event["loss"] for event in Journal(trained / "one" / case).read("step", "weights"))
        for case in ("plain", "lora", "held-out", "mined", "own-only")
    }
    assert len(set(losses.values())) == len(losses)
    assert study_of("own-only", trained, trained / "x").data.datasets["two"].in_batch_negatives is False
