"""Reward against KL: the frontier of several checkpoints or strengths, and fair comparison of two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prefopt.errors import PrefoptError

Point = tuple[float, float]


def envelope(points: Sequence[Point]) -> list[Point]:
    """The points (KL, reward) that no other point beats with as little KL, by rising KL."""
    best, kept = -math.inf, []
    for kl, reward in sorted(points, key=lambda p: (p[0], -p[1])):
        if reward > best:
            best = reward
            kept.append((kl, reward))
    return kept


def reward_at(points: Sequence[Point], kl: float) -> float:
    """Reward of the frontier at a KL: linear in sqrt(KL) between its points; never extrapolated."""
    curve = envelope(points)
    if not curve or not curve[0][0] <= kl <= max(p[0] for p in points):
        span = f"[{curve[0][0]:.3g}, {max(p[0] for p in points):.3g}]" if curve else "no points"
        raise PrefoptError(f"KL {kl:.3g} lies outside the measured range {span}; the frontier is not extrapolated")
    x = np.sqrt(np.maximum([p[0] for p in curve], 0.0))
    return float(np.interp(math.sqrt(max(kl, 0.0)), x, [p[1] for p in curve]))


def area(points: Sequence[Point], low: float, high: float) -> float:
    """Mean reward of the frontier over sqrt(KL) in [sqrt(low), sqrt(high)], a range that the points must cover."""
    if not 0 <= low < high:
        raise PrefoptError(f"the range of KL must be rising and not negative; got [{low}, {high}]")
    grid = np.linspace(math.sqrt(low), math.sqrt(high), 257)
    return float(np.mean([reward_at(points, min(max(x * x, low), high)) for x in grid]))
