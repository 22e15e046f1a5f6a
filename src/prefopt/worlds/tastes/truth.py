"""What is in a picture of the tastes world, and how much a user likes it.

A picture is brightness b times a colour between red (hue 0) and blue (hue 1) times a bell of size s around the place that
its caption names. The truth finds size, brightness and hue again by least squares; a user's liking is a direction in
these three, each scaled to mean 0 and deviation 1 over the pictures that the world draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from ...errors import PrefoptError

SIDE = 8
PLACES = {"upper left": (2.0, 2.0), "upper right": (2.0, 5.0), "lower left": (5.0, 2.0), "lower right": (5.0, 5.0)}
RANGES = {"hue": (0.0, 1.0), "brightness": (0.4, 1.0), "size": (0.8, 1.8)}
"""What pictures are drawn with, evenly."""
SIZES = np.linspace(0.4, 2.6, 45)
GREEN = 0.25  # in every colour, which makes no difference
NOISE = 0.01
FAR = 3.0
"""Deviations beyond which a quality counts no further."""


def captions() -> list[str]:
    """One for each place."""
    return [f"a blob in the {place}" for place in PLACES]


def bell(place: str, size: float) -> np.ndarray:
    """[8, 8] of height 1."""
    y, x = PLACES[place]
    at = np.arange(SIDE)
    return np.exp(-((at[:, None] - y) ** 2 + (at[None] - x) ** 2) / (2 * size**2))


def blob(place: str, hue: float, brightness: float, size: float, rng: np.random.Generator) -> np.ndarray:
    """[8, 8, 3] uint8."""
    colour = np.array([1 - hue, GREEN, hue]) * brightness
    pixels = bell(place, size)[..., None] * colour + NOISE * rng.standard_normal((SIDE, SIDE, 3))
    return np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def drawn(text: str, rng: np.random.Generator) -> np.ndarray:
    """A picture of a caption, everything else drawn from RANGES."""
    hue, brightness, size = (rng.uniform(*RANGES[n]) for n in ("hue", "brightness", "size"))
    return blob(place_of(text), hue, brightness, size, rng)


def place_of(text: str) -> str:
    """The place that a caption names. Raises PrefoptError for any other text."""
    place = text.removeprefix("a blob in the ")
    if place not in PLACES:
        raise PrefoptError(f"{text!r} is no caption of the tastes world, such as 'a blob in the upper left'")
    return place


@cache
def _bells(place: str) -> np.ndarray:
    """[sizes, 64]."""
    return np.stack([bell(place, s).ravel() for s in SIZES])


def features(prompts: Sequence[str], images: Sequence[Any]) -> np.ndarray:
    """[n, 3] hue, brightness and size, scaled."""
    found = []
    for text, image in zip(prompts, images, strict=True):
        pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image, dtype=np.float64) / 255
        if pixels.shape != (SIDE, SIDE, 3):
            raise PrefoptError(f"the tastes world judges {SIDE}x{SIDE} RGB pictures; this one is {pixels.shape}")
        bells, flat = _bells(place_of(text)), pixels.reshape(-1, 3)
        height = bells @ flat / (bells**2).sum(1, keepdims=True)  # [sizes, 3] by least squares
        left_over = (flat**2).sum() - (height**2 * (bells**2).sum(1, keepdims=True)).sum(1)
        best = int(left_over.argmin())
        red, _, blue = np.clip(height[best], 0, None)
        found.append((blue / max(red + blue, 1e-6), red + blue, SIZES[best]))
    middle = np.array([np.mean(r) for r in RANGES.values()])
    deviation = np.array([(high - low) / 12**0.5 for low, high in RANGES.values()])
    return np.clip((np.array(found) - middle) / deviation, -FAR, FAR)


def liking(taste: Sequence[float], prompts: Sequence[str], images: Sequence[Any]) -> list[float]:
    """How much the user of this taste [3] likes each picture."""
    return (features(prompts, images) @ np.asarray(taste)).tolist()


@cache
def _net() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((3, 32)), rng.standard_normal((32, 2 * 16)) / 32**0.5


def encode(shots: Sequence[Any]) -> np.ndarray:
    """[2, 16] of a user's pairs: what the chosen has more than the rejected, on average, through a frozen random network
    of two layers; it stands for a vision-language model."""
    told = [s.prompt for s in shots]
    gap = features(told, [s.chosen for s in shots]) - features(told, [s.rejected for s in shots])
    first, second = _net()
    return np.tanh(np.tanh(gap.mean(0) @ first) @ second).reshape(2, 16)
