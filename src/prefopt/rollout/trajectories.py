"""Whole roll-outs of a diffusion policy, several of a prompt from one noise, and what is said about their ends (2311.13231)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import PrefoptError
from ..rewards.load import Reward
from ..scoring.schedules import Schedule
from ..scoring.transitions import Grid
from .walk import Answer, walk


@dataclass(frozen=True)
class Trajectories:
    """How a method wants its roll-outs; see `d3po`. fraction: of a pair's steps that are trained on."""

    samples: int = 2
    steps: int = 20
    eta: float = 1.0
    guidance: float = 5.0
    fraction: float = 1.0

    @property
    def kept(self) -> int:
        """Steps of a pair that are trained on."""
        return max(1, int(self.steps * self.fraction))


def roll_out(
    answer: Answer, schedule: Schedule, grid: Grid, start: Tensor, noise: Sequence[Tensor], eta: float
) -> Tensor:
    """[N, S + 1, C, H, W] states x_T .. x_0 of N samples from `start` [N, C, H, W], noise[i] [N, C, H, W] in step i."""
    states = [start]
    for step in walk(answer, schedule, start, *grid, eta=eta, noise=lambda i: noise[i]):
        states.append(step.next)
    return torch.stack(states, 1)


def verdict(first: Tensor, second: Tensor) -> Tensor:
    """1 where `first` [..., K] is better, -1 where `second` is, 0 for ties and what cannot be compared (Pareto).

    Better: nowhere worse and somewhere better; with one objective it is plain comparison. PrefoptError for vectors of
    different length and for what is no number.
    """
    if first.shape != second.shape:
        raise PrefoptError(f"scores of {list(first.shape)} and {list(second.shape)} numbers cannot be compared")
    if not bool(torch.isfinite(first).all() & torch.isfinite(second).all()):
        raise PrefoptError("a score is missing or no finite number")
    gap = first - second
    wins, loses = (gap >= 0).all(-1) & (gap > 0).any(-1), (gap <= 0).all(-1) & (gap < 0).any(-1)
    return wins.int() - loses.int()


def verdict_scores(reward: Reward, prompts: Sequence[str], images: Sequence[Any]) -> Tensor:
    """[n, K] what a reward says: its one number, or all objectives where several stand side by side unnamed."""
    found = reward.objectives(list(prompts), list(images))
    one = reward.objective is not None or len(found) == 1 or "reward" in found
    names = [reward.headline(found)] if one else sorted(found)
    return torch.tensor([found[name] for name in names], dtype=torch.float64).T
