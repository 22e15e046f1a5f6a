"""Evaluation of a diffusion run: pictures of both models on equal prompts and seeds, rewarded and laid side by side."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.config import RunConfig
from prefopt.evaluation.heldout import prompts_held_out
from prefopt.evaluation.image_measures import encoder_of, ordered, scored, spread
from prefopt.evaluation.run import Rewards, elsewhere
from prefopt.files import write_atomically
from prefopt.models.opening import open_pipeline
from prefopt.rewards.load import load_reward
from prefopt.rollout.images import ImageSampling, sample_images


def evaluate_image_run(
    folder: Path,
    config: RunConfig,
    against: str | None,
    data: str | None,
    reward: Rewards,
    limit: int | None,
    progress: bool,
    sampling: ImageSampling | None = None,
    number: int = 4,
    negative: str | None = None,
    features: str | None = None,
    **user: Any,
) -> dict[str, Any]:
    """Writes images/*.png, images.jsonl and evaluation.json into the run folder; see `run.evaluate_run`.

    number: pictures of each prompt. sampling: its size is that of the run. reward: one or several; the first is the
    headline, and each of its objectives is told apart (a world's breakdown).
    features: a CLIPModel folder whose embeddings say how diverse the pictures of a prompt are; by default that of the
    first scorer that has one, and distances of pixels in any case. Held-out pairs are ordered by the implicit reward.
    negative: a model whose denoiser is the negative branch of the evaluated model's guidance; the run folder itself: the
    run trained the negative network, and what is evaluated is its start, so guided.
    user: for whom the evaluated model's pictures are, of a run that knows users (user, user_pairs, prompt_only; see
    `open_pipeline`); the start's are nobody's. Held-out pairs are ordered each for whoever chose it.
    """
    sampling = replace(sampling or ImageSampling(), size=config.denoising.resolution)
    one = isinstance(reward, str) or callable(reward)
    given: list[Any] = [reward] if one else list(reward or ())  # type: ignore[arg-type]
    rewards = [load_reward(r) for r in given]
    encoder = encoder_of(features, rewards)
    where = config.data if data is None else elsewhere(config.data, data)
    prompts = [str(e.prompt) for e in prompts_held_out(where, limit, "image")[0]]
    rows = [(p, seed) for p in prompts for seed in range(number)]
    texts, seeds = [p for p, _ in rows], [seed + number * i for i, (_, seed) in enumerate(rows)]
    start = against or config.model.path
    own = negative is not None and Path(negative).resolve() == folder.resolve()
    special = {k: v for k, v in ({"negative": negative} | user).items() if v}
    drawn = {}
    for side, path, options in (("after", Path(start) if own else folder, special), ("before", Path(start), {})):
        pipeline = open_pipeline(path, start=start, **options)  # the evaluated one first: it may refuse
        drawn[side] = sample_images(pipeline, texts, seeds, sampling, progress=progress)
        del pipeline
        gc.collect()
    pictures = {side: drawn[side] for side in ("before", "after")}
    numbers: dict[str, Any] = {
        "settings": {"model": str(folder), "start": start, "prompts": len(prompts), "pictures": len(rows)}
        | {"sampling": asdict(sampling)}
        | special,
        "notes": [],
    }
    values = scored(rewards, texts, pictures, numbers)
    spread(texts, pictures, encoder, numbers)
    if not own:
        numbers |= ordered(folder, start, config, data, limit, numbers["notes"])
    _write(folder, texts, seeds, pictures, values)
    write_atomically(folder / "evaluation.json", json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    return numbers


def _write(
    folder: Path,
    texts: Sequence[str],
    seeds: Sequence[int],
    pictures: dict[str, list[Any]],
    values: dict[str, list[float]],
) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        row: dict[str, Any] = {"prompt": text, "seed": seed}
        for side, images in pictures.items():
            row[side] = f"images/{i:04d}-{side}.png"
            images[i].save(folder / row[side])
            if side in values:
                row[f"reward_{side}"] = values[side][i] if np.isfinite(values[side][i]) else None
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomically(folder / "images.jsonl", "".join(lines))
