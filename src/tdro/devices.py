"""The only module that knows devices, precision and ranks."""

import contextlib
import platform
import resource
from dataclasses import dataclass

import torch

from tdro.errors import ConfigError


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
