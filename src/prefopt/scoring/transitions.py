"""Steps of the stochastic DDIM sampler as Gaussian transitions (2010.02502), whose density is known (2305.13301).

Sampling is a decision process: the state is (caption, t, x_t), the action x_{t'} is drawn from a Gaussian

    x0 = (x_t - sigma_t e) / signal_t                       e: the network's (guided) prediction of the noise
    sd = eta sqrt((1 - a')/(1 - a) (1 - a/a'))              a = abar_t, a' = abar_t'
    mu = sqrt(a') x0 + sqrt(1 - a' - sd^2) e
    x_{t'} = mu + sd N(0, I)

Everything here is a pure function of the network's answer, for every prediction type; with eta = 0 it is the
deterministic step, which flow models have as well.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import PrefoptError
from .schedules import Schedule, split, wide

OFFSET = 1  # of the grid: its last step leaves t = 1, so that it still lands lower, at 0


class Grid(NamedTuple):
    """The steps of a sampler: S times, falling, and where each step lands."""

    t: Tensor  # [S] long
    to: Tensor  # [S] long


class Transition(NamedTuple):
    """N Gaussians, and the clean latents that the answers stand for."""

    mean: Tensor  # [N, C, H, W]
    sd: Tensor  # [N]
    clean: Tensor  # [N, C, H, W]


def grid(schedule: Schedule, steps: int) -> Grid:
    """t in {1 + k (T // S), k = S-1 .. 0}, each step landing T // S lower, the last one at 0.

    Raises PrefoptError for flow models, and for a number of steps whose grid leaves 1 .. T-1.
    """
    refuse_flows(schedule)
    stride = schedule.steps // steps if steps > 0 else 0
    if stride < 1 or OFFSET + (steps - 1) * stride >= schedule.steps:
        raise PrefoptError(
            f"{steps} sampler steps do not fit into the {schedule.steps} timesteps of the model: the grid starts at "
            f"t = {OFFSET} and must end below {schedule.steps}. Give 1 to {schedule.steps - 1} steps"
        )
    t = OFFSET + stride * torch.arange(steps - 1, -1, -1)
    return Grid(t, (t - stride).clamp(min=0))


def refuse_flows(schedule: Schedule) -> None:
    """PrefoptError for a model whose sampler has no noise of its own."""
    if schedule.prediction == "flow":
        raise PrefoptError(
            "the steps of a flow model's sampler are deterministic and have no density; take a diffusion model "
            "(epsilon, v_prediction or sample)"
        )


def transition(schedule: Schedule, answer: Tensor, noisy: Tensor, t: Tensor, to: Tensor, eta: float) -> Transition:
    """The step from x_t [N, C, H, W] at t [N] to times `to` [N] below, given the network's answer [N, C, H, W].

    t and to: indices of diffusion models, s of flow models. eta: 0 is the deterministic step, 1 that of DDPM.
    Raises PrefoptError for noise in a flow model's step, eta outside [0, 1], and steps that do not go down.
    """
    if not 0 <= eta <= 1:
        raise PrefoptError(f"eta = {eta}: must lie in [0, 1]")
    if eta > 0:
        refuse_flows(schedule)
    if not t.is_cuda and not bool((to < t).all()):
        raise PrefoptError(f"a sampler's step from t = {t.tolist()} to {to.tolist()} does not go down")
    here, there = (schedule.level(x.cpu()) for x in (t, to))
    sd = eta * (there.sigma / here.sigma) * (1 - (here.signal / there.signal).square()).clamp(min=0).sqrt()
    back = (there.sigma.square() - sd.square()).clamp(min=0).sqrt()  # what of the predicted noise stays
    a, s, a_, b, sd = (x.to(answer) for x in (here.signal, here.sigma, there.signal, back, sd))
    clean, noise = split(schedule.prediction, answer, noisy, a, s)
    return Transition(wide(a_) * clean + wide(b) * noise, sd, clean)


def clean_of(schedule: Schedule, answer: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """The clean latents [N, C, H, W] that answers at times t [N] stand for."""
    level = schedule.level(t.cpu())
    return split(schedule.prediction, answer, noisy, level.signal.to(answer), level.sigma.to(answer))[0]


def log_density(x: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """[N] log N(x; mean, sd^2 I), SUMMED over the elements of x [N, C, H, W]; sd [N]."""
    each = -(x - mean).square() / (2 * wide(sd).square()) - wide(sd).log() - 0.5 * math.log(2 * math.pi)
    return each.flatten(1).sum(1)
