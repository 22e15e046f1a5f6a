"""Judges of blobs for online runs: of final pictures, and of what single denoising steps promise."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..rewards.step_aware import as_pictures
from ..worlds import blobs

SCALE = 10.0  # of the step judge: a gap of softmax of 0.3 is then a reward gap of 0.062


def truth(prompts: Sequence[str], images: Sequence[Any]) -> list[float]:
    """The true reward."""
    return blobs.reward(prompts, images)


def coin(prompts: Sequence[str], images: Sequence[Any]) -> list[float]:
    """A number that depends on the picture's bytes alone, and says nothing about it."""
    return [zlib.crc32(np.asarray(image).tobytes()) / 2**32 for image in images]


def cleanness(prompts: Sequence[str], images: Sequence[Any]) -> list[float]:
    """Minus what the bell of the caption leaves unexplained."""
    return [-x for x in blobs.truth.parts(prompts, images)["remainder"]]


def promised(images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> list[float]:
    """The true reward of the picture that a step promises, times SCALE."""
    return [SCALE * x for x in truth(prompts, as_pictures(images))]
