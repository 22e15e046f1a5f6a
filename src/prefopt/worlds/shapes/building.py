"""Building the world: train the model, sample pairs from it, label them by the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import PrefoptError
from ...files import write_jsonl
from ...models.diffusion import image_model
from ...rollout.images import ImageSampling, sample_images
from ..cache import World, build_once
from .pipelines import PipelineKind, tiny_pipeline
from .pretrain import train_denoiser, train_vae
from .render import scenes
from .truth import reward

VERSION = "2"
HELD_OUT = 16
"""Captions that no training pair has."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on a kind: steps of VAE and denoiser, and pairs. Only "sd" is trained until shapes are seen."""

    vae: int
    denoiser: int
    pairs: int
    held_out: int


EFFORT: dict[str, Effort] = {
    "sd": Effort(400, 500, 640, 128),
    "sd-v": Effort(400, 500, 640, 128),
    "sdxl": Effort(40, 40, 64, 16),
    "sd3": Effort(40, 40, 64, 16),
}
SAMPLING = ImageSampling(steps=12, guidance=1.0, batch_size=64)


def build(
    cache: Path | None = None,
    *,
    kind: PipelineKind = "sd",
    temperature: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> World:
    """The world with a model of this kind, from the cache or built in about a minute on two cores ("sd").

    kind: sd (epsilon), sd-v (v-prediction), sdxl, sd3 (flow); the last two are trained just enough to be run.
    temperature: noise of the labels, P(first wins) = sigmoid(difference of truth / temperature); 0 is exact.
    Raises PrefoptError for an unknown kind or a negative temperature.
    """
    if kind not in EFFORT:
        raise PrefoptError(f"the shapes world has no kind {kind!r}; it has {', '.join(EFFORT)}")
    if not temperature >= 0:
        raise PrefoptError(f"temperature {temperature} of the labels must not be negative")

    def make(folder: Path) -> dict[str, Any]:
        return _make(folder, kind, EFFORT[kind], temperature, seed, progress)

    settings = {"kind": kind, "temperature": temperature, "seed": seed}
    return build_once("shapes", version=VERSION, settings=settings, make=make, cache=cache)


def _make(
    folder: Path, kind: PipelineKind, effort: Effort, temperature: float, seed: int, progress: bool
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    pipeline = tiny_pipeline(kind, seed)
    model = image_model(pipeline, source=f"shapes {kind}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        facts = {"vae_error": train_vae(model, effort.vae, rng, progress)}
        facts["denoising_error"] = train_denoiser(model, effort.denoiser, rng, progress, wrong=0.1)
    pipeline.save_pretrained(folder / "model")
    captions = list(rng.permutation([s.caption for s in scenes()]))
    held_out, seen = captions[:HELD_OUT], captions[HELD_OUT:]
    (folder / "images").mkdir()
    pictures = _pairs(folder, "train", pipeline, seen, effort.pairs, temperature, rng, progress)
    _pairs(folder, "heldout", pipeline, held_out, effort.held_out, 0.0, rng, progress)
    write_jsonl(folder / "prompts.jsonl", [{"prompt": c} for c in held_out])
    return facts | {"mean_reward": pictures, "held_out_captions": held_out}


def _pairs(
    folder: Path,
    name: str,
    pipeline: Any,
    captions: Sequence[str],
    count: int,
    temperature: float,
    rng: np.random.Generator,
    progress: bool,
) -> float:
    """Writes `name`.jsonl: two pictures of one caption each, the preferred first. Returns the pictures' mean truth."""
    prompts = [captions[n % len(captions)] for n in range(count) for _ in range(2)]
    seeds = rng.integers(2**31, size=len(prompts)).tolist()
    images = sample_images(pipeline, prompts, seeds, SAMPLING, progress=progress)
    truth = np.array(reward(prompts, images)).reshape(count, 2)
    difference = truth[:, 0] - truth[:, 1]
    chance = (
        1 / (1 + np.exp(np.clip(-difference / temperature, -50, 50))) if temperature else (difference > 0).astype(float)
    )
    first = rng.random(count) < chance
    rows = []
    for n in range(count):
        files = [f"images/{name}-{n:04d}-{side}.png" for side in "ab"]
        for file, image in zip(files, images[2 * n : 2 * n + 2], strict=True):
            image.save(folder / file)
        w, l = (0, 1) if first[n] else (1, 0)
        scores = {"chosen_score": round(float(truth[n, w]), 4), "rejected_score": round(float(truth[n, l]), 4)}
        rows.append({"prompt": prompts[2 * n], "chosen": files[w], "rejected": files[l], **scores})
    write_jsonl(folder / f"{name}.jsonl", rows)
    return float(truth.mean())
