"""Expert images noised as usual, and beside them states of the policy's own sampling paths (Diffusion-DRO, 2510.18353).

A snapshot of the policy samples from noise under the expert's caption, without guidance, on a grid of times whose offset
is the example's own; at the example's time the path is looked at: its state is what is seen, and what the snapshot itself
predicted there is the goal. So expert row and own row share caption and time, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import PrefoptError
from ..schedules import Schedule
from ..transitions import transition
from .base import Inputs, Network, Noised, Noising, guided, plain


@dataclass(frozen=True)
class OwnPath(Noising):
    """Forward noising, and the row set `own`.

    steps      of the sampler: times lie T // steps apart, through the example's own time
    guidance   of the sampler; 1: none
    refresh    optimiser steps from one snapshot to the next; 1: the policy as it is
    """

    name: ClassVar[str] = "own_path"
    shared: ClassVar[bool] = False
    apart: ClassVar[str] = "own"

    steps: int = 20
    guidance: float = 1.0
    refresh: int = 1

    @property
    def teacher_rate(self) -> float | None:
        return None if self.refresh == 1 else 1.0

    @property
    def teacher_every(self) -> int:
        return self.refresh

    @property
    def from_noise(self) -> bool:
        return True

    def check(self, schedule: Schedule) -> None:
        super().check(schedule)
        if not 1 <= self.steps <= schedule.steps:
            raise PrefoptError(f"steps = {self.steps} of the sampler must lie in 1 .. {schedule.steps}")

    def draw(self, shape: torch.Size, schedule: Schedule, generator: torch.Generator) -> dict[str, Tensor]:
        """Where each path starts."""
        return {"path_start": torch.randn(shape, generator=generator)}

    def __call__(self, x: Inputs, schedule: Schedule, policy: Network) -> Noised:
        return plain(x, schedule)

    def beside(self, x: Inputs, rows: Tensor, schedule: Schedule, policy: Network) -> Noised:
        """State, time and the snapshot's prediction where each path reaches the time of its row."""
        state, stride = x.drawn["path_start"][rows].to(x.latents.dtype), self._stride(schedule)
        t = x.t[rows].cpu()  # waits once; where each path is follows from its time alone
        moves = self._moves(t, schedule)
        answer = torch.empty_like(state)
        for left in range(int(moves.max()), -1, -1):
            there = (moves >= left).nonzero()[:, 0]
            on, at = there.to(state.device), t[there] + left * stride
            said = guided(policy, state[on], schedule.level(at).time.to(state.device), rows[on], self.guidance)
            if left:
                state[on] = transition(schedule, said, state[on], at, at - stride, 0.0).mean
            else:
                answer[on] = said
        return Noised(state, x.level.time[rows], answer)

    def _stride(self, schedule: Schedule) -> float | int:
        return 1 / self.steps if schedule.prediction == "flow" else schedule.steps // self.steps

    def _moves(self, t: Tensor, schedule: Schedule) -> Tensor:
        """[n] steps of the grid through t above it: s + k / steps < 1 of flows, t + k stride < T."""
        if schedule.prediction == "flow":
            return ((1 - t) * self.steps).ceil().long() - 1
        return torch.div(schedule.steps - 1 - t, self._stride(schedule), rounding_mode="floor")
