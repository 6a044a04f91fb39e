"""The only module that knows devices, precision and ranks."""

import atexit
import contextlib
import json
import os
import platform
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from tdro.errors import ConfigError, EnvironmentProblem

T = TypeVar("T")
J = TypeVar("J")


@dataclass(frozen=True)
class Device:
    """Where a model lives and in which precision it computes.

    Attributes:
        name: "cpu" or "cuda".
        dtype: Type of the parameters: float32, or float64 for exactness checks.
        autocast: Whether matrix products inside the model run in bfloat16.
    """

    name: str
    dtype: torch.dtype
    autocast: bool

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the model's forward pass runs."""
        if self.autocast:
            return torch.autocast(self.name, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def wait(self) -> None:
        """Wait until everything that was started on the device is done."""
        if self.name == "cuda":
            torch.cuda.synchronize()

    def reset_peak(self) -> None:
        """Begin to measure the peak of a GPU's memory anew."""
        if self.name == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """Return the most memory of a GPU that was in use since `reset_peak`; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() if self.name == "cuda" else 0


@dataclass(frozen=True)
class Ranks:
    """Processes that work together, started by `torchrun` or `accelerate launch`; one alone otherwise.

    Each process calls the same methods in the same order. One that has died is noticed at once by the others on its
    machine, and elsewhere when the time given to `join_ranks` is over.

    Attributes:
        number: Which of them this process is, from 0.
        count: How many there are.
    """

    number: int = 0
    count: int = 1

    def barrier(self) -> None:
        """Wait until all have come here.

        Raises:
            EnvironmentProblem: One has stopped.
        """
        if self.count > 1:
            with self._together():
                dist.all_reduce(torch.zeros(1))

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Collect the tensors of all ranks, on all ranks, in the order of their numbers.

        Args:
            tensor: On a CPU, or on the rank's GPU; only the first dimension may differ from rank to rank.

        Raises:
            EnvironmentProblem: One has stopped.
        """
        if self.count == 1:
            return [tensor]
        with self._together():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
            dist.all_gather(sizes, torch.tensor([len(tensor)]))
            longest = max(int(size) for size in sizes)
            padded = tensor.new_zeros((longest, *tensor.shape[1:]))
            padded[: len(tensor)] = tensor
            found = [torch.empty_like(padded) for _ in range(self.count)]
            dist.all_gather(found, padded)
        return [each[: int(size)] for each, size in zip(found, sizes, strict=True)]

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return what this rank takes of a list that all have: every so many-th item, so long and short are mixed."""
        return items[self.number :: self.count]

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by their sums over all ranks; the same bits on every rank.

        Args:
            tensors: Of the same shapes, types and devices on all ranks; joined into messages of some 64 MB.

        Raises:
            EnvironmentProblem: A rank has stopped.
        """
        if self.count == 1:
            return
        with self._together():
            for bucket in _buckets(tensors):
                joined = torch._utils._flatten_dense_tensors(bucket)
                dist.all_reduce(joined)
                for tensor, total in zip(bucket, torch._utils._unflatten_dense_tensors(joined, bucket), strict=True):
                    tensor.copy_(total)

    def any(self, flag: bool) -> bool:
        """Tell whether some rank says so.

        Raises:
            EnvironmentProblem: A rank has stopped.
        """
        told = torch.tensor([float(flag)])
        self.add([told])
        return bool(told > 0)

    def agree(self, value: J) -> J:
        """Return what rank 0 says, on all ranks.

        Args:
            value: Anything that JSON holds; what the others give is ignored.

        Raises:
            EnvironmentProblem: A rank has stopped.
        """
        if self.count == 1:
            return value
        told = json.dumps(value).encode() if self.number == 0 else b""
        spoken = self.gather(torch.tensor(list(told), dtype=torch.uint8))[0]
        agreed: J = json.loads(bytes(spoken.tolist()))
        return agreed

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """Let rank 0 do the block before the others do: what it leaves in the cache, they find there.

        An error of rank 0 ends the others too.
        """
        if self.number > 0:
            self.barrier()
        yield
        if self.number == 0:
            self.barrier()

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Say what it means when the others cannot be reached."""
        try:
            yield
        except RuntimeError as problem:
            do = "look for the first error in the output of the other ranks, and start again"
            where, saw = f"rank {self.number} of {self.count}", str(problem).partition("\n")[0]
            raise EnvironmentProblem("another rank has stopped", where=where, saw=saw, do=do) from problem


def refuse_drift(parameters: Sequence[torch.Tensor], ranks: Ranks) -> None:
    """Compare the parameters of all ranks, bit by bit through their sums.

    Raises:
        EnvironmentProblem: A rank has others than rank 0: another library, a broken GPU, or an operation that is not
            deterministic where it should be.
    """
    if ranks.count == 1:
        return
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [p.detach().contiguous().view(integer[p.element_size()]).sum(dtype=torch.int64) for p in parameters]
    sum_N = torch.stack(sums).cpu()
    first_N, *others = ranks.gather(sum_N)
    odd = [number for number, other_N in enumerate(others, start=1) if not torch.equal(other_N, first_N)]
    if odd:
        do = "start again: the last checkpoint is whole; see that all machines have the same libraries and sound GPUs"
        where = f"rank {', '.join(map(str, odd))} of {ranks.count}"
        raise EnvironmentProblem("ranks have different parameters", where=where, do=do)


ALONE = Ranks()
"""One process that works alone."""


def _buckets(tensors: Sequence[torch.Tensor], size: int = 1 << 26) -> Iterator[list[torch.Tensor]]:
    """Cut a list of tensors where the type changes, or where a message would be longer than `size` bytes."""
    bucket: list[torch.Tensor] = []
    filled = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or filled + tensor.nbytes > size):
            yield bucket
            bucket, filled = [], 0
        bucket.append(tensor)
        filled += tensor.nbytes
    if bucket:
        yield bucket


def join_ranks(patience: timedelta = timedelta(hours=2)) -> Ranks:
    """Join the processes that a launcher has started beside this one; later calls return the same.

    Messages go through gloo between CPUs and nccl between GPUs; each rank then has its own GPU as "cuda".

    Args:
        patience: How long a rank waits for the others before it gives up.

    Returns:
        The ranks; `ALONE` without a launcher, or if it has started one process only.

    Raises:
        EnvironmentProblem: The others do not come.
    """
    if dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=patience)
    except (RuntimeError, ValueError) as problem:
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        where = " ".join(f"{name}={os.environ.get(name, '')}" for name in names)
        do = "start all ranks with the same torchrun or accelerate launch, and look at the output of the others"
        saw = str(problem).partition("\n")[0]
        raise EnvironmentProblem("the ranks did not find each other", where=where, saw=saw, do=do) from problem
    atexit.register(_leave_ranks)
    return Ranks(dist.get_rank(), dist.get_world_size())


def be_deterministic() -> None:
    """Use only operations that give the same bits each time, for the rest of this process.

    Call it before anything runs on a GPU. An operation that has no such form stops with torch's own error.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _leave_ranks() -> None:
    """Close the connections to the other ranks, unless that has been done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end_rank(code: int) -> None:
    """End this process with an exit code if it is one of several ranks; else do nothing.

    What was registered with `atexit` is done, then the process stops at once: a destructor of the libraries may abort a
    rank whose work is complete (seen with torch 2.13 and gloo on a busy machine), and the launcher would then kill the
    others.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def total_memory() -> int:
    """Return the memory of the GPU in bytes; 0 without one."""
    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0


def free_memory() -> None:
    """Give memory that is no longer used back to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pick_device(precision: str = "auto") -> Device:
    """Choose the GPU when there is one, and a precision it has.

    Args:
        precision: "auto" (bfloat16 on a GPU that has it, else float32), "float32", "bfloat16" or "float64".

    Raises:
        ConfigError: bfloat16 was asked for and the GPU does not have it.
    """
    name = "cuda" if torch.cuda.is_available() else "cpu"
    has_bfloat16 = name == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" and name == "cuda" and not has_bfloat16:
        do = "use float32 or auto"
        raise ConfigError("this GPU has no bfloat16", where="model.precision", saw=torch.cuda.get_device_name(), do=do)
    autocast = precision == "bfloat16" or (precision == "auto" and has_bfloat16)
    return Device(name, torch.float64 if precision == "float64" else torch.float32, autocast)


def multiplies_bfloat16(device: str) -> bool:
    """Tell whether a CPU has units that multiply bfloat16 matrices, some ten times as fast as float32."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
    return torch.device(device).type == "cpu" and bool(known.get("amx_bf16"))


@contextlib.contextmanager
def one_thread() -> Iterator[int]:
    """Let torch use one thread within the block, for work that is divided otherwise; yields how many it may use."""
    allowed = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield allowed
    finally:
        torch.set_num_threads(allowed)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 matrices in float32 within the block, whatever less the process allows."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def peak_memory_gb() -> dict[str, float]:
    """Return the peak resident memory of this process and, on a GPU, the peak of its allocator, in GB (1e9 bytes)."""
    unit = 1 if platform.system() == "Darwin" else 1024
    peaks = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if torch.cuda.is_available():
        peaks["gpu"] = torch.cuda.max_memory_allocated() / 1e9
    return peaks


def describe_machine() -> dict[str, object]:
    """Say what this process runs on, for `resolved.yaml`."""
    cuda = torch.cuda.is_available()
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }
