"""Learning rate over the steps."""

import math


def learning_rate_share(step: int, steps: int, warmup_steps: int, schedule: str, floor: float) -> float:
    """Compute the share of the peak learning rate at a step.

    Linear warm-up that reaches 1 at its last step, then constant, linear or cosine down to `floor` at the last step.

    Args:
        step: From 0 to steps - 1.
        steps: All steps of the stage.
        warmup_steps: Steps of warm-up.
        schedule: "constant", "linear" or "cosine".
        floor: Share left at the last step, 0 to 1.

    Returns:
        A factor above 0 (0 only where the floor is 0), at most 1.

    Example:
        >>> [round(learning_rate_share(t, 5, 2, "linear", 0.1), 3) for t in range(5)]
        [0.5, 1.0, 0.7, 0.4, 0.1]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    start = max(warmup_steps - 1, 0)
    progress = (step - start) / max(steps - 1 - start, 1)
    if schedule == "constant":
        return 1.0
    decay = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return floor + (1 - floor) * decay
