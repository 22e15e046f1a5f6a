"""What every way of noising is: from clean latents, and perhaps the networks, to what is seen and what is the goal."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ...errors import PrefoptError
from ..base import PREDICTED
from ..schedules import Level, Schedule, noised, target


class Network(Protocol):
    """A network's answer [N, C, H, W] to noisy latents [N, C, H, W] at times [N], without gradient.

    rows: which rows of the batch these are, whose captions they are denoised under; None: all. empty: under the empty
    caption instead.
    """

    def __call__(self, noisy: Tensor, time: Tensor, *, rows: Tensor | None = None, empty: bool = False) -> Tensor: ...


NOISINGS: dict[str, type[Noising]] = {}


class Inputs(NamedTuple):
    """R images before noising, in the precision of the scores."""

    latents: Tensor  # [R, C, H, W]
    noise: Tensor  # [R, C, H, W] as drawn: shared by a group, or each image's own
    level: Level  # coefficients (in that precision) and times [R]
    t: Tensor  # [R] the times of `level` as the schedule draws them: an index, or s of flow models
    drawn: Mapping[str, Tensor] = MappingProxyType({})  # [R, ...] what this way of noising draws beside them


class Noised(NamedTuple):
    """What the networks see, and what they should answer; constants."""

    noisy: Tensor  # [R, C, H, W]
    time: Tensor  # [R] as the network reads it
    goal: Tensor  # [R, C, H, W]


@dataclass(frozen=True)
class Noising:
    """One way of noising; its fields are the settings that a method may give."""

    name: ClassVar[str]
    flows: ClassVar[bool] = True  # does it have a meaning for flow models?
    shared: ClassVar[bool] = True  # is one noise drawn for a group, or one for each image?
    fixed: ClassVar[bool] = False  # does what is seen depend on what was drawn alone, and on no network?
    apart: ClassVar[str] = ""  # the name of further rows, with gradient, that it makes (`beside`)
    caption_dropout: ClassVar[float] = 0.2  # where the configuration says nothing

    def __call__(self, x: Inputs, schedule: Schedule, policy: Network) -> Noised:
        """`policy`: as it is now, or the mean of its past where `teacher_rate` says so."""
        raise NotImplementedError

    @property
    def teacher_rate(self) -> float | None:
        """The network asked is a running mean of the policy, net <- a policy + (1 - a) net; None: the policy itself."""
        return None

    @property
    def teacher_every(self) -> int:
        """Optimiser steps from one such update to the next."""
        return 1

    @property
    def reads_images(self) -> bool:
        """False: it starts from noise, so that captions alone are data; its latents are zeros."""
        return True

    @property
    def from_noise(self) -> bool:
        """Does the network that is asked begin with pure noise?"""
        return not self.reads_images

    def draw(self, shape: torch.Size, schedule: Schedule, generator: torch.Generator) -> dict[str, Tensor]:
        """What is random beside time and noise, [k, ...] each, for k images of `shape` [k, C, H, W]."""
        return {}

    def beside(self, x: Inputs, rows: Tensor, schedule: Schedule, policy: Network) -> Noised:
        """The row set `apart` that this way makes itself: one row for each of `rows` [n], the images to be imitated, under
        the same caption and time."""
        raise NotImplementedError

    def error(self, answer: Tensor, seen: Noised, schedule: Schedule) -> Tensor:
        """[R, C, H, W] what is summed over elements and counts as minus the score of an answer [R, C, H, W]."""
        return (answer - seen.goal).square()

    def __init_subclass__(cls) -> None:
        NOISINGS[cls.name] = cls

    def check(self, schedule: Schedule) -> None:
        """Raises PrefoptError where settings and schedule do not fit."""
        if schedule.prediction == "flow" and not self.flows:
            raise PrefoptError(
                f"'{self.name}' is defined on the noise levels of a diffusion model; this model is a flow model"
            )


def plain(x: Inputs, schedule: Schedule) -> Noised:
    """Forward noising: z_t = signal * z_0 + sigma * eps, and the goal that the prediction type says."""
    signal, sigma, time = x.level
    noisy = noised(x.latents, x.noise, signal, sigma)
    return Noised(noisy, time, target(schedule.prediction, x.latents, x.noise, signal, sigma))


def guided(ask: Network, noisy: Tensor, time: Tensor, rows: Tensor, scale: float) -> Tensor:
    """The answer [N, C, H, W] under classifier-free guidance: empty + scale (told - empty); what has no weight is not
    asked."""
    if scale == 0:
        return ask(noisy, time, rows=rows, empty=True)
    told = ask(noisy, time, rows=rows)
    if scale == 1:
        return told
    free = ask(noisy, time, rows=rows, empty=True)
    return free + scale * (told - free)


def noising_for(needs: Mapping[str, Mapping[str, Any]]) -> Noising:
    """The one way that a method asks for, with its settings; forward noising where it asks for none.

    Raises PrefoptError for two ways at once, or one that is not known.
    """
    known = noisings()
    asked = {key.removeprefix("noising:"): spec for key, spec in needs.items() if key.startswith("noising:")}
    asked.pop(PREDICTED, None)  # what a denoiser never sees
    if len(asked) > 1:
        raise PrefoptError(f"images can be noised in one way only; the method asks for {' and '.join(sorted(asked))}")
    for name, spec in asked.items():
        if name not in known:
            raise PrefoptError(f"there is no way of noising '{name}'; there are {', '.join(sorted(known))}")
        return known[name](**spec.get("how", {}))
    return known["forward"]()


def noisings() -> Mapping[str, type[Noising]]:
    """Every way of noising by its name; each file of the folder registers its own."""
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return NOISINGS
