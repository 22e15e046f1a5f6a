"""The exact truth of a picture: its four cells are matched against every stencil of the renderer.

A cell is explained as background + coverage * (colour - background) with the colour fitted by least squares; what is
left over, against the energy of the cell, says how good the match is. So the truth looks at pixels only, gives partial
credit, and is 1 for the renderer's own pictures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ...errors import PrefoptError
from .render import BACKGROUND, CELL, COLOURS, ONE, RADII, SHAPES, SHIFTS, SIZE, TWO, Scene, stencil

CAPTION = re.compile(r"(?:a|two) (\w+?) (\w+?)s? (?:in the )?((?:upper|lower) (?:left|right)|on the \w+|at the \w+)")
PRESENT = 0.35
"""Presence from which on something stands in a cell, whose colour and shape are judged."""
BLUR = 0.4
"""Share of a cell's energy that the best stencil may leave unexplained before no credit for shape is left."""


@dataclass(frozen=True)
class Seen:
    """What stands in one cell: how much of the smallest whole object (0..1), its fit to each shape, and its colour."""

    presence: float
    fit: dict[str, float]  # shape -> share of the cell's energy that its best stencil explains, 0..1
    hue: np.ndarray  # [3] fitted under the best stencil


def parse(caption: str) -> Scene:
    """The scene of a caption of this world. Raises PrefoptError for any other text."""
    found = CAPTION.fullmatch(caption.strip())
    cells = (ONE | TWO).get(found[3]) if found else None
    if not found or cells is None or found[1] not in COLOURS or found[2] not in SHAPES:
        raise PrefoptError(f"{caption!r} is no caption of the shapes world, such as 'a red circle in the upper left'")
    return Scene(found[1], found[2], cells)


def look(image: Any) -> list[Seen]:
    """The four cells of a picture (PIL image or [32, 32, 3] uint8 array)."""
    pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if pixels.shape != (SIZE, SIZE, 3) or pixels.dtype != np.uint8:
        raise PrefoptError(
            f"the shapes world judges {SIZE}x{SIZE} RGB pictures; this one is {pixels.shape} {pixels.dtype}"
        )
    excess = pixels / 255 - BACKGROUND
    corners = [(CELL * (c // 2), CELL * (c % 2)) for c in range(4)]
    return [_cell(excess[r : r + CELL, c : c + CELL].reshape(-1, 3)) for r, c in corners]


def parts(prompts: Sequence[str], images: Sequence[Any]) -> dict[str, list[float]]:
    """The four objectives, each in 0..1 per picture: "colour", "shape", "place", "count"."""
    if len(prompts) != len(images):
        raise PrefoptError(f"{len(prompts)} prompts for {len(images)} images; give one prompt per image")
    each = [_judge(parse(p), look(i)) for p, i in zip(prompts, images, strict=True)]
    return {name: [e[name] for e in each] for name in ("colour", "shape", "place", "count")}


def reward(prompts: Sequence[str], images: Sequence[Any]) -> list[float]:
    """The mean of the four objectives, in 0..1: the headline truth of this world."""
    return [float(np.mean(each)) for each in zip(*parts(prompts, images).values(), strict=True)]


def checks(prompts: Sequence[str], images: Sequence[Any]) -> dict[str, list[float]]:
    """Each objective as passed (1) or not (0), as GenEval's detector judges: at least 1/2 of the credit. "reward": all
    four; "one object" and "two objects": the same of prompts of that kind, NaN for the others."""
    each = {name: [float(v >= 0.5) for v in values] for name, values in parts(prompts, images).items()}
    whole = [min(values) for values in zip(*each.values(), strict=True)]
    counts = [len(parse(p).cells) for p in prompts]
    skills = {
        name: [w if c == n else float("nan") for w, c in zip(whole, counts, strict=True)]
        for n, name in ((1, "one object"), (2, "two objects"))
    }
    return {"reward": whole, **each, **skills}


def colour(prompts: Sequence[str], images: Sequence[Any]) -> list[float]:
    """How near the objects' colours are to the named one."""
    return parts(prompts, images)["colour"]


def shape(prompts: Sequence[str], images: Sequence[Any]) -> list[float]:
    """How well the named shape explains the objects."""
    return parts(prompts, images)["shape"]


def place(prompts: Sequence[str], images: Sequence[Any]) -> list[float]:
    """Overlap of the cells that hold something with those that should."""
    return parts(prompts, images)["place"]


def count(prompts: Sequence[str], images: Sequence[Any]) -> list[float]:
    """1 for the named number of objects, 0 for one more or less."""
    return parts(prompts, images)["count"]


# ------------------------------------------------------------------------------------------------ the analysis
@cache
def _bank() -> tuple[np.ndarray, list[str]]:
    """[N, 256] every stencil at unit norm, and its shape."""
    all_ = [(s, stencil(s, r, d, t).ravel()) for s in SHAPES for r in RADII for d in SHIFTS for t in SHIFTS]
    return np.stack([m / np.linalg.norm(m) for _, m in all_]), [s for s, _ in all_]


@cache
def _norms() -> np.ndarray:
    """[N] the norm of each stencil of the bank."""
    return np.array(
        [np.linalg.norm(stencil(s, r, d, t)) for s in SHAPES for r in RADII for d in SHIFTS for t in SHIFTS]
    )


def _cell(excess: np.ndarray) -> Seen:
    bank, names = _bank()
    fitted = bank @ excess  # [N, 3] colour of each stencil, times its norm
    explained = (fitted**2).sum(1)
    best = int(explained.argmax())
    hue = BACKGROUND + fitted[best] / _norms()[best]
    nearest = min(COLOURS.values(), key=lambda c: float(((c - hue) ** 2).sum()))
    smallest = min(norm for norm, name in zip(_norms(), names, strict=True) if name == names[best])
    full = smallest**2 * float(((nearest - BACKGROUND) ** 2).sum())
    share = explained / max(float((excess**2).sum()), 1e-9)
    fit = {s: float(max(e for e, n in zip(share, names, strict=True) if n == s)) for s in SHAPES}
    return Seen(min(1.0, float(explained[best]) / (0.95 * full)), fit, hue)


def _judge(scene: Scene, cells: list[Seen]) -> dict[str, float]:
    there = np.array([c.presence for c in cells])
    want = np.array([float(i in scene.cells) for i in range(4)])
    overlap = float(np.minimum(there, want).sum() / max(np.maximum(there, want).sum(), 1e-9))
    number = max(0.0, 1.0 - abs(float(there.sum()) - len(scene.cells)))
    objects = [c for c in cells if c.presence >= PRESENT]
    if not objects:
        return {"colour": 0.0, "shape": 0.0, "place": overlap, "count": number}
    right_colour = float(np.mean([_colour_credit(c.hue, scene.colour) for c in objects]))
    right_shape = float(np.mean([_shape_credit(c.fit, scene.shape) for c in objects]))
    return {"colour": right_colour, "shape": right_shape, "place": overlap, "count": number}


def _colour_credit(seen: np.ndarray, name: str) -> float:
    """1 at the named colour, falling linearly to 0 at the distance of the nearest other colour."""
    nearest = min(float(np.linalg.norm(COLOURS[name] - c)) for other, c in COLOURS.items() if other != name)
    return max(0.0, 1.0 - float(np.linalg.norm(seen - COLOURS[name])) / nearest)


def _shape_credit(fit: dict[str, float], name: str) -> float:
    """1 where the named shape explains the object exactly, 1/2 where another does as well, 0 where another is exact."""
    missed = 1.0 - fit[name]
    other = 1.0 - max(share for shape_, share in fit.items() if shape_ != name)
    return other / max(missed + other, 1e-9) * max(0.0, 1.0 - missed / BLUR)
