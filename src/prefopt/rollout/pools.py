"""Step-aware roll-outs (2406.04314): at every step a pool of candidates from one state, judged by what they promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..scoring.schedules import Schedule
from ..scoring.transitions import Grid, clean_of, transition
from .walk import Answer, sample, walk

Judge = Callable[[Tensor, int], Tensor]
"""(clean latents [B, k, C, H, W], the time at which they are judged) -> scores [B, k]."""
Pick = Callable[[int], Tensor]
"""Number of a pool -> which candidate of each prompt goes on [B]."""


@dataclass(frozen=True)
class Pools:
    """How a method wants its pools; see `spo_step`. span: steps from one verdict to the next."""

    pool: int = 4
    threshold: float = 0.3
    divert: int = 4
    span: int = 1
    steps: int = 20
    eta: float = 1.0
    guidance: float = 5.0
    best: bool = False

    @property
    def verdicts(self) -> int:
        """Pools of a roll-out."""
        return (self.steps - self.divert) // self.span


class Pool(NamedTuple):
    """One verdict about B prompts: scores of all k candidates, and the `span` steps of best and worst."""

    scores: Tensor  # [B, k]
    gap: Tensor  # [B] difference of softmax(best, worst)
    states: Tensor  # [B, span, 2, C, H, W]: x_t of best and worst; the same where span is 1
    nexts: Tensor  # [B, span, 2, C, H, W]


def pools(
    answer: Callable[[int], Answer],
    schedule: Schedule,
    grid: Grid,
    how: Pools,
    start: Tensor,
    noise: Callable[[int, int], Tensor],
    judge: Judge,
    pick: Pick,
) -> list[Pool]:
    """All verdicts of a roll-out of B prompts.

    answer  (k) -> what the policy says to B x k states, candidates of a prompt side by side
    start   [B, C, H, W]
    noise   (step, k) -> [B x k, C, H, W]; k is 1 before the first pool
    pick    which candidate goes on; `how.best` takes the best instead
    """
    n, k = len(start), how.pool
    state = start
    head = Grid(grid.t[: how.divert], grid.to[: how.divert])
    for step in walk(answer(1), schedule, state, *head, eta=how.eta, noise=lambda i: noise(i, 1)):
        state = step.next
    said = answer(1)(state, grid.t[how.divert].expand(n))
    found = []
    for number in range(how.verdicts):
        first = how.divert + number * how.span
        path: list[tuple[Tensor, Tensor]] = []
        here, told = (x.repeat_interleave(k, 0) for x in (state, said))
        for i in range(first, first + how.span):
            if i > first:
                told = answer(k)(here, grid.t[i].expand(n * k))
            moved = transition(schedule, told, here, grid.t[i].expand(n * k), grid.to[i].expand(n * k), how.eta)
            there = sample(moved, noise(i, k))
            path.append((here, there))
            here = there
        last = first + how.span == how.steps
        time = 0 if last else int(grid.t[first + how.span])
        if not last:
            told = answer(k)(here, torch.tensor(time).expand(n * k))
        clean = here if last else clean_of(schedule, told, here, torch.tensor(time).expand(n * k))
        scores = judge(clean.unflatten(0, (n, k)), time).to(start.device, torch.float64)
        w, l = scores.argmax(1), scores.argmin(1)
        found.append(_pool(scores, w, l, path, n, k))
        chosen = w if how.best else pick(number).to(start.device)
        rows = torch.arange(n, device=start.device) * k + chosen
        state, said = here[rows], told[rows]
    return found


def _pool(scores: Tensor, w: Tensor, l: Tensor, path: list[tuple[Tensor, Tensor]], n: int, k: int) -> Pool:
    rows = torch.arange(n, device=scores.device)
    gap = torch.tanh((scores[rows, w] - scores[rows, l]) / 2)

    def two(x: Tensor) -> Tensor:
        each = x.unflatten(0, (n, k))
        return torch.stack([each[rows, w], each[rows, l]], 1)

    states, nexts = (torch.stack([two(pair[j]) for pair in path], 1) for j in range(2))
    return Pool(scores, gap, states, nexts)
