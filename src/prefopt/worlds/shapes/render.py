"""The renderer: a scene (colour, shape, place, count) as a 32x32 picture, and as a caption.

A picture has four cells, the quadrants. One object stands in one cell ("a red circle in the upper left"), two alike
stand in two neighbouring cells ("two blue squares on the right"). Objects differ in size and position by up to a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

SIZE = 32
CELL = SIZE // 2
BACKGROUND = np.array([0.93, 0.93, 0.90])
COLOURS: dict[str, np.ndarray] = {
    "red": np.array([0.85, 0.15, 0.15]),
    "green": np.array([0.15, 0.65, 0.25]),
    "blue": np.array([0.15, 0.30, 0.85]),
    "yellow": np.array([0.95, 0.80, 0.10]),
}
SHAPES = ("circle", "square", "triangle")
ONE: dict[str, tuple[int, ...]] = {"upper left": (0,), "upper right": (1,), "lower left": (2,), "lower right": (3,)}
TWO: dict[str, tuple[int, ...]] = {
    "on the left": (0, 2),
    "on the right": (1, 3),
    "at the top": (0, 1),
    "at the bottom": (2, 3),
}
RADII = (4.5, 5.0, 5.5)
SHIFTS = (-1, 0, 1)


@dataclass(frozen=True)
class Scene:
    """What a caption says. `cells` are quadrants 0 upper left, 1 upper right, 2 lower left, 3 lower right."""

    colour: str
    shape: str
    cells: tuple[int, ...]

    @property
    def caption(self) -> str:
        places = {cells: name for name, cells in (ONE | TWO).items()}
        if len(self.cells) == 1:
            return f"a {self.colour} {self.shape} in the {places[self.cells]}"
        return f"two {self.colour} {self.shape}s {places[self.cells]}"


def scenes() -> list[Scene]:
    """All 96 scenes: 4 colours, 3 shapes, 4 places of one object and 4 of two."""
    return [Scene(c, s, cells) for c in COLOURS for s in SHAPES for cells in (ONE | TWO).values()]


@cache
def stencil(shape: str, radius: float, down: int, right: int) -> np.ndarray:
    """[16, 16] coverage in 0..1 (4x4 samples a pixel) of a shape whose centre is moved by (down, right) pixels."""
    fine = (np.arange(CELL * 4) + 0.5) / 4 - CELL / 2
    y, x = np.meshgrid(fine - down, fine - right, indexing="ij")
    if shape == "circle":
        inside = x**2 + y**2 < radius**2
    elif shape == "square":
        inside = np.maximum(abs(x), abs(y)) < radius * 0.9
    else:  # apex up, base at the bottom
        inside = (y < radius * 0.9) & (abs(x) < (y + radius) * 0.55)
    return inside.reshape(CELL, 4, CELL, 4).mean((1, 3))


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """[32, 32, 3] uint8, with a small random size and position for every object."""
    picture = np.tile(BACKGROUND, (SIZE, SIZE, 1))
    for cell in scene.cells:
        mask = stencil(scene.shape, rng.choice(RADII), int(rng.choice(SHIFTS)), int(rng.choice(SHIFTS)))[..., None]
        row, column = CELL * (cell // 2), CELL * (cell % 2)
        part = picture[row : row + CELL, column : column + CELL]
        part[...] = part * (1 - mask) + COLOURS[scene.colour] * mask
    return (picture * 255).round().astype(np.uint8)
