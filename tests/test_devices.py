"""One process alone, and what is said when the others do not come."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch

from tdro.devices import ALONE, Ranks, full_float32, join_ranks
from tdro.errors import EnvironmentProblem

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_without_a_launcher_one_rank_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    assert join_ranks() is ALONE
    assert Ranks(number=0, count=1) == ALONE


def test_a_launcher_that_starts_one_process_needs_no_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(LAUNCHER, ("0", "0", "1", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert join_ranks() is ALONE
    assert not torch.distributed.is_initialized()


def test_alone_gathers_its_own_tensor_and_waits_for_nobody() -> None:
    tensor = torch.tensor([[1.0, 2.0]])
    (found,) = ALONE.gather(tensor)
    assert found is tensor
    ALONE.barrier()


def test_ranks_that_do_not_come_are_waited_for_in_vain_no_longer_than_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(LAUNCHER, ("1", "1", "2", "127.0.0.1", "9"), strict=True):  # nobody listens at port 9
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentProblem, match=r"(?s)did not find each other.*WORLD_SIZE=2.*same torchrun"):
        join_ranks(timedelta(seconds=1))
    assert not torch.distributed.is_initialized()


def test_a_launcher_s_environment_that_lacks_something_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EnvironmentProblem, match=r"(?s)did not find each other.*RANK"):
        join_ranks(timedelta(seconds=1))


def test_float32_products_are_exact_within_the_block_and_as_the_process_allows_after_it() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("world", "said"), [("1", ["end of the process", "last"]), ("2", ["last"])])
def test_one_of_several_ranks_ends_at_once_after_what_was_registered(world: str, said: list[str]) -> None:
    code = (
        "import atexit, sys; from tdro.devices import end_rank; atexit.register(print, 'last');"
        "end_rank(3); print('end of the process'); sys.exit(3)"
    )
    environment = {**os.environ, "WORLD_SIZE": world}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")[:-1]) == (3, said)
