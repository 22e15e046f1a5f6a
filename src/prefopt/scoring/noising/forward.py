"""The forward process: one draw of noise (2311.12908)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import PrefoptError
from ..schedules import Schedule
from .base import Inputs, Network, Noised, Noising, plain


@dataclass(frozen=True)
class Forward(Noising):
    """z_t = signal * z_0 + sigma * eps, with one noise for all images of a caption."""

    name: ClassVar[str] = "forward"
    fixed: ClassVar[bool] = True
    force_epsilon: bool = False  # the goal is the noise whatever the network predicts (2502.06023's code)

    def __call__(self, x: Inputs, schedule: Schedule, policy: Network) -> Noised:
        seen = plain(x, schedule)
        return seen._replace(goal=x.noise) if self.force_epsilon else seen

    def check(self, schedule: Schedule) -> None:
        super().check(schedule)
        if self.force_epsilon and schedule.prediction == "flow":
            raise PrefoptError("force_epsilon is for diffusion models; a flow model's answer is no noise: leave it out")
        if self.force_epsilon and schedule.prediction == "epsilon":
            raise PrefoptError("force_epsilon has no effect: the model predicts the noise already; leave it out")


@dataclass(frozen=True)
class ForwardEach(Forward):
    """The same with a noise of its own for every image (2410.18013)."""

    name: ClassVar[str] = "forward_each"
    shared: ClassVar[bool] = False
