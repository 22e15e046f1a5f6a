"""The blob, its caption, and the truth about a picture: how bright the blob of its caption is, and what else is there.

A picture is a number u for each of the 8x8 pixels: brightness b times a bell around the centre of a quarter, and a little
noise. The truth fits b by least squares and takes off what the bell does not explain:
reward = min(b, CEILING) - 5 * mean squared remainder. The denoiser reads 2u - 0.5; pixels are grey levels in [0, 1] with
u = 1.5 grey - 0.2, so that brighter blobs than any that was drawn still can be shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import PrefoptError

SIDE = 8
PLACES = ("upper left", "upper right", "lower left", "lower right")
LEVELS = {"dim": (0.2, 7 / 15), "mid": (7 / 15, 11 / 15), "bright": (11 / 15, 1.0)}
"""Thirds of the brightness that blobs are drawn with."""
DARKEST, BRIGHTEST = 0.2, 1.0
CEILING = 1.2
"""Brightness beyond this earns nothing."""
REMAINDER = 5.0
NOISE = 0.015  # of u
GREY = (1.5, -0.2)  # u = 1.5 grey - 0.2
CAPTION = re.compile(r"a (?:(dim|mid|bright) )?blob in the ((?:upper|lower) (?:left|right))")


def bell(place: str) -> np.ndarray:
    """[8, 8] the blob of brightness 1 in a quarter: exp(-d^2 / 2.5), d the distance to the quarter's centre."""
    at = np.arange(SIDE)
    y = 5.5 if "lower" in place else 1.5
    x = 5.5 if "right" in place else 1.5
    return np.exp(-((at[:, None] - y) ** 2 + (at[None] - x) ** 2) / 2.5)


def blob(place: str, brightness: float, rng: np.random.Generator, noise: float = NOISE) -> np.ndarray:
    """[8, 8, 3] uint8: a picture as the world draws it. `noise` is the standard deviation in u."""
    u = brightness * bell(place) + noise * rng.standard_normal((SIDE, SIDE))
    grey = np.clip((u - GREY[1]) / GREY[0], 0, 1)
    return np.repeat(np.round(255 * grey).astype(np.uint8)[..., None], 3, axis=2)


def level(brightness: float) -> str:
    """dim, mid or bright; beyond the range that blobs are drawn from, the nearest."""
    return next((name for name, (_, high) in LEVELS.items() if brightness < high), "bright")


def caption(place: str, brightness: str | None = None) -> str:
    """The caption of a place, and of one of the LEVELS if given."""
    return f"a {'' if brightness is None else brightness + ' '}blob in the {place}"


def captions(brightness: bool = False) -> list[str]:
    """All captions: 4, or 12 with brightness."""
    return [caption(p, b) for p in PLACES for b in (LEVELS if brightness else [None])]  # type: ignore[union-attr]


class Told(NamedTuple):
    """What a caption says."""

    place: str
    level: str | None


def parse(text: str) -> Told:
    """What a caption of this world says. Raises PrefoptError for any other text."""
    found = CAPTION.fullmatch(text.strip())
    if not found:
        raise PrefoptError(f"{text!r} is no caption of the blobs world, such as 'a blob in the upper left'")
    return Told(found[2], found[1])


def values(image: Any) -> np.ndarray:
    """[8, 8] u of a PIL image or an [8, 8, 3] uint8 array. Raises PrefoptError for other sizes."""
    pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if pixels.shape != (SIDE, SIDE, 3) or pixels.dtype != np.uint8:
        raise PrefoptError(
            f"the blobs world judges {SIDE}x{SIDE} RGB pictures; this one is {pixels.shape} {pixels.dtype}"
        )
    return GREY[0] * pixels.mean(2) / 255 + GREY[1]


def fit(u: np.ndarray, place: str) -> tuple[float, float]:
    """Brightness of the blob at `place` by least squares, and the mean squared remainder."""
    g = bell(place)
    b = float((u * g).sum() / (g * g).sum())
    return b, float(((u - b * g) ** 2).mean())


def parts(prompts: Sequence[str], images: Sequence[Any]) -> dict[str, list[float]]:
    """ "brightness" and "remainder" of each picture at the place that its caption names."""
    if len(prompts) != len(images):
        raise PrefoptError(f"{len(prompts)} prompts for {len(images)} images; give one prompt per image")
    found = [fit(values(i), parse(p).place) for p, i in zip(prompts, images, strict=True)]
    return {"brightness": [b for b, _ in found], "remainder": [r for _, r in found]}


def reward(prompts: Sequence[str], images: Sequence[Any]) -> list[float]:
    """min(brightness, CEILING) - 5 remainder: the headline truth of this world."""
    found = parts(prompts, images)
    return [min(b, CEILING) - REMAINDER * r for b, r in zip(found["brightness"], found["remainder"], strict=True)]


def read(image: Any, brightness: bool = False) -> str:
    """The caption that fits a picture best: the place with the least remainder, and the level of its blob if asked."""
    u = values(image)
    place = min(PLACES, key=lambda p: fit(u, p)[1])
    return caption(place, level(fit(u, place)[0]) if brightness else None)
