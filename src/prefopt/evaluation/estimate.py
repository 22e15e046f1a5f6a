"""Numbers with their uncertainty: every aggregate of an evaluation is an `Estimate`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefopt.errors import PrefoptError

Z95 = 1.959963984540054
NOT_FINITE = "not a finite number"


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error, how many records it rests on, and what was dropped and why.

    `value`, `standard_error` and `interval` are NaN where the data cannot support them (no record, or one record).
    `interval` is a 95 % confidence interval; `dropped` maps a reason to a number of records.
    """

    value: float
    standard_error: float
    n: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    interval: tuple[float, float] = (math.nan, math.nan)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers that do not exist become null."""
        low, high = (_number(x) for x in self.interval)
        return {
            "value": _number(self.value),
            "se": _number(self.standard_error),
            "n": self.n,
            "ci": None if low is None or high is None else [low, high],
            "dropped": dict(self.dropped),
        }


def _number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def mean(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[int] | np.ndarray | None = None,
    reason: str = NOT_FINITE,
) -> Estimate:
    """Mean with standard error std(n - 1)/sqrt(n) and a normal 95 % interval.

    `values` [N]; entries that are not finite are dropped and counted. `groups` [N] names the prompt of each value:
    several samples of one prompt are not independent, so they are averaged first and n counts prompts.
    `reason` says in the record why a value may be missing.
    """
    kept, dropped = finite_groups(values, groups, reason)
    return normal(kept, dropped)


def normal(values: np.ndarray, dropped: Mapping[str, int] | None = None) -> Estimate:
    """`mean` of values [N] that are all finite, independent, and already averaged by prompt."""
    n, dropped = len(values), dropped or {}
    if n == 0:
        return Estimate(math.nan, math.nan, 0, dropped)
    value = float(values.mean())
    error = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Estimate(value, error, n, dropped, (value - Z95 * error, value + Z95 * error))


def finite_groups(
    values: Sequence[float] | np.ndarray, groups: Sequence[int] | np.ndarray | None, reason: str = NOT_FINITE
) -> tuple[np.ndarray, dict[str, int]]:
    """The finite values averaged inside each group, in the order of the groups' ids, and what was dropped."""
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    keep = np.isfinite(array)
    dropped = {reason: int((~keep).sum())} if not keep.all() else {}
    if groups is None:
        return array[keep], dropped
    ids = np.asarray(groups).reshape(-1)
    if len(ids) != len(array):
        raise PrefoptError(f"groups has {len(ids)} entries for {len(array)} values; give one group per value")
    if not keep.any():
        return array[keep], dropped
    _, index = np.unique(ids[keep], return_inverse=True)
    return np.bincount(index, weights=array[keep]) / np.bincount(index), dropped


def paired_difference(
    after: Sequence[float] | np.ndarray,
    before: Sequence[float] | np.ndarray,
    groups: Sequence[int] | np.ndarray | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean of after - before on the same prompts: paired standard error, and a paired bootstrap interval.

    `after`, `before` [N] belong to the same prompt and sample number; a pair with a side that is not finite is dropped.
    """
    a, b = (np.asarray(x, dtype=np.float64).reshape(-1) for x in (after, before))
    if len(a) != len(b):
        raise PrefoptError(f"a paired difference needs equal numbers of values; after has {len(a)}, before {len(b)}")
    with np.errstate(invalid="ignore"):
        differences, dropped = finite_groups(a - b, groups)
    estimate = normal(differences, dropped)
    interval = bootstrap_interval(differences, bootstrap, seed) if len(differences) > 1 else (math.nan, math.nan)
    return Estimate(estimate.value, estimate.standard_error, estimate.n, dropped, interval)


def bootstrap_interval(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of values [N] under resampling of its entries (the prompts)."""
    draw = np.random.default_rng(seed)
    means = [values[draw.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def wilson_interval(p: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share p of n trials; stays inside [0, 1] and is honest at p = 0 and 1."""
    if n < 1 or not 0 <= p <= 1:
        raise PrefoptError(f"a Wilson interval needs n >= 1 and a share in [0, 1]; got p = {p}, n = {n}")
    centre = p + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
