"""Noise levels of a diffusion or flow model: how a clean latent is noised, and what the network is asked to predict.

One linear form serves all four parameterisations: `z_t = signal * z_0 + sigma * eps`. Diffusion: signal = sqrt(abar_t),
sigma = sqrt(1 - abar_t), t an index 0 .. T-1 of the model's own scheduler. Flow (rectified flow, SD3 and Flux sign):
signal = 1 - s, sigma = s, s in (0, 1), and the network reads T * s as its time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..errors import PrefoptError

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
Density = Literal["logit_normal", "uniform"]
Times = Literal["all", "turbo", "refiner"]


class Level(NamedTuple):
    """Noise levels [G]: the coefficients of the clean latent and of the noise, and the time that the network reads."""

    signal: Tensor  # [G] float64
    sigma: Tensor  # [G] float64
    time: Tensor  # [G] long for diffusion, float64 for flow


@dataclass(frozen=True)
class Schedule:
    """The noise levels that a model was trained on.

    prediction      what the network's output means
    steps           T, the number of training timesteps (1000 in every published model)
    alphas_cumprod  [T] float64 for diffusion, None for flow
    density         flow: how s is drawn; the choice of the base model's pre-training
    shift           flow: s <- shift*s / (1 + (shift-1)*s), by default the scheduler's own; 1 is none
    clips           the scheduler's samplers clip the image that they predict
    times           which timesteps of a diffusion model are drawn: all; turbo: 249, 499, 749, 999, those of a model
                    distilled to four steps; refiner: 0 .. 199
    """

    prediction: Prediction
    steps: int
    alphas_cumprod: Tensor | None = None
    density: Density = "logit_normal"
    shift: float = 1.0
    clips: bool = False
    times: Times = "all"

    @classmethod
    def of(cls, scheduler: Any) -> Schedule:
        """Read from a diffusers scheduler of any sampling rule. Raises PrefoptError for an unknown prediction, and for
        schedulers of other noise levels (EDM, consistency decoders)."""
        from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

        config = scheduler.config
        if isinstance(scheduler, (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)):
            shift = 1.0 if config.get("use_dynamic_shifting") else float(config.get("shift") or 1.0)
            return cls("flow", config.num_train_timesteps, shift=shift)
        prediction = config.get("prediction_type")
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise PrefoptError(
                f"scheduler/scheduler_config.json: prediction_type {prediction!r} of {type(scheduler).__name__} is not "
                f"known; expected {', '.join(get_args(Prediction)[:3])}, or a flow-matching scheduler"
            )
        if not hasattr(scheduler, "alphas_cumprod"):
            raise PrefoptError(
                f"scheduler/scheduler_config.json: {type(scheduler).__name__} noises by another rule than the discrete noise "
                "levels of DDPM and DDIM or a flow; save the pipeline with the scheduler of its training"
            )
        ddpm = DDPMScheduler.from_config(config)  # the forward process does not depend on the sampling rule
        clips = bool(config.get("clip_sample") or config.get("thresholding"))
        return cls(prediction, config.num_train_timesteps, ddpm.alphas_cumprod.double(), clips=clips)

    def drawn_by(self, density: Density | None = None, shift: float | None = None) -> Schedule:
        """The same schedule with another distribution of s (None: as it is); only flow models have one."""
        density = self.density if density is None else density
        shift = self.shift if shift is None else shift
        if self.alphas_cumprod is not None:
            raise PrefoptError(
                f"a density or shift of times belongs to flow models; this model predicts {self.prediction} and its "
                "timesteps are drawn uniformly. Leave both keys out"
            )
        if density not in get_args(Density):
            raise PrefoptError(f"time density {density!r} is not known; expected {' or '.join(get_args(Density))}")
        if not shift > 0:
            raise PrefoptError(f"time shift {shift} must be positive; 1 is no shift")
        return replace(self, density=density, shift=shift)

    def limited(self, times: Times) -> Schedule:
        """The same schedule of which only these timesteps are drawn (official code of 2311.12908).

        turbo: the schedule is also rescaled to end in pure noise. Raises PrefoptError for flow models, and for turbo
        and refiner unless T = 1000.
        """
        if times == "all":
            return self
        if self.alphas_cumprod is None or self.steps != 1000:
            found = "a flow model" if self.alphas_cumprod is None else f"{self.steps} timesteps"
            raise PrefoptError(f"timesteps = {times} are those of models with 1000 timesteps; this one is/has {found}")
        abar = ends_in_noise(self.alphas_cumprod) if times == "turbo" else self.alphas_cumprod
        return replace(self, times=times, alphas_cumprod=abar)

    def draw(self, generator: torch.Generator) -> Tensor:
        """[] one noise level: an index 0 .. T-1 (long), or s in (0, 1) (float64)."""
        if self.alphas_cumprod is not None:
            t = torch.randint(self.steps, (), generator=generator)
            return {"all": t, "turbo": 250 * (t % 4) + 249, "refiner": t % 200}[self.times]
        if self.density == "uniform":
            s = torch.rand((), generator=generator, dtype=torch.float64)
        else:
            s = torch.sigmoid(torch.randn((), generator=generator, dtype=torch.float64))
        s = s.clamp(1e-6, 1 - 1e-6)
        return self.shift * s / (1 + (self.shift - 1) * s)

    def level(self, t: Tensor) -> Level:
        """The coefficients at t [G]. Raises PrefoptError outside 0 .. T-1 (diffusion) or (0, 1) (flow)."""
        if self.alphas_cumprod is None:
            if bool((t <= 0).any() | (t >= 1).any()):
                raise PrefoptError(f"noise level s = {t.tolist()} of a flow model must lie in (0, 1)")
            return Level(1 - t.double(), t.double(), self.steps * t.double())
        if t.is_floating_point() or bool((t < 0).any() | (t >= self.steps).any()):
            raise PrefoptError(f"timestep t = {t.tolist()} must be an integer in 0 .. {self.steps - 1}")
        abar = self.alphas_cumprod[t]
        return Level(abar.sqrt(), (1 - abar).sqrt(), t)


def ends_in_noise(alphas_cumprod: Tensor) -> Tensor:
    """[T] the schedule stretched so that its last entry is exactly 0 and its first is what it was (2305.08891, alg. 1)."""
    signal = alphas_cumprod.sqrt()
    first, last = signal[0], signal[-1]
    return ((signal - last) * first / (first - last)).square()


def noised(clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """z_t [R, C, H, W] from latents and noise [R, C, H, W] and coefficients [R]."""
    return wide(signal) * clean + wide(sigma) * noise


def target(prediction: Prediction, clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """What the network should answer [R, C, H, W] (2311.12908 for epsilon; Salimans & Ho 2202.00512 for v)."""
    if prediction == "epsilon":
        return noise
    if prediction == "v_prediction":
        return wide(signal) * noise - wide(sigma) * clean
    if prediction == "sample":
        return clean
    return noise - clean


def split(
    prediction: Prediction, answer: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """The clean latent and the noise [R, C, H, W] that an answer stands for: signal * clean + sigma * noise = noisy."""
    a, s = wide(signal), wide(sigma)
    if prediction == "epsilon":
        return (noisy - s * answer) / a, answer
    if prediction == "v_prediction":
        return a * noisy - s * answer, s * noisy + a * answer
    if prediction == "sample":
        return answer, (noisy - a * answer) / s
    return noisy - s * answer, noisy + a * answer


def wide(x: Tensor) -> Tensor:
    """[R] as [R, 1, 1, 1]."""
    return x[:, None, None, None]
