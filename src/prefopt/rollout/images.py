"""Pictures of a diffusers pipeline: one seed per picture, so that two models can be compared on equal noise."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from ..errors import PrefoptError


@dataclass(frozen=True)
class ImageSampling:
    """Sampler steps, guidance (1: none), pictures in one call; `size` in pixels, None: the model's own."""

    steps: int = 50
    guidance: float = 7.5
    batch_size: int = 16
    size: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise PrefoptError(
                f"sampling needs steps and batch_size of at least 1; got {self.steps} and {self.batch_size}"
            )


@torch.no_grad()
def sample_images(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: ImageSampling | None = None,
    *,
    progress: bool = True,
) -> list[Any]:
    """One PIL image for each prompt and its seed. The noise depends on the seed, not on the batch or the device."""
    sampling = sampling or ImageSampling()
    if len(prompts) != len(seeds):
        raise PrefoptError(f"{len(prompts)} prompts and {len(seeds)} seeds; give one seed per picture")
    if "strength" in inspect.signature(type(pipeline).__call__).parameters:
        raise PrefoptError(
            f"a {type(pipeline).__name__} refines pictures that it is given; of prompts alone it draws none"
        )
    size = {} if sampling.size is None else {"height": sampling.size, "width": sampling.size}
    pipeline.set_progress_bar_config(disable=True)
    images: list[Any] = []
    with tqdm(total=len(prompts), desc="sampling", unit="image", delay=1, disable=not progress) as bar:
        for start in range(0, len(prompts), sampling.batch_size):
            part = list(prompts[start : start + sampling.batch_size])
            generators = [torch.Generator().manual_seed(s) for s in seeds[start : start + sampling.batch_size]]
            images += pipeline(
                part,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance,
                generator=generators,
                **size,
            ).images
            bar.update(len(part))
    return images


def grid(rows: Sequence[Sequence[Any]], scale: int = 1, gap: int = 2) -> Any:
    """One picture of many: rows of PIL images of one size, enlarged without smoothing, with a white gap between."""
    from PIL import Image

    width, height = (side * scale + gap for side in rows[0][0].size)
    canvas = Image.new("RGB", (max(map(len, rows)) * width - gap, len(rows) * height - gap), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            canvas.paste(image.resize((width - gap, height - gap), Image.Resampling.NEAREST), (x * width, y * height))
    return canvas
