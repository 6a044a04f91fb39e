"""The page's script makes the plans that a run makes."""

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from tdro.config import Study
from tdro.report.reading import RunFiles
from tdro.report.what_if import plan_in_python, what_if_data
from tdro.training.planning import plan_of

SCRIPT = Path(__file__).parents[2] / "src" / "tdro" / "report" / "templates" / "page.js"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def in_javascript(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the plans of many cases in one go."""
    code = (
        f"const {{makePlan}} = require({json.dumps(str(SCRIPT))});"
        "const cases = JSON.parse(require('fs').readFileSync(0, 'utf-8'));"
        "console.log(JSON.stringify(cases.map((c) => makePlan(c, c))))"
    )
    done = subprocess.run(["node", "-e", code], input=json.dumps(cases), capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def random_case(seed: int) -> dict[str, Any]:
    """Datasets and settings, with ties, zeros, odd names, tight caps and shares that binary numbers cannot hold."""
    draw = random.Random(seed)
    count = draw.choice([1, 2, 5, 17, 50])
    names = sorted(f"{draw.choice(['a', 'é', '語', '😀', '~'])}{k}" for k in range(count))
    values = [draw.choice([0.0, 0.25, 0.25, draw.random() ** 6]) for _ in names]
    values[draw.randrange(count)] = 0.5
    return {
        "datasets": [
            {"name": n, "size": draw.randint(1, 5000), "weights": {"last step": v / sum(values)}}
            for n, v in zip(names, values, strict=True)
        ],
        "version": "last step",
        "plan": draw.choice(["top-share", "bottom-share", "reweight", "reweight-loss"]),
        "share": draw.choice(["0.7", "0.58", "0.05", "1", "1.0", "0.3333"]),
        "cap": draw.choice(["1.0", "1", "0.5", "0.2", "0.02"]),
        "max_epochs": draw.choice(["", "", "3", "0.5", "1e9"]),
        "examples": draw.choice([100, 5440]),
    }


@needs_node
def test_script_and_python_make_the_same_plans():
    cases = [random_case(seed) for seed in range(400)]
    refused = 0
    for case, found in zip(cases, in_javascript(cases), strict=True):
        try:
            expected = plan_in_python(case)
        except ValueError:
            assert found.get("error"), case
            refused += 1
            continue
        names = [one["name"] for one in case["datasets"]]
        assert found["probabilities"] == pytest.approx([expected.probabilities.get(n, 0.0) for n in names], abs=1e-12)
        sizes = {one["name"]: one["size"] for one in case["datasets"]}
        epochs = expected.epochs(sizes, case["examples"])
        assert found["epochs"] == pytest.approx([epochs.get(n, 0.0) for n in names], abs=1e-9)
    assert 20 < refused < 300


@needs_node
def test_temperature_flattens_and_sharpens_weights():
    datasets = [{"name": n, "size": 1, "weights": {"v": w}} for n, w in (("a", 0.9), ("b", 0.1))]
    case = {
        "datasets": datasets,
        "version": "v",
        "plan": "reweight",
        "share": "1",
        "cap": "1",
        "max_epochs": "",
        "examples": 1,
    }
    same, flat, sharp = in_javascript([{**case, "temperature": t} for t in (1, 2, 0.5)])
    assert same["probabilities"] == [0.9, 0.1]
    assert flat["probabilities"] == pytest.approx([0.75, 0.25])  # square roots: 3 to 1
    assert sharp["probabilities"] == pytest.approx([81 / 82, 1 / 82])


PLANS = [
    {"plan": "top-share"},
    {"plan": "reweight"},
    {"plan": "reweight-loss"},
    {"plan": "bottom-share", "share": 0.58},
    {"plan": "reweight", "cap": 0.4},
    {"plan": "reweight", "max_epochs": 1.5},
    {"plan": "top-share", "weights": "size"},
]


@needs_node
def test_settings_of_a_study_give_the_plan_of_its_run(tmp_path):
    names = ["nq", "quora", "xsum", "msmarco", "hotpotqa"]
    given, expected = [], []
    for k, robust in enumerate(PLANS):
        run = RunFiles(write_run(tmp_path / str(k), names, robust=robust, tasks=()))
        data = what_if_data(run)
        assert data is not None
        study = Study.model_validate(
            {
                "name": "made-up", "data": {"root": ".", "datasets": {name: f"{name}.jsonl" for name in names}},
                "model": {"base": "base"}, "reference": {"steps": 10, "batch_size": 20}, "robust": robust,
            }
        )  # fmt: skip
        weights = {one["name"]: one["weights"][data["version"]] for one in data["datasets"]}
        plan = plan_of(study, weights, {name: run.sizes[name] for name in names}).probabilities
        assert plan_in_python(data).probabilities == pytest.approx(plan, abs=1e-15)
        given.append(data)
        expected.append([plan.get(one["name"], 0.0) for one in data["datasets"]])
    for found, plan_G in zip(in_javascript(given), expected, strict=True):
        assert found["probabilities"] == pytest.approx(plan_G, abs=1e-12)
