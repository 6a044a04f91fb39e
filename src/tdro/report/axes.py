"""Axes of charts: where values lie, and which of them are labelled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Axis:
    """Where values lie between the ends of a chart.

    Attributes:
        low: Value at the beginning.
        high: Value at the end, above `low`.
        log: Whether the axis is logarithmic.
    """

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], log: bool = False) -> "Axis":
        """Make an axis with some room around values; of a logarithmic one, values above 0 count."""
        usable = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        low, high = (min(usable), max(usable)) if usable else (1.0, 1.0)
        if log:
            room = max((high / low) ** 0.06, 1.1)
            return cls(low / room, high * room, True)
        room = 0.06 * (high - low) or abs(high) or 1.0
        return cls(low - room, high + room)

    def at(self, value: float) -> float:
        """Place a value between 0 and 1; what lies outside, or is no number, is put on the edge."""
        if math.isnan(value):
            return 0.0
        if self.log:
            place = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        return min(max(place, 0.0), 1.0)

    def ticks(self, most: int = 7) -> list[float]:
        """Choose round values to label, about so many at most."""
        if self.log and self.high / self.low > 3:  # else equal steps are as readable
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for factors in (range(1, 10), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
                found = [f * 10.0**e for e in range(first, last + 1) for f in factors]
                found = [value for value in found if self.low <= value <= self.high]
                if len(found) <= most:
                    return found
            return found[:: -(-len(found) // most)]
        rough = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * f for f in (1, 2, 5, 10) if unit * f >= rough)
        return [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
