"""Truncated diffusion fine-tuning (Self-NPO, 2505.11777): a network's own unfinished sample, noised again.

A teacher denoises a few DDIM steps of a coarse grid, with its guidance taken away or turned round, and stops on the way.
Its last estimate of the clean latent is the goal; what is seen is the INTERMEDIATE state with noise added, not the
estimate: an estimate is a mean, and noised it would be no sample of any noise level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import PrefoptError
from ..schedules import Schedule, split, wide
from .base import Inputs, Network, Noised, Noising, guided

Estimates = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(states [N, C, H, W], timesteps [N], rows [N]) -> clean latents and noise [N, C, H, W] that the network sees in them."""


class RolledOut(NamedTuple):
    """Where samples stopped, and the network's last estimate of what they become."""

    state: Tensor  # [R, C, H, W]
    t: Tensor  # [R] long, the noise level of `state`
    clean: Tensor  # [R, C, H, W]


def roll_out(
    estimates: Estimates, start: Tensor, place: Tensor, moves: Tensor, alphas_cumprod: Tensor, grid: int,
    leave_early: bool = False,
) -> RolledOut:  # fmt: skip
    """`moves` [R] DDIM moves from `start` [R, C, H, W] at the grid's time `place` [R] (0 .. grid - 1), evaluated in between.

    A move from place 0 ends at timestep 0, where a sample stays and is evaluated once more. leave_early: the official
    code's rule, by which nothing more is evaluated once ALL samples of a batch are there; without it a sample does not
    depend on its company.
    """
    stride = len(alphas_cumprod) // grid
    state, clean, place = start.clone(), torch.zeros_like(start), place.clone()
    waiting = torch.ones_like(place, dtype=torch.bool)
    for done in range(int(moves.max()) + 1):
        rows = waiting.nonzero()[:, 0]
        at = _times(place[rows], stride)
        clean[rows], noise = estimates(state[rows], at, rows)
        waiting[rows] = (done < moves[rows]) & (place[rows] >= 0)
        moving = waiting[rows]
        rows = rows[moving]
        place[rows] -= 1
        a, s = _coefficients(alphas_cumprod, _times(place[rows], stride), state.dtype)
        state[rows] = wide(a) * clean[rows] + wide(s) * noise[moving]
        if not len(rows) or (leave_early and bool((place < 0).all())):
            break
    return RolledOut(state, _times(place, stride), clean)


def noised_again(state: Tensor, t: Tensor, later: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """States [R, C, H, W] of timesteps `t` [R] at the later timesteps `later` [R] of the same forward process."""
    now, then = alphas_cumprod[t], alphas_cumprod[later]
    ratio = (then / now).sqrt()
    spread = ((1 - then) - (1 - now) * then / now).sqrt()
    return wide(ratio.to(state.dtype)) * state + wide(spread.to(state.dtype)) * noise


@dataclass(frozen=True)
class TruncatedRollout(Noising):
    """What the student sees is a stopped sample of its teacher, noised again; the goal is what the teacher saw in it.

    guidance      w of the roll-out: e_c + w (e_c - e_u); -1 is the empty caption's prediction alone
    evaluations   of the teacher; one more than it makes moves
    grid          DDIM times that the model's timesteps are divided into
    from_noise    start from noise at the last time of the grid; else from the example's latents at a random one
    random_moves  draw the number of moves from evaluations - 1 .. grid - 1
    ema           the teacher is a running mean of the policy with this decay
    huber_c       of the elementwise pseudo-Huber error of the clean estimates; None: their squared error
    """

    name: ClassVar[str] = "truncated_rollout"
    flows: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    caption_dropout: ClassVar[float] = 0.0

    guidance: float = -1.0
    evaluations: int = 6
    grid: int = 25
    from_noise: bool = False
    random_moves: bool = False
    ema: float = 0.999
    huber_c: float | None = 0.001

    @property
    def teacher_rate(self) -> float:
        return 1 - self.ema

    @property
    def reads_images(self) -> bool:
        return not self.from_noise

    def check(self, schedule: Schedule) -> None:
        super().check(schedule)
        steps, abar = schedule.steps, schedule.alphas_cumprod
        if self.grid > steps or steps % self.grid:
            raise PrefoptError(f"a grid of {self.grid} times must divide the model's {steps} timesteps")
        if schedule.prediction == "epsilon" and abar is not None and float(abar.min()) == 0:
            raise PrefoptError(
                "this schedule ends in pure noise, in which a predicted noise says nothing of the latents"
            )

    def draw(self, shape: torch.Size, schedule: Schedule, generator: torch.Generator) -> dict[str, Tensor]:
        """Where a sample starts, how many moves it makes, and at which later time it is seen, with which noise."""
        k, steps, n = shape[0], schedule.steps, self.grid
        places = n if self.evaluations > 1 else n - 1  # with no move from the last time no later time would be left
        place = torch.randint(places, (k,), generator=generator)
        moves = torch.full((k,), self.evaluations - 1)
        if self.from_noise:
            place = torch.full((k,), n - 1)
        if self.random_moves:
            moves = torch.randint(self.evaluations - 1, n, (k,), generator=generator)
        stop = _times((place - moves).clamp(min=-1), steps // n)
        share = torch.rand(k, generator=generator, dtype=torch.float64)
        later = stop + 1 + (share * (steps - 1 - stop)).long()  # uniform over stop + 1 .. steps - 1
        noise = torch.randn(shape, generator=generator)
        return {"place": place, "moves": moves, "later": later, "noise_again": noise}

    def __call__(self, x: Inputs, schedule: Schedule, policy: Network) -> Noised:
        abar = _levels(schedule, x.latents.device)
        place, later = x.drawn["place"], x.drawn["later"]
        a, s = _coefficients(abar, _times(place, schedule.steps // self.grid), x.latents.dtype)
        start = wide(a) * x.latents + wide(s) * x.noise

        def estimates(state: Tensor, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            answer = guided(policy, state, t, rows, 1 + self.guidance)
            return split(schedule.prediction, answer, state, *_coefficients(abar, t, state.dtype))

        stopped = roll_out(estimates, start, place, x.drawn["moves"], abar, self.grid)
        noise = x.drawn["noise_again"].to(x.latents.dtype)
        return Noised(noised_again(stopped.state, stopped.t, later, noise, abar), later, stopped.clean)

    def error(self, answer: Tensor, seen: Noised, schedule: Schedule) -> Tensor:
        """Between estimates of the clean latent, not between predictions: noisy levels weigh more."""
        levels = _coefficients(_levels(schedule, answer.device), seen.time, answer.dtype)
        gap = split(schedule.prediction, answer, seen.noisy, *levels)[0] - seen.goal
        c = self.huber_c
        return gap.square() if c is None else (gap.square() + c * c).sqrt() - c


def _times(place: Tensor, stride: int) -> Tensor:
    """Timesteps of places on the grid: 39, 79, ... for a stride of 40; place -1 is timestep 0."""
    return ((place + 1) * stride - 1).clamp(min=0)


def _levels(schedule: Schedule, device: torch.device) -> Tensor:
    assert schedule.alphas_cumprod is not None  # `check` has refused flow models
    return schedule.alphas_cumprod.to(device)


def _coefficients(alphas_cumprod: Tensor, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    abar = alphas_cumprod[t]
    return abar.sqrt().to(dtype), (1 - abar).sqrt().to(dtype)
