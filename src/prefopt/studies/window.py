"""What part of an axis is shown where a few runs lie far away from all others (a model that fell apart)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

WHISKER = 4.0  # middle halves beyond the middle half that are still shown


@dataclass(frozen=True)
class Window:
    """[low, high] of an axis; what lies outside is drawn at its edge."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], keep: Iterable[float] = ()) -> Window:
        """All finite values, or if some are far from the middle half, up to WHISKER times that beyond it; `keep` is inside."""
        known = np.array([v for v in values if math.isfinite(v)])
        kept = [v for v in keep if math.isfinite(v)]
        if not len(known):
            return cls(min(kept, default=0.0), max(kept, default=1.0))
        low, high = np.percentile(known, [25, 75])
        room = WHISKER * (high - low)
        inside = known[(known >= low - room) & (known <= high + room)] if room > 0 else known
        return cls(float(min([*inside, *kept])), float(max([*inside, *kept])))

    def clip(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def side(self, value: float) -> int:
        """-1 below, 0 inside, 1 above."""
        return int(value > self.high) - int(value < self.low)


def marker(x: int, y: int) -> str:
    """The mark of a point by the sides on which it lies outside: a triangle that points to where it is."""
    return "v" if y < 0 else "^" if y > 0 else ">" if x > 0 else "<" if x < 0 else "o"
