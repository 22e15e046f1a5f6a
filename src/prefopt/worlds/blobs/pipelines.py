"""A Stable Diffusion pipeline on 8x8 one-channel latents that are the pixels themselves."""

from __future__ import annotations

from typing import Any

from ..words import pixel_pipeline
from .truth import SIDE, captions

WIDTH = 32  # of the text encoder
TOKENS = 9  # longest caption with its two marks


def tiny_pipeline(seed: int = 0, prediction: str = "epsilon") -> Any:
    """An untrained pipeline: 180,000 parameters, cross-attention in the middle, text read as in Stable Diffusion."""
    from ...models.pixels import GreyPixels

    return pixel_pipeline(
        captions(brightness=True), TOKENS, GreyPixels, ("DownBlock2D", "DownBlock2D"),
        side=SIDE, channels=1, width=WIDTH, prediction=prediction, seed=seed,
    )  # fmt: skip
