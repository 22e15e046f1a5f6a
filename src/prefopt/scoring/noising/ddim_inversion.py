"""DDIM inversion (DDIM-InPO, 2503.18454; with corrections ReNoise, as in SmPO, 2506.02698): the latent that an image
comes from, instead of the image with noise on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import PrefoptError
from ..schedules import Schedule, split, target, wide
from .base import Inputs, Network, Noised, Noising

OFFSET = 1  # of the grid of timesteps, as in every released Stable Diffusion


class Step(NamedTuple):
    """One step of some rows: from a level (which may lie before the schedule's first) to a later one."""

    number: int  # which step of the grid
    rows: Tensor  # [N] long
    origin: int
    landing: Tensor  # [N] long


@dataclass(frozen=True)
class DdimInversion(Noising):
    """The policy of the moment denoises an image backwards, over a grid of timesteps up to the image's own time tau.

    With r = T // steps the grid's origins are 1 - r, 1, 1 + r, ...; a step is made from every origin before tau, and
    leads r further, so the latent ends at the first level that is not before tau (or the last one). The network is
    then asked at tau, and its goal is the noise that image and latent imply there. The first origin is negative: the
    network is really asked at that time, the level is that of timestep 0.

    steps        of the whole grid
    eta          share of stochastic DDIM's own noise that is added after every step; 0: none
    corrections  ReNoise: how often the step is made again from where it started, with the mean of the noise used before
                 and the noise that is seen where it led
    exact_tau    the last step leads to tau itself
    """

    name: ClassVar[str] = "ddim_inversion"
    flows: ClassVar[bool] = False

    steps: int = 10
    eta: float = 0.0
    corrections: int = 0
    exact_tau: bool = False

    def check(self, schedule: Schedule) -> None:
        super().check(schedule)
        if not 1 <= self.steps <= schedule.steps:
            raise PrefoptError(f"an inversion of {self.steps} steps: there must be 1 .. {schedule.steps} of them")
        if schedule.clips:
            raise PrefoptError(
                "the scheduler clips the predicted image (clip_sample or thresholding in scheduler_config.json), which "
                "an inversion cannot undo; set it to false, as it is for every model of latents"
            )

    def draw(self, shape: torch.Size, schedule: Schedule, generator: torch.Generator) -> dict[str, Tensor]:
        """The noise of every step, of each image its own."""
        if self.eta == 0:
            return {}
        return {"inversion": torch.randn((shape[0], self.steps, *shape[1:]), generator=generator)}

    def __call__(self, x: Inputs, schedule: Schedule, policy: Network) -> Noised:
        assert schedule.alphas_cumprod is not None
        abar = schedule.alphas_cumprod.to(x.latents.device)
        latent = x.latents.clone()
        for step in self._path(x.t, schedule):
            latent[step.rows] = self._further(latent[step.rows], step, x, abar, schedule, policy)
        signal, sigma, time = x.level
        noise = (latent - wide(signal) * x.latents) / wide(sigma)
        return Noised(latent, time, target(schedule.prediction, x.latents, noise, signal, sigma))

    def _path(self, tau: Tensor, schedule: Schedule) -> Iterator[Step]:
        """The steps of rows with times tau [R], each row as far as its own."""
        stride, last = schedule.steps // self.steps, schedule.steps - 1
        asked = tau.cpu()
        for number in range(self.steps):
            origin = OFFSET + (number - 1) * stride
            rows = (asked > origin).nonzero()[:, 0].to(tau.device)
            if not len(rows):
                return
            landing = torch.full_like(tau[rows], min(origin + stride, last))
            if self.exact_tau:
                final = (tau[rows] <= origin + stride) | (number == self.steps - 1)
                landing = torch.where(final, tau[rows], landing)
            yield Step(number, rows, origin, landing)

    def _further(
        self, start: Tensor, step: Step, x: Inputs, abar: Tensor, schedule: Schedule, policy: Network
    ) -> Tensor:
        """Where the rows of a step are after it, [N, C, H, W]."""
        time = torch.full_like(step.landing, step.origin)
        before, after = abar[time.clamp(min=0)], abar[step.landing]
        a, s = (z.to(start.dtype) for z in (before.sqrt(), (1 - before).sqrt()))
        a_next, s_next = (wide(z.to(start.dtype)) for z in (after.sqrt(), (1 - after).sqrt()))

        def seen_in(latent: Tensor) -> Tensor:
            answer = policy(latent, time, rows=step.rows)
            return split(schedule.prediction, answer, latent, a, s)[1]

        def led_by(noise: Tensor) -> Tensor:
            return a_next * (start - wide(s) * noise) / wide(a) + s_next * noise

        noise = seen_in(start)
        for _ in range(self.corrections):
            noise = (noise + seen_in(led_by(noise))) / 2
        latent = led_by(noise)
        if self.eta > 0:
            variance = (1 - before) / (1 - after) * (1 - after / before)  # of stochastic DDIM on its way back
            drawn = x.drawn["inversion"][step.rows, step.number].to(start.dtype)
            latent = latent + wide((self.eta * variance.sqrt()).to(start.dtype)) * drawn
        return latent
