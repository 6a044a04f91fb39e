"""The weighted loss that the proxy descends on."""

from torch import Tensor


def pooled_example_weights(weights_G: Tensor, count_G: Tensor, group_B: Tensor) -> Tensor:
    """Give each example its factor in sum_g alpha_g * mean loss of group g, equation (5).

    w_i = alpha_g / n_g with n_g counted over the whole step, so the weighted loss does not depend on how the step is
    cut into micro-batches or ranks, nor on how often the sampler drew a group.

    Args:
        weights_G: alpha.
        count_G: Examples of each group in the step.
        group_B: int64, group of each example.

    Returns:
        [B] factors, in the type of `weights_G`.

    Example: three of four examples are of group 0.
        >>> import torch
        >>> pooled_example_weights(torch.tensor([0.5, 0.5]), torch.tensor([3, 1]), torch.tensor([0, 0, 0, 1]))
        tensor([0.1667, 0.1667, 0.1667, 0.5000])

    Source: paper, objective (2) and equation (5).
    """
    return weights_G[group_B] / count_G[group_B]


def released_example_weights(weights_G: Tensor, group_B: Tensor) -> Tensor:
    """Give each example its factor in the released code's proxy loss.

    w_i = alpha_g(i) / sum_j alpha_g(j) over the examples of one micro-batch of one rank: a batch of unlikely groups
    counts as much as any other.

    Example:
        >>> import torch
        >>> released_example_weights(torch.tensor([0.75, 0.25]), torch.tensor([0, 1, 1, 1]))
        tensor([0.5000, 0.1667, 0.1667, 0.1667])

    Source: released code.
    """
    example_B = weights_G[group_B]
    return example_B / example_B.sum()
