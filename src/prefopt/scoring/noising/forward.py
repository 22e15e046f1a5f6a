"""The forward process: one draw of noise (2311.12908)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..schedules import Schedule
from .base import Inputs, Network, Noised, Noising, plain


@dataclass(frozen=True)
class Forward(Noising):
    """z_t = signal * z_0 + sigma * eps, with one noise for all images of a caption."""

    name: ClassVar[str] = "forward"

    def __call__(self, x: Inputs, schedule: Schedule, policy: Network) -> Noised:
        return plain(x, schedule)


@dataclass(frozen=True)
class ForwardEach(Forward):
    """The same with a noise of its own for every image (2410.18013)."""

    name: ClassVar[str] = "forward_each"
    shared: ClassVar[bool] = False
