"""What a reproduction states before it runs, and the pure step from measurements to a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import PrefoptError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .bench import Bench

Measurements = Mapping[str, Any]
"""What one seed measured: plain JSON data."""
Verdict = Literal["holds", "fails"]


@dataclass(frozen=True)
class Demand:
    """One condition of a claim: a number of each seed's measurements, and the bounds that it must keep.

    words  what is demanded, as a reader of the verdict sees it, without the bounds
    of     measurements of one seed -> the number; NaN means that it could not be measured, and meets no bound
    over   "each": every seed must keep the bounds; "mean": their mean must
    """

    words: str
    of: Callable[[Measurements], float]
    least: float = -math.inf
    most: float = math.inf
    over: Literal["each", "mean"] = "each"

    def __post_init__(self) -> None:
        if not self.least <= self.most or (math.isinf(self.least) and math.isinf(self.most)):
            raise PrefoptError(
                f"'{self.words}' can never fail or never hold: its bounds are [{self.least}, {self.most}]"
            )

    @property
    def criterion(self) -> str:
        """The demand with its bounds, in words."""
        low = f"at least {self.least:g}" if math.isfinite(self.least) else ""
        high = f"at most {self.most:g}" if math.isfinite(self.most) else ""
        who = "on every seed" if self.over == "each" else "in the mean over seeds"
        return f"{self.words}: {' and '.join(filter(None, (low, high)))} {who}"

    def check(self, seeds: Sequence[Measurements]) -> Check:
        """Whether the measurements of all seeds meet it."""
        values = [float(self.of(m)) for m in seeds]
        mean = float(np.mean(values)) if values else math.nan
        error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
        judged = values if self.over == "each" else [mean]
        met = bool(values) and all(self.least <= v <= self.most for v in judged)
        return Check(self.criterion, met, mean, error, tuple(values))


@dataclass(frozen=True)
class Check:
    """A demand after the runs: met or not, the mean over seeds with its standard error, and each seed's number."""

    criterion: str
    met: bool
    mean: float
    se: float
    seeds: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers that do not exist become null."""
        known = {"mean": self.mean, "se": self.se}
        return {
            "criterion": self.criterion,
            "met": self.met,
            **{name: value if math.isfinite(value) else None for name, value in known.items()},
            "seeds": [value if math.isfinite(value) else None for value in self.seeds],
        }


@dataclass(frozen=True)
class Reproduction:
    """A paper's headline claim in small. Everything here is fixed before a seed is run.

    claim      what the paper says, in a sentence
    setting    world, models, data, budget, and how the baseline was given its chance, in words
    demands    all of them must be met for the claim to hold
    settings   the numbers that `run` uses (JSON); runs of other settings are never mixed with these
    run        one seed, on its bench -> its measurements
    plot       measurements of all seeds -> figure
    steps      how many steps `run` does on its bench, for the progress
    remarks    where this differs from the paper, what the pilot (on seed 0, which is never judged) decided
    keeps      files that `run` leaves in the bench's folder and that go beside the verdict, from the first seed
    seeds      how many seeds the verdict is meant to rest on
    """

    slug: str
    paper: str
    claim: str
    setting: str
    demands: tuple[Demand, ...]
    settings: Mapping[str, Any]
    run: Callable[[Bench], Measurements]
    plot: Callable[[Sequence[Measurements]], Figure]
    steps: int
    remarks: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    seeds: int = 3

    def judge(self, seeds: Sequence[Measurements]) -> Judgement:
        """The verdict on measurements of several seeds; pure."""
        if not seeds:
            raise PrefoptError(f"{self.slug}: a verdict needs the measurements of at least one seed")
        return Judgement(tuple(demand.check(seeds) for demand in self.demands))


@dataclass(frozen=True)
class Judgement:
    """All demands after the runs."""

    checks: tuple[Check, ...] = field(default_factory=tuple)

    @property
    def verdict(self) -> Verdict:
        return "holds" if self.checks and all(check.met for check in self.checks) else "fails"


def statement(reproduction: Reproduction) -> dict[str, Any]:
    """What was fixed beforehand, as the verdict's file repeats it."""
    return {
        "slug": reproduction.slug,
        "paper": reproduction.paper,
        "claim": reproduction.claim,
        "setting": reproduction.setting,
        "criterion": [demand.criterion for demand in reproduction.demands],
        "remarks": list(reproduction.remarks),
        "settings": dict(reproduction.settings),
    }
