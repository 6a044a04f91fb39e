"""The released code's vectors, where they are at hand, and the checker itself."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).with_name("check.py")
SHARED = Path(os.environ.get("TDRO_SHARED") or CHECK.parents[2].parent / "shared")
VECTORS = sorted((SHARED / "golden").glob("algo_*.json.gz"))


def run_check(*files: Path) -> subprocess.CompletedProcess[str]:
    """Run the checker as a person would."""
    return subprocess.run([sys.executable, CHECK, *files], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not VECTORS, reason="vectors of the released code are not here")
def test_all_vectors_of_built_options_agree():
    result = run_check(*VECTORS)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("skipped") < len(VECTORS) / 2


@pytest.mark.skipif(not VECTORS, reason="vectors of the released code are not here")
def test_a_changed_number_is_noticed(tmp_path):
    with gzip.open(SHARED / "golden" / "algo_w1_tdro_default.json.gz", "rt") as file:
        case = json.load(file)
    case["steps"][3]["weights"][1] += 3e-5
    (tmp_path / "algo_changed.json").write_text(json.dumps(case))
    result = run_check(tmp_path / "algo_changed.json")
    assert result.returncode == 1 and "ABOVE" in result.stdout


def test_no_files_is_a_failure():
    assert run_check().returncode == 1
