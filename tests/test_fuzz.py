"""Damaged files give a TdroError or are read; benchmarks/fuzz.py does the same with a hundred thousand of them."""

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from fuzz import fuzz
from fuzz_mutations import damage
from fuzz_targets import File, Target, targets

from tdro.errors import DataError

TARGETS = {target.name: target for target in targets()}
INPUTS = 300


@pytest.mark.parametrize("name", TARGETS)
def test_only_our_own_errors_come_out_of_damaged_files(name, tmp_path):
    target = TARGETS[name]
    share = target.share / sum(each.share for each in TARGETS.values())
    found = fuzz(target, round(INPUTS * share), 1, tmp_path)
    assert not found.failures, "\n".join(map(str, found.failures))


def test_a_reader_that_stumbles_is_found_and_its_input_made_small(tmp_path):
    def read(folder: Path) -> None:
        text = (folder / "numbers.txt").read_bytes()
        if not text.startswith(b"1"):
            raise DataError("does not begin with 1")
        if b"\x00" in text:
            text.index(b"2" * 100)

    target = Target("stumbles", 1, ((File("numbers.txt", "bytes", b"1" * 50),),), read)
    found = fuzz(target, 500, 0, tmp_path)
    assert found.inputs == 500 and 0 < found.good < 500
    assert [(failure.error.split(":")[0], failure.content) for failure in found.failures] == [
        ("ValueError", r"b'1\x00'")
    ]


@pytest.mark.parametrize("name", TARGETS)
def test_damage_is_a_function_of_the_seed_and_changes_most_files(name):
    for file in (file for variant in TARGETS[name].variants for file in variant if file.kind):
        once, again = ([damage(file.content, file.kind, random.Random(seed)) for seed in range(12)] for _ in range(2))
        assert once == again
        assert sum(content != file.content for content in once) > 6
