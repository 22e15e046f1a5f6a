"""How well a policy's implicit rewards agree with held-out preferences, and how well they are calibrated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prefopt.errors import PrefoptError
from prefopt.evaluation.estimate import NOT_FINITE, Estimate, normal, wilson_interval

Array = Sequence[float] | np.ndarray


def accuracy(reward_better: Array, reward_worse: Array) -> Estimate:
    """Share of pairs whose preferred response has the higher reward; equal rewards count one half.

    `reward_better`, `reward_worse` [P] in any unit. Pairs with a reward that is not finite are dropped and counted.
    """
    margins, dropped = _margins(reward_better, reward_worse)
    right = np.where(margins > 0, 1.0, np.where(margins < 0, 0.0, 0.5))
    estimate = normal(right, dropped)
    interval = wilson_interval(estimate.value, estimate.n) if estimate.n else estimate.interval
    return Estimate(estimate.value, estimate.standard_error, estimate.n, dropped, interval)


def margin(reward_better: Array, reward_worse: Array) -> Estimate:
    """Mean of reward_better - reward_worse over pairs [P]."""
    return normal(*_margins(reward_better, reward_worse))


def calibration_error(reward_better: Array, reward_worse: Array, *, bins: int = 10, seed: int = 0) -> Estimate:
    """Expected calibration error of P = sigmoid(reward_better - reward_worse).

    conf = max(P, 1 - P) and correct = [P >= 1/2], as all pairs are given in the order that people preferred.
    The standard error and the interval come from 200 bootstrap samples of the pairs.
    """
    margins, dropped = _margins(reward_better, reward_worse)
    if len(margins) == 0:
        return Estimate(math.nan, math.nan, 0, dropped)
    p = 1 / (1 + np.exp(-np.clip(margins, -60, 60)))
    confidence, correct = np.maximum(p, 1 - p), (p >= 0.5).astype(float)
    value = expected_calibration_error(confidence, correct, bins=bins)
    if len(margins) < 2:
        return Estimate(value, math.nan, len(margins), dropped)
    draw = np.random.default_rng(seed)
    rows = draw.integers(0, len(p), (200, len(p)))
    samples = [expected_calibration_error(confidence[r], correct[r], bins=bins) for r in rows]
    low, high = np.quantile(samples, [0.025, 0.975])
    return Estimate(value, float(np.std(samples, ddof=1)), len(p), dropped, (float(low), float(high)))


def expected_calibration_error(confidence: Array, correct: Array, *, bins: int = 10) -> float:
    """ECE = sum_k |B_k|/n |acc(B_k) - conf(B_k)| over right-closed bins ((k-1)/M, k/M]; 0 goes to the first.

    `confidence` [N] in [0, 1], `correct` [N] in {0, 1} (or probabilities). Empty bins add nothing.
    """
    conf, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if bins < 1:
        raise PrefoptError(f"the calibration error needs at least one bin; got bins = {bins}")
    if len(conf) != len(right) or len(conf) == 0:
        raise PrefoptError(f"confidence has {len(conf)} entries, correct {len(right)}; both need the same n >= 1")
    if not ((conf >= 0) & (conf <= 1)).all():
        raise PrefoptError("confidences must lie in [0, 1]")
    index = np.clip(np.ceil(conf * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=right - conf, minlength=bins)
    return float(np.abs(gaps).sum() / len(conf))


def likelihood_calibration_error(mean_better: Array, mean_worse: Array, *, bins: int = 10) -> float:
    """ECE of a language model's own confidence, as in f-DPO's code (2309.16240).

    `mean_better`, `mean_worse` [P]: log-probability of each response divided by its tokens. The confidence is that of
    the preferred response, exp of it; it counts as right where it is the higher of the two, a tie as wrong. Bins are
    left-closed, [k/M, (k+1)/M), the last one closed.
    """
    margins, _ = _margins(mean_better, mean_worse)
    conf = np.exp(np.asarray(mean_better, dtype=np.float64).reshape(-1))
    if len(margins) != len(conf) or not len(conf) or (conf > 1).any():
        raise PrefoptError("average log-probabilities must be finite, at most 0, and of at least one pair")
    index = np.minimum((conf * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weights=(margins > 0) - conf, minlength=bins)
    return float(np.abs(gaps).sum() / len(conf))


def _margins(better: Array, worse: Array) -> tuple[np.ndarray, dict[str, int]]:
    a, b = np.asarray(better, dtype=np.float64).reshape(-1), np.asarray(worse, dtype=np.float64).reshape(-1)
    if len(a) != len(b):
        raise PrefoptError(f"{len(a)} rewards of preferred responses for {len(b)} of the others; they come in pairs")
    keep = np.isfinite(a) & np.isfinite(b)
    return a[keep] - b[keep], ({NOT_FINITE: int((~keep).sum())} if not keep.all() else {})
