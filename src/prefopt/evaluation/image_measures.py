"""What is measured of the pictures of a run and of its start: rewards, their objectives, spread, held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefopt.config import RunConfig
from prefopt.errors import PrefoptError, first_line
from prefopt.evaluation.heldout import pictures_held_out
from prefopt.evaluation.images import compare_images, diversity, feature_distance, implicit_accuracy
from prefopt.models.user_branch import FILE, load_user_branch
from prefopt.rewards.images import ClipType, PickScore
from prefopt.rewards.load import Reward

Pictures = Mapping[str, Sequence[Any]]
"""Side ("before", "after") -> PIL images, on equal prompts and noise."""
Encoder = Callable[[Sequence[Any]], np.ndarray]
"""Pictures -> features [n, D]."""


def scored(
    rewards: Sequence[Reward], texts: Sequence[str], pictures: Pictures, numbers: dict[str, Any]
) -> dict[str, list[float]]:
    """Writes of every reward the means, gain and win rate on equal noise into `numbers`, the first as the headline, and
    each objective of those that have several. Returns the headline's values, one for each picture."""
    values: dict[str, list[float]] = {}
    for n, reward in enumerate(rewards):
        told = {side: reward.objectives(texts, images, missing=True) for side, images in pictures.items()}
        head = reward.headline(told["before"])
        whole = _compared(texts, pictures, {side: told[side][head] for side in pictures})
        if n == 0:
            values = {side: told[side][head] for side in pictures}
            numbers["settings"]["reward"] = reward.name
            numbers["reward"], numbers["win_rate"] = whole["reward"], whole["win_rate"]
        if len(rewards) > 1:
            numbers.setdefault("rewards", {})[reward.name] = whole["reward"]
            numbers.setdefault("win_rates", {})[reward.name] = whole["win_rate"]
        for name in told["before"] if len(told["before"]) > 1 else ():
            if name != head:
                each = _compared(texts, pictures, {side: told[side][name] for side in pictures})
                numbers.setdefault("objectives", {}).setdefault(name, each["reward"])
    return values


def _compared(texts: Sequence[str], pictures: Pictures, values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    known = {id(images): values[side] for side, images in pictures.items()}
    found = compare_images(texts, pictures["before"], pictures["after"], lambda _, images: known[id(images)]).to_json()
    wins = np.sign(np.subtract(values["after"], values["before"]))
    counts = {name: int((wins == sign).sum()) for name, sign in (("wins", 1), ("ties", 0), ("losses", -1))}
    sides = {"start": found["before"], "policy": found["after"], "gain": found["gain"]}
    return {"reward": sides, "win_rate": found["win_rate"] | counts}


def encoder_of(features: str | None, rewards: Sequence[Reward]) -> Encoder | None:
    """The image embeddings of a CLIPModel folder, or of the first scorer that has some; None: pixels only."""
    scorers = [r.function for r in rewards if isinstance(r.function, ClipType)]
    scorer = PickScore(features) if features is not None else scorers[0] if scorers else None
    if scorer is None:
        return None
    known: ClipType = scorer

    @torch.no_grad()
    def encode(images: Sequence[Any]) -> np.ndarray:
        parts = [images[i : i + 32] for i in range(0, len(images), 32)]
        return np.concatenate([known.embed(known.preprocess(p).to(known.device)).cpu().numpy() for p in parts])

    return encode


def spread(texts: Sequence[str], pictures: Pictures, encoder: Encoder | None, numbers: dict[str, Any]) -> None:
    """Writes how far apart the pictures of a prompt are: in pixels, and in features if there is an encoder."""
    groups = np.unique(np.asarray(texts), return_inverse=True)[1]
    sides = {"start": pictures["before"], "policy": pictures["after"]}
    found = {"pixel_distance": {name: diversity(images, groups).to_json() for name, images in sides.items()}}
    if encoder is not None:
        distances = {name: feature_distance(encoder(images), groups).to_json() for name, images in sides.items()}
        found["feature_distance"] = distances
    numbers["diversity"] = found


def ordered(
    folder: Path, start: str, config: RunConfig, data: str | None, limit: int | None, notes: list[str], draws: int = 10
) -> dict[str, Any]:
    """{"preference": {"implicit_accuracy": ...}}: share of held-out pairs that the implicit reward of the tuned model
    orders as labelled, averaged over `draws` noise levels; nothing where the data holds no pairs, which a note says. A
    model that knows users is asked about each pair for the user who chose it."""
    from prefopt.data.latents import empty_condition, encode_examples
    from prefopt.data.users import RECORD, USER
    from prefopt.models.diffusion import load_image_model
    from prefopt.scoring.denoising import DenoisingScorer

    resolution, read = config.denoising.resolution, config.data
    personal = (folder / FILE).is_file()
    if personal and (folder / RECORD).is_file():
        read = read.model_copy(update={"users": str(folder)})
    needs = {"pairs", *([USER] if personal else [])}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reference = load_image_model(start, resolution=resolution)
    reference.pipeline.to(device)
    try:
        pairs, remarks = pictures_held_out(read, data, needs, limit)
    except PrefoptError as e:
        notes.append(f"No held-out pairs were ordered: {first_line(e)}")
        return {}
    notes += remarks
    encoded = replace(encode_examples(pairs.train, reference, progress=False), users=pairs.users)
    scorer = DenoisingScorer(
        reference.kind,
        reference.schedule,
        empty_condition(reference),
        caption_dropout=0.0,
        reference=reference.denoiser,
        notes=pairs.record["notes"],
        further={"user": 0.0} if personal else {},
    )
    found = implicit_accuracy(_tuned(folder, start, resolution).to(device), scorer, encoded, draws=draws)
    return {"preference": {"implicit_accuracy": found.to_json()}}


def _tuned(folder: Path, start: str, resolution: int | None) -> Any:
    """The denoiser of a run, frozen; with its user branch where it has one, of which nobody is chosen here."""
    from prefopt.models.diffusion import image_model, load_image_model
    from prefopt.models.opening import base_of, open_pipeline

    if not (folder / FILE).is_file():
        return image_model(open_pipeline(folder, start=start), resolution=resolution).denoiser
    net = load_image_model(base_of(folder) or start, resolution=resolution).denoiser
    load_user_branch(net, folder)
    return net
