"""The texts of the next step are prepared while the model works on this one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Computes what a step needs, one step ahead, in one thread, which gets no torch threads of its own.

    With a second team of them there are more than cores. OpenMP then puts those of the model to sleep between any two
    operations, and on two cores a step took nearly twice as long.

    Args:
        prepare: A pure function of the step.
        steps: Nothing is prepared for this step or later ones.

    Example:
        >>> squares = Prefetch(lambda step: step * step, 3)
        >>> [squares(step) for step in range(3)]
        [0, 1, 4]
    """

    def __init__(self, prepare: Callable[[int], T], steps: int) -> None:
        self._prepare, self._steps = prepare, steps
        self._thread = ThreadPoolExecutor(1, "prefetch")
        allowed = torch.get_num_threads()
        self._thread.submit(_use_one_thread).result()
        torch.set_num_threads(allowed)  # also of threads that are started later
        self._ahead: tuple[int, Future[T]] | None = None

    def __call__(self, step: int) -> T:
        """Return what a step needs, and start on the next one; what went wrong while preparing is raised here."""
        if self._ahead is not None and self._ahead[0] == step:
            result = self._ahead[1].result()
        else:
            result = self._thread.submit(self._prepare, step).result()
        following = step + 1
        self._ahead = (following, self._thread.submit(self._prepare, following)) if following < self._steps else None
        return result


def _use_one_thread() -> None:
    """Let torch use one thread for the operations of the calling thread, whatever is set elsewhere afterwards."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first call in a thread reads what is set for all; torch does not read it again
