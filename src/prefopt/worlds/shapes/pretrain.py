"""Pretraining of the world's model: first the VAE, then the denoiser, each on pictures of the renderer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...models.diffusion import ImageModel
from ...scoring.schedules import Prediction
from ..fitting import fit_denoiser, optimised, to_pixels
from .render import CELL, COLOURS, SHAPES, SIZE, Scene, render, scenes

CAPTION_DROPOUT = 0.1
HIGHEST_SNR = 0.5
"""Errors in the clean latents count by the signal-to-noise ratio up to here (min-SNR weighting, 2303.09556). What the
picture shows is decided at high noise: this doubles what a step teaches about it."""


def train_vae(model: ImageModel, steps: int, rng: np.random.Generator, progress: bool, batch: int = 16) -> float:
    """Reconstruction with a slight KL, on pictures with something in most cells; sets the scaling factor.

    Returns the squared error per element in [-1, 1] at the end.
    """
    vae = model.pipeline.vae.requires_grad_(True).to(memory_format=torch.channels_last).train()
    pictures = to_pixels(np.stack([_crowded(rng) for _ in range(2048)]))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    error = torch.zeros(())
    for step in optimised(vae, steps, 6e-3, progress, "shapes: VAE"):
        x = pictures[torch.randint(len(pictures), (batch,), generator=generator)]
        posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        error = (decoded - x).square().mean()
        step(error + 1e-6 * posterior.kl().mean())
    vae.requires_grad_(False).to(memory_format=torch.contiguous_format).eval()
    plain = to_pixels(np.stack([render(s, rng) for s in scenes()]))
    with torch.no_grad():
        spread = float(vae.encode(plain).latent_dist.sample(generator).std())
    vae.register_to_config(scaling_factor=1 / spread)
    return float(error.detach())


def train_denoiser(
    model: ImageModel,
    steps: int,
    rng: np.random.Generator,
    progress: bool,
    *,
    wrong: float,
    batch: int = 32,
    rate: float = 7e-3,
) -> float:
    """Denoising of captioned pictures; `wrong` is the share of captions that belong to another picture of the scene's
    neighbourhood, so that the model errs and preferences have something to teach. Returns the last mean error."""
    all_ = scenes()
    truth = np.arange(4096) % len(all_)
    latents = model.encode_images(to_pixels(np.stack([render(all_[i], rng) for i in truth])))
    said = torch.from_numpy(np.array([_misread(int(i), all_, rng) if rng.random() < wrong else i for i in truth]))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return fit_denoiser(
        model,
        latents,
        said,
        [s.caption for s in all_],
        generator,
        steps=steps,
        batch=batch,
        rate=rate,
        dropout=CAPTION_DROPOUT,
        progress=progress,
        name="shapes: denoiser",
        weight=lambda snr: _weight(model.schedule.prediction, snr),
    )


def _weight(prediction: Prediction, snr: Tensor) -> Tensor:
    """[N] what a squared error of the prediction counts; 1 for flow models, whose times are drawn around the middle."""
    capped = snr.clamp(max=HIGHEST_SNR)  # of an error in the clean latents
    unit = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr), "flow": capped}[prediction]
    return capped / unit


def _crowded(rng: np.random.Generator) -> np.ndarray:
    """A picture whose cells hold unlike objects, or nothing: more to learn from for the VAE than a scene."""
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    for cell in range(4):
        cells = (cell,) if rng.random() < 0.75 else ()
        part = np.s_[CELL * (cell // 2) : CELL * (cell // 2 + 1), CELL * (cell % 2) : CELL * (cell % 2 + 1)]
        picture[part] = render(Scene(rng.choice(list(COLOURS)), rng.choice(SHAPES), cells), rng)[part]
    return picture


def _misread(index: int, all_: list[Scene], rng: np.random.Generator) -> int:
    """A scene that differs from scene `index` in exactly one of colour, shape, and cells."""
    own = all_[index]

    def differences(other: Scene) -> int:
        return (own.colour != other.colour) + (own.shape != other.shape) + (own.cells != other.cells)

    return int(rng.choice([n for n, other in enumerate(all_) if differences(other) == 1]))
