"""Additive statistics per group: sums that make many micro-batches and ranks equal to one big batch."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

COLUMNS = ("n", "sum_l", "sum_r", "sum_ll", "sum_rr", "sum_lr", "n_bad")


@dataclass(frozen=True)
class GroupStatistics:
    """Sums over the examples of each group, float64.

    `sums_GC` has one row per group and the columns n, sum(l), sum(r), sum(l^2), sum(r^2), sum(l*r), n_bad, where l and
    r are proxy and reference losses in nats. Examples with a non-finite loss count in `n_bad` only. Statistics of a
    union of examples are the sum of the statistics.
    """

    sums_GC: np.ndarray

    @classmethod
    def zeros(cls, n_groups: int) -> "GroupStatistics":
        """Return the statistics of no example at all."""
        return cls(np.zeros((n_groups, len(COLUMNS))))

    def __add__(self, other: "GroupStatistics") -> "GroupStatistics":
        return GroupStatistics(self.sums_GC + other.sums_GC)

    @property
    def count_G(self) -> np.ndarray:
        """Examples with finite losses, per group."""
        return self.sums_GC[:, 0]

    @property
    def bad_G(self) -> np.ndarray:
        """Examples dropped because a loss was not finite, per group."""
        return self.sums_GC[:, 6]

    @property
    def present_G(self) -> np.ndarray:
        """bool, groups with at least one usable example."""
        return self.count_G > 0

    @property
    def proxy_mean_G(self) -> np.ndarray:
        """Mean proxy loss in nats, 0 for an absent group."""
        mean_G: np.ndarray = self.sums_GC[:, 1] / np.maximum(self.count_G, 1)
        return mean_G

    @property
    def reference_mean_G(self) -> np.ndarray:
        """Mean reference loss in nats, 0 for an absent group."""
        mean_G: np.ndarray = self.sums_GC[:, 2] / np.maximum(self.count_G, 1)
        return mean_G


def group_statistics(proxy_B: Tensor, reference_B: Tensor, group_B: Tensor, n_groups: int) -> GroupStatistics:
    """Sum the losses of a batch per group, in float64, without tracking gradients.

    One small matrix leaves the device. The sums are a matrix product, so they are the same in every run on a device.

    Args:
        proxy_B: Proxy losses in nats, any floating type.
        reference_B: Reference losses of the same examples.
        group_B: int64, group of each example, 0..G-1.
        n_groups: G.

    Returns:
        Statistics of the batch.

    Example: one NaN is dropped and counted.
        >>> s = group_statistics(torch.tensor([1.0, 3.0, float("nan")]), torch.ones(3), torch.tensor([0, 0, 1]), 2)
        >>> s.proxy_mean_G.tolist(), s.bad_G.tolist()
        ([2.0, 0.0], [0.0, 1.0])
    """
    with torch.no_grad():
        proxy_B, reference_B = proxy_B.double(), reference_B.double()
        finite_B = proxy_B.isfinite() & reference_B.isfinite()
        l_B, r_B = proxy_B.where(finite_B, 0.0), reference_B.where(finite_B, 0.0)
        good_B = finite_B.double()
        column_BC = torch.stack([good_B, l_B, r_B, l_B * l_B, r_B * r_B, l_B * r_B, 1 - good_B], dim=1)
        member_GB = (torch.arange(n_groups, device=group_B.device)[:, None] == group_B[None, :]).double()
        return GroupStatistics((member_GB @ column_BC).cpu().numpy())
