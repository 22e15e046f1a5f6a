"""Building the world: train the model on drawn blobs, draw pairs and lists, label the pairs by the truth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...errors import PrefoptError
from ...files import write_jsonl
from ...models.diffusion import image_model
from ...rollout.images import ImageSampling, sample_images
from ..cache import World, build_once, folder_once
from ..fitting import fit_denoiser, to_pixels
from .pipelines import tiny_pipeline
from .truth import BRIGHTEST, DARKEST, LEVELS, blob, captions, parse, reward

VERSION = "1"
SAMPLING = ImageSampling(steps=20, guidance=1.0, batch_size=128)
"""How the world's model is sampled: 20 steps of DDIM, no guidance."""
STEPS, BATCH, RATE, DROPOUT = 1500, 64, 4e-3, 0.1
DRAWN = 8192  # blobs that the model learns from
HELD_OUT = 256  # pairs
LISTS, IN_A_LIST = 256, 4


def build(
    cache: Path | None = None,
    *,
    temperature: float = 0.1,
    pairs: int = 2048,
    brightness: bool = False,
    wrong: float = 0.0,
    prediction: str = "epsilon",
    seed: int = 0,
    progress: bool = True,
) -> World:
    """The world from the cache, or built in about half a minute on one core; worlds that differ in their pairs alone
    share the model.

    temperature  noise of the labels, P(first wins) = sigmoid(difference of truth / temperature); 0 is exact
    pairs        training pairs of two drawn blobs of one caption
    brightness   captions name the brightness too (12 instead of 4)
    wrong        share of the model's training blobs whose caption is any other
    Raises PrefoptError for a negative temperature, or a share outside [0, 1].
    """
    if not temperature >= 0:
        raise PrefoptError(f"temperature {temperature} of the labels must not be negative")
    if not 0 <= wrong <= 1 or pairs < 1:
        raise PrefoptError(f"wrong = {wrong} must be a share in [0, 1], and pairs = {pairs} at least 1")
    start: dict[str, Any] = {"brightness": brightness, "wrong": wrong, "prediction": prediction, "seed": seed}

    def pretrain(folder: Path) -> dict[str, Any]:
        return _pretrain(folder, progress=progress, **start)

    model = folder_once("blobs-model", version=VERSION, settings=start, make=pretrain, cache=cache)

    def make(folder: Path) -> dict[str, Any]:
        facts = json.loads((model / "world.json").read_text(encoding="utf-8"))["facts"]
        shutil.copytree(model / "model", folder / "model")
        return facts | _data(folder, temperature, pairs, brightness, np.random.default_rng((seed, 1)))

    settings = {"temperature": temperature, "pairs": pairs, **start}
    return build_once("blobs", version=VERSION, settings=settings, make=make, cache=cache)


def _pretrain(
    folder: Path, *, brightness: bool, wrong: float, prediction: str, seed: int, progress: bool
) -> dict[str, Any]:
    rng = np.random.default_rng((seed, 0))
    pipeline = tiny_pipeline(seed, prediction)
    model = image_model(pipeline, source="blobs")
    all_ = captions(brightness)
    numbers = rng.integers(len(all_), size=DRAWN)
    pictures = [_drawn(all_[n], rng) for n in numbers]
    numbers = np.where(rng.random(DRAWN) < wrong, rng.integers(len(all_), size=DRAWN), numbers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        error = fit_denoiser(
            model,
            model.encode_images(to_pixels(np.stack(pictures))),
            torch.from_numpy(numbers),
            all_,
            torch.Generator().manual_seed(seed),
            steps=STEPS,
            batch=BATCH,
            rate=RATE,
            dropout=DROPOUT,
            progress=progress,
            name="blobs: denoiser",
        )
    pipeline.save_pretrained(folder / "model")
    asked = [all_[n % len(all_)] for n in range(256)]
    images = sample_images(pipeline, asked, list(range(256)), SAMPLING, progress=False)
    return {"denoising_error": error, "mean_reward": float(np.mean(reward(asked, images)))}


def _drawn(text: str, rng: np.random.Generator) -> np.ndarray:
    """A blob as the caption says, its brightness drawn where the caption leaves it open."""
    told = parse(text)
    low, high = (DARKEST, BRIGHTEST) if told.level is None else LEVELS[told.level]
    return blob(told.place, rng.uniform(low, high), rng)


def _data(folder: Path, temperature: float, count: int, brightness: bool, rng: np.random.Generator) -> dict[str, Any]:
    """Pairs, lists and captions; the facts are the share of labels that the judge's noise turned round."""
    (folder / "images").mkdir()
    all_ = captions(brightness)
    train = [_pair(*_shown(folder, f"train-{n:04d}", all_, 2, rng), temperature, rng) for n in range(count)]
    heldout = [_pair(*_shown(folder, f"heldout-{n:04d}", all_, 2, rng), 0.0, rng) for n in range(HELD_OUT)]
    lists = [_shown(folder, f"list-{n:04d}", all_, IN_A_LIST, rng) for n in range(LISTS)]
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "heldout.jsonl", heldout)
    write_jsonl(folder / "lists.jsonl", [{"prompt": p, "responses": f, "scores": s} for p, f, s in lists])
    write_jsonl(folder / "prompts.jsonl", [{"prompt": text} for text in all_])
    return {"flipped": float(np.mean([row["chosen_score"] < row["rejected_score"] for row in train]))}


def _shown(
    folder: Path, name: str, all_: Sequence[str], count: int, rng: np.random.Generator
) -> tuple[str, list[str], list[float]]:
    """A caption, the files of `count` blobs drawn by it, and their truth."""
    text = all_[int(rng.integers(len(all_)))]
    pictures = [_drawn(text, rng) for _ in range(count)]
    files = [f"images/{name}-{letter}.png" for letter in ascii_lowercase[:count]]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(folder / file)
    return text, files, [round(r, 4) for r in reward([text] * count, pictures)]


def _pair(text: str, files: list[str], truth: list[float], temperature: float, rng: np.random.Generator) -> dict:
    """The row of two pictures: which is preferred is drawn by their truth."""
    gap = truth[0] - truth[1]
    chance = 1 / (1 + np.exp(np.clip(-gap / temperature, -50, 50))) if temperature else float(gap > 0)
    w, l = (0, 1) if rng.random() < chance else (1, 0)
    scores = {"chosen_score": truth[w], "rejected_score": truth[l]}
    return {"prompt": text, "chosen": files[w], "rejected": files[l], **scores}
