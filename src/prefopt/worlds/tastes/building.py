"""Building the world: a small model draws blobs, and users choose between pairs of what it draws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import PrefoptError
from ...files import write_jsonl
from ...models.diffusion import image_model
from ...rollout.images import ImageSampling, sample_images
from ..cache import World, build_once
from ..fitting import fit_denoiser, to_pixels
from ..words import pixel_pipeline
from .truth import SIDE, captions, drawn, features

VERSION = "2"
SAMPLING = ImageSampling(steps=20, guidance=1.0, batch_size=128)
STEPS, BATCH, RATE, DROPOUT = 1200, 64, 4e-3, 0.1
DRAWN = 8192  # pictures that the model learns from
POOL = 256  # of its own pictures for each caption, which pairs are made of
WIDTH = 32  # of the text encoder
TOKENS = 8  # longest caption with its two marks
GAIN, OFFSET = 3.0, 2.7
"""Latents are gain * pixels + offset: mean about 0, deviation about 0.6. Dark pictures as they are, -0.9 in the mean, are
far from the noise that sampling starts from (the schedule ends with a signal of 0.07), and come out as noise."""
PREDICTION = "v_prediction"  # of the noise instead, a model this small leaves much of it in the picture


def build(
    cache: Path | None = None,
    *,
    couples: int = 20,
    new_couples: int = 5,
    pairs: int = 100,
    wrong: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> World:
    """The world from the cache, or built in about two minutes on one core.

    couples      of training users: two with opposite tastes; their pairs are `train`
    new_couples  of users who are not trained on; their pairs are `heldout`
    pairs        of each user: two pictures of one caption, both drawn by the model
    wrong        share of choices that are turned round
    Raises PrefoptError for numbers below 1, or a share outside [0, 1].
    """
    if min(couples, new_couples, pairs) < 1 or not 0 <= wrong <= 1:
        raise PrefoptError(f"couples, new_couples and pairs must be at least 1, and wrong = {wrong} a share in [0, 1]")
    settings = {"couples": couples, "new_couples": new_couples, "pairs": pairs, "wrong": wrong, "seed": seed}

    def make(folder: Path) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        pipeline, error = _pretrained(seed, rng, progress)
        pipeline.save_pretrained(folder / "model")
        said = [c for c in captions() for _ in range(POOL)]
        images = sample_images(pipeline, said, list(range(len(said))), SAMPLING, progress=progress)
        (folder / "images").mkdir()
        for n, image in enumerate(images):
            image.save(folder / "images" / f"{n:04d}.png")
        seen = features(said, images)
        known, new = (_users(n, name, rng) for n, name in ((couples, "user"), (new_couples, "new")))
        (folder / "users.json").write_text(json.dumps(known | new, indent=1) + "\n", encoding="utf-8")
        _choices(folder / "train.jsonl", known, pairs, wrong, seen, rng)
        _choices(folder / "heldout.jsonl", new, pairs, 0.0, seen, rng)
        write_jsonl(folder / "prompts.jsonl", [{"prompt": c} for c in captions()])
        return {"denoising_error": error, "spread": seen.std(0).round(3).tolist()}

    return build_once("tastes", version=VERSION, settings=settings, make=make, cache=cache)


def tastes(world: World) -> dict[str, list[float]]:
    """User -> taste [3], a direction in hue, brightness and size; names of a couple end in a and b."""
    return json.loads((world.root / "users.json").read_text(encoding="utf-8"))


def _users(couples: int, name: str, rng: np.random.Generator) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for n in range(couples):
        h = rng.standard_normal(3)
        h /= np.linalg.norm(h)
        found |= {f"{name}{n:02d}a": h.tolist(), f"{name}{n:02d}b": (-h).tolist()}
    return found


def _choices(
    path: Path,
    users: Mapping[str, Sequence[float]],
    pairs: int,
    wrong: float,
    seen: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Each user's pairs out of the pool: two different pictures of one caption, chosen by liking."""
    texts, rows = captions(), []
    for user, taste in users.items():
        for _ in range(pairs):
            which = int(rng.integers(len(texts)))
            two = which * POOL + rng.choice(POOL, 2, replace=False)
            better = np.argmax(seen[two] @ np.asarray(taste)) ^ int(rng.random() < wrong)
            files = [f"images/{two[i]:04d}.png" for i in (better, 1 - better)]
            rows.append({"prompt": texts[which], "chosen": files[0], "rejected": files[1], "user": user})
    write_jsonl(path, rows)


def _pretrained(seed: int, rng: np.random.Generator, progress: bool) -> tuple[Any, float]:
    pipeline = tiny_pipeline(seed)
    model = image_model(pipeline, source="tastes")
    texts = captions()
    numbers = rng.integers(len(texts), size=DRAWN)
    pictures = np.stack([drawn(texts[n], rng) for n in numbers])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        error = fit_denoiser(
            model, model.encode_images(to_pixels(pictures)), torch.from_numpy(numbers), texts,
            torch.Generator().manual_seed(seed),
            steps=STEPS, batch=BATCH, rate=RATE, dropout=DROPOUT, progress=progress, name="tastes: denoiser",
        )  # fmt: skip
    return pipeline, error


def tiny_pipeline(seed: int = 0) -> Any:
    """An untrained Stable Diffusion pipeline of 8x8 colour pictures, with attention to the text in three places."""
    from ...models.pixels import ColourPixels

    return pixel_pipeline(
        captions(), TOKENS, lambda: ColourPixels(gain=GAIN, offset=OFFSET), ("DownBlock2D", "CrossAttnDownBlock2D"),
        side=SIDE, channels=3, width=WIDTH, prediction=PREDICTION, seed=seed,
    )  # fmt: skip
