"""Evaluation of a diffusion run: pictures of both models on equal prompts and seeds, rewarded and laid side by side."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.config import RunConfig
from prefopt.data.config import DataConfig
from prefopt.data.prepare import prompt_key
from prefopt.data.rule import Ledger
from prefopt.data.source import read_examples
from prefopt.errors import PrefoptError
from prefopt.evaluation.images import compare_images
from prefopt.files import write_atomically
from prefopt.models.opening import open_pipeline
from prefopt.rewards.load import Reward, load_reward
from prefopt.rollout.images import ImageSampling, sample_images

SEEDS = 4  # pictures of each prompt


def evaluate_image_run(
    folder: Path,
    config: RunConfig,
    against: str | None,
    data: str | None,
    reward: str | Callable[..., Any] | None,
    limit: int | None,
    progress: bool,
    sampling: ImageSampling | None = None,
    negative: str | None = None,
) -> dict[str, Any]:
    """Writes images/*.png, images.jsonl and evaluation.json into the run folder; see `run.evaluate_run`.

    negative: a model whose denoiser is the negative branch of the evaluated model's guidance; the run folder itself: the
    run trained the negative network, and what is evaluated is its start, so guided.
    """
    sampling = sampling or ImageSampling(size=config.denoising.resolution)
    rewards = None if reward is None else load_reward(reward)
    prompts = _prompts(config.data, data, limit)
    rows = [(p, seed) for p in prompts for seed in range(SEEDS)]
    texts, seeds = [p for p, _ in rows], [seed + SEEDS * i for i, (_, seed) in enumerate(rows)]
    start = against or config.model.path
    own = negative is not None and Path(negative).resolve() == folder.resolve()
    pictures = {}
    for side, path in (("before", Path(start)), ("after", Path(start) if own else folder)):
        pipeline = open_pipeline(path, start=start, negative=negative if side == "after" else None)
        pictures[side] = sample_images(pipeline, texts, seeds, sampling, progress=progress)
        del pipeline
        gc.collect()
    numbers: dict[str, Any] = {
        "settings": {"model": str(folder), "start": start, "prompts": len(prompts), "pictures": len(rows)}
        | {"sampling": asdict(sampling)}
        | ({} if negative is None else {"negative": negative}),
        "notes": [],
    }
    values = _values(rewards, texts, pictures, numbers) if rewards is not None else {}
    _write(folder, texts, seeds, pictures, values)
    write_atomically(folder / "evaluation.json", json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    return numbers


def _prompts(data: DataConfig, other: str | None, limit: int | None) -> list[str]:
    ledger = Ledger()
    found: dict[int, str] = {}
    paths = [other] if other else data.eval_paths or data.paths
    for example in read_examples(data, paths, ledger, needs={"prompts"}, modality="image"):
        found.setdefault(prompt_key(example), str(example.prompt))
        if len(found) == limit:
            break
    ledger.stop_if_unreadable()
    if not found:
        raise PrefoptError(f"{', '.join(paths)}: no prompt to evaluate on; {ledger.rows} rows were read")
    return list(found.values())


def _values(
    reward: Reward, texts: Sequence[str], pictures: dict[str, list[Any]], numbers: dict[str, Any]
) -> dict[str, list[float]]:
    values = {side: reward(texts, images, missing=True) for side, images in pictures.items()}
    known = {id(images): values[side] for side, images in pictures.items()}
    comparison = compare_images(texts, pictures["before"], pictures["after"], lambda _, images: known[id(images)])
    found = comparison.to_json()
    wins = np.sign(np.subtract(values["after"], values["before"]))
    counts = {name: int((wins == sign).sum()) for name, sign in (("wins", 1), ("ties", 0), ("losses", -1))}
    numbers["settings"]["reward"] = reward.name
    numbers["reward"] = {"start": found["before"], "policy": found["after"], "gain": found["gain"]}
    numbers["win_rate"] = found["win_rate"] | counts
    numbers["diversity"] = {"pixel_distance": {"start": found["diversity_before"], "policy": found["diversity_after"]}}
    return values


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
