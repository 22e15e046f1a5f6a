"""Win rates from judgments given in both orders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefopt.errors import PrefoptError
from prefopt.evaluation.estimate import Estimate, bootstrap_interval, finite_groups, normal, wilson_interval

Array = Sequence[float] | np.ndarray
Groups = Sequence[int] | np.ndarray | None
NO_JUDGMENT = "no judgment in one of the two orders"


@dataclass(frozen=True)
class WinRate:
    """`rate` with its interval; wins, ties and losses count judgments on which both orders agree, or do not (ties)."""

    rate: Estimate
    wins: int
    ties: int
    losses: int
    position_bias: Estimate

    def to_json(self) -> dict:
        counts = {"wins": self.wins, "ties": self.ties, "losses": self.losses}
        return self.rate.to_json() | counts | {"position_bias": self.position_bias.to_json()}


def win_rate(
    first: Array,
    second: Array,
    groups: Groups = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> WinRate:
    """Win rate of the model from a judge asked in both orders.

    `first` [N]: P(model better) when the model's answer stands first; `second` [N]: the same probability when it
    stands second. The score of a judgment is their mean, so a judge that follows the position gives 1/2.
    A judgment missing (NaN) in one order is dropped. `groups` [N] names prompts; the interval resamples prompts.
    position_bias is the mean of first - second: 0 for a fair judge, 1 for one that always takes the first answer.
    """
    a, b = np.asarray(first, dtype=np.float64).reshape(-1), np.asarray(second, dtype=np.float64).reshape(-1)
    if len(a) != len(b):
        raise PrefoptError(f"{len(a)} judgments in the first order, {len(b)} in the second; both orders are needed")
    outside = (a < 0) | (a > 1) | (b < 0) | (b > 1)
    if outside.any():
        row = int(np.argmax(outside))
        raise PrefoptError(f"judgment {row} is {a[row]}, {b[row]}: a judge answers P(first answer is better) in [0, 1]")
    both = (a + b) / 2
    wins, losses = int(((a > 0.5) & (b > 0.5)).sum()), int(((a < 0.5) & (b < 0.5)).sum())
    ties = int(np.isfinite(both).sum()) - wins - losses
    bias, dropped = finite_groups(a - b, groups, NO_JUDGMENT)
    return WinRate(share(both, groups, bootstrap=bootstrap, seed=seed), wins, ties, losses, normal(bias, dropped))


def share(outcomes: Array, groups: Groups = None, *, bootstrap: int = 1000, seed: int = 0) -> Estimate:
    """Mean of outcomes [N] in [0, 1], NaN dropped; bootstrap interval over prompts.

    Where all prompts agree, a bootstrap would claim certainty from any n: Wilson's interval is given instead.
    """
    kept, dropped = finite_groups(outcomes, groups, NO_JUDGMENT)
    estimate = normal(kept, dropped)
    if estimate.n == 0:
        return estimate
    if estimate.n == 1 or math.isclose(kept.min(), kept.max()):
        return replace(estimate, interval=wilson_interval(min(max(estimate.value, 0.0), 1.0), estimate.n))
    return replace(estimate, interval=bootstrap_interval(kept, bootstrap, seed))
