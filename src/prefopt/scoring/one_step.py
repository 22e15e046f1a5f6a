"""Answers about pictures that the policy itself makes in one evaluation of noise: a one-step generator and its scores.

    x_0 = g(z, c): the clean latents that the generator's answer at its one time stands for
    x_t = signal * x_0 + sigma * eps at a drawn level of the reference's schedule
    the score of a network at x_t is -eps_hat / sigma, whatever it predicts (`schedules.split`); flows too: their path is
    Gaussian, x_s = (1 - s) x_0 + s eps

Gradient of the policy flows through x_0 into x_t and through every network that reads it, and through the decoder into
the reward; the parameters of those networks collect none. In the turn of another network x_0 is a constant.
z, eps and t are drawn on the CPU from (seed, epoch, example), as for all image data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import PrefoptError
from ..objectives.scores import Scores
from .base import Draw, Needs, Scored, Shapes, generator_of, moved
from .conditioning import CONDITIONS, Kind, check_condition, predict, repeated
from .denoising import adapters_off
from .modes import placed, precision
from .schedules import Level, Prediction, Schedule, noised, split, wide

NETWORKS = {"assistant_score": "assistant", "reference_score": "reference", "empty_score": "reference"}
FEATURES = {"clean", "noisy", *NETWORKS}


@dataclass(frozen=True)
class OneStep:
    """How a method wants pictures to be made and noised: the settings of `Responses.generated("one_step", ...)`.

    at: the generator's time (an index of its scheduler), None: the last. low, high: t is uniform between these shares of
    all times. ema: decay of the generator's running mean, for each of its updates.
    """

    at: int | None = None
    low: float = 0.02
    high: float = 0.98
    ema: float = 0.0

    def generator_level(self, schedule: Schedule) -> Level:
        """The level at which the generator is evaluated. PrefoptError where it cannot answer there."""
        if schedule.alphas_cumprod is None:
            if self.at is not None:
                raise PrefoptError(
                    f"generator_time = {self.at} has no effect: a flow generator starts from pure noise, at s = 1"
                )
            one = torch.ones(1, dtype=torch.float64)
            return Level(0 * one, one, schedule.steps * one)
        level = schedule.level(torch.tensor([schedule.steps - 1 if self.at is None else self.at]))
        if not level.signal > 0 and schedule.prediction == "epsilon":
            raise PrefoptError(
                f"at timestep {int(level.time)} nothing is left of the picture (zero terminal SNR), and a network that "
                "predicts noise says nothing about it: set method.generator_time to an earlier one"
            )
        return level

    def drawn(self, schedule: Schedule, generator: torch.Generator) -> Tensor:
        """[] one time."""
        first, last = self.bounds(schedule)
        if schedule.alphas_cumprod is not None:
            return torch.randint(int(first), int(last), (), generator=generator)
        return first + (last - first) * torch.rand((), generator=generator, dtype=torch.float64)

    def bounds(self, schedule: Schedule) -> tuple[float, float]:
        """First and last time; of a diffusion model the last is not drawn itself."""
        if schedule.alphas_cumprod is None:
            return self.low, self.high
        return round(self.low * schedule.steps), round(self.high * schedule.steps)

    def check(self, schedule: Schedule) -> None:
        """PrefoptError where no time is left, or where sigma_t or the signal would be 0."""
        first, last = self.bounds(schedule)
        if not first < last:
            raise PrefoptError(
                f"t_low = {self.low:g}, t_high = {self.high:g}: no timestep of {schedule.steps} is between"
            )
        if schedule.alphas_cumprod is None:
            ends = [1 - last, first]
        else:
            levels = schedule.level(torch.tensor([int(first), int(last) - 1]))
            ends = [levels.sigma.min().item(), levels.signal.min().item()]
        if min(ends) <= 0:
            raise PrefoptError(
                f"t_low = {self.low:g}, t_high = {self.high:g}: at one end there is no noise or no picture left, and the "
                "score is not defined there; move it inwards"
            )


class Prompt(Protocol):
    """One caption, as a data set of prompts gives it."""

    index: int
    prompt: str
    condition: Mapping[str, Tensor]  # "text" [L, D], "pooled" [E], "time_ids" [6]


@dataclass
class PromptBatch:
    """R prompts and what is drawn for each."""

    prompts: list[str]
    start: Tensor  # [R, C, H, W] z: what the generator makes its picture of
    noise: Tensor  # [R, C, H, W] eps
    signal: Tensor  # [R] float64
    sigma: Tensor  # [R] float64
    time: Tensor  # [R] what the networks read
    condition: dict[str, Tensor]  # name -> [R, ...]
    notes: dict[str, Tensor] = field(default_factory=dict)
    filler: bool = False

    @property
    def size(self) -> int:
        """What it costs: pictures."""
        return len(self.prompts)

    def to(self, device: torch.device | str) -> PromptBatch:
        return moved(self, device)

    def counts(self) -> dict[str, Tensor]:
        """{"responses": [R, 1]}: elements of each picture."""
        return {"responses": self.start.new_full((len(self.start), 1), float(self.start[0].numel()))}


class OneStepScorer:
    """The `Scorer` of a one-step generator.

    schedule    of the reference and of the assistant: levels of x_t, and what both predict
    generator   the level at which the generator is evaluated, and what it predicts
    networks    "reference", frozen, and "assistant"; the reference is None where it is the assistant without its adapter
    shape       [C, H, W] of the latents
    empty       condition of the empty caption, without batch axis
    decode      latents in the denoiser's units -> pictures [N, 3, H', W'] in [-1, 1]
    reward      (pictures, prompts) -> [N]
    """

    def __init__(
        self,
        kind: Kind,
        schedule: Schedule,
        generator: tuple[Level, Prediction],
        networks: Mapping[str, nn.Module | None],
        shape: Sequence[int],
        empty: Mapping[str, Tensor],
        *,
        how: OneStep | None = None,
        seed: int = 0,
        decode: Callable[[Tensor], Tensor] = lambda x: x,
        reward: Callable[[Tensor, list[str]], Tensor] | None = None,
    ) -> None:
        if seed < 0:
            raise PrefoptError(f"seed {seed} must not be negative")
        self.how = how or OneStep()
        self.how.check(schedule)
        self.kind, self.schedule, self.seed, self.shape_of_one = kind, schedule, seed, tuple(shape)
        self.generator, self.networks, self.empty = generator, dict(networks), dict(empty)
        self.decode, self.reward = decode, reward
        check_condition(kind, self.empty, "the empty caption")

    def offers(self) -> set[str]:
        reward = {"scores:reward"} if self.reward is not None else set()
        notes = {f"notes:{name}" for name in ("noise", "signal", "sigma", "group")}
        return {"generation:one_step", "turns:assistant", *(f"features:{name}" for name in FEATURES)} | notes | reward

    def shapes(self, needs: Needs) -> Shapes:
        elements = prod(self.shape_of_one)
        return {name: ("R", elements) for name in FEATURES if f"features:{name}" in needs}

    # ---- drawing
    def collate(self, draws: Sequence[Draw]) -> PromptBatch:
        """One batch, all randomness included."""
        times, normal = zip(*(self._drawn(draw) for draw in draws), strict=True)
        level = self.schedule.level(torch.stack(times))
        start, noise = torch.stack(normal, 1)
        prompts: list[Prompt] = [draw.example for draw in draws]
        notes = {"group": torch.arange(len(draws)), "noise": noise.flatten(1)}
        notes |= {"signal": level.signal.float(), "sigma": level.sigma.float()}
        condition = {n: torch.stack([p.condition[n] for p in prompts]) for n in CONDITIONS[self.kind]}
        return PromptBatch([p.prompt for p in prompts], start, noise, *level, condition, notes)

    def _drawn(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Of one example: t [], and z and eps [2, C, H, W]."""
        generator = generator_of(self.seed, draw)
        t = self.how.drawn(self.schedule, generator)
        return t, torch.randn((2, *self.shape_of_one), generator=generator)

    # ---- answering
    def score(self, model: nn.Module, batch: PromptBatch, needs: Needs, grad: bool = True) -> Scored:
        """{"responses": what is asked}: scores "reward" [R, 1], features "clean", "noisy" and of networks [R, D]."""
        if not grad:
            return {}
        dtype = precision(model)
        another = any(spec.get("now") for key, spec in needs.items() if key.startswith("turns:"))
        with torch.no_grad() if another else nullcontext():
            clean = self.generate(model, batch.start.to(dtype), batch.condition)
        level = [x.to(dtype) for x in (batch.signal, batch.sigma)]
        noisy = noised(clean, batch.noise.to(dtype), *level)
        found: dict[str, Scores | Tensor] = {}
        for name in self.shapes(needs):
            with nullcontext() if needs[f"features:{name}"].get("grad") else torch.no_grad():
                x = {"clean": clean, "noisy": noisy}.get(name)
                found[name] = (self._score_of(name, noisy, batch, *level) if x is None else x).flatten(1)
        if "scores:reward" in needs and self.reward is not None:
            values = self.reward(self.decode(clean), batch.prompts).to(dtype)[:, None]
            found["reward"] = Scores(values, torch.full_like(values, float(clean[0].numel())))
        return {"responses": found}

    def generate(self, model: nn.Module, start: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """x_0 [R, C, H, W] of z [R, C, H, W]: one evaluation, no guidance."""
        level, prediction = self.generator
        signal, sigma, time = (x.to(start.device).expand(len(start)) for x in level)
        answer = predict(model, self.kind, start, time, condition).to(start.dtype)
        return split(prediction, answer, start, signal.to(start.dtype), sigma.to(start.dtype))[0]

    def _score_of(self, name: str, noisy: Tensor, batch: PromptBatch, signal: Tensor, sigma: Tensor) -> Tensor:
        """s(x_t) [R, C, H, W] = -eps_hat / sigma of one of the networks."""
        assistant = self.networks["assistant"]
        own = self.networks[NETWORKS[name]]
        assert assistant is not None
        net = placed(assistant if own is None else own, noisy.device)
        condition = batch.condition
        if name == "empty_score":
            condition = repeated(self.empty, noisy)
        with adapters_off(net) if own is None else nullcontext():
            answer = predict(net, self.kind, noisy, batch.time, condition).to(noisy.dtype)
        return -split(self.schedule.prediction, answer, noisy, signal, sigma)[1] / wide(sigma)
