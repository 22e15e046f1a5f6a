"""How much better the pictures of a tuned model are than those of its start, on equal prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import PrefoptError
from ..objectives.scores import Scores
from ..scoring.base import Draw, only
from ..scoring.denoising import DenoisingScorer
from .estimate import Estimate, mean, paired_difference
from .winrate import share

Reward = Callable[[Sequence[str], Sequence[Any]], Sequence[float]]


@dataclass(frozen=True)
class ImageComparison:
    """Mean reward of both models, gain and win rate on equal seeds (ties count 1/2), diversity of both."""

    before: Estimate
    after: Estimate
    gain: Estimate
    win_rate: Estimate
    diversity_before: Estimate
    diversity_after: Estimate

    def to_json(self) -> dict[str, Any]:
        return {name: value.to_json() for name, value in vars(self).items()}


def compare_images(
    prompts: Sequence[str], before: Sequence[Any], after: Sequence[Any], reward: Reward
) -> ImageComparison:
    """`before[i]` and `after[i]` are made from prompt i and the same seed; several pictures of a prompt count as one
    group, so all standard errors are over prompts."""
    if not len(prompts) == len(before) == len(after):
        raise PrefoptError(f"{len(prompts)} prompts, {len(before)} pictures before and {len(after)} after are no pairs")
    groups = np.unique(np.asarray(prompts), return_inverse=True)[1]
    old, new = (np.asarray(reward(prompts, images), dtype=np.float64) for images in (before, after))
    wins = np.where(np.isfinite(old + new), (np.sign(new - old) + 1) / 2, np.nan)
    return ImageComparison(
        before=mean(old, groups),
        after=mean(new, groups),
        gain=paired_difference(new, old, groups),
        win_rate=share(wins, groups),
        diversity_before=diversity(before, groups),
        diversity_after=diversity(after, groups),
    )


def diversity(images: Sequence[Any], groups: Sequence[int] | np.ndarray) -> Estimate:
    """Root mean squared pixel distance (0..1) between two pictures of one prompt, averaged over prompts.

    Pictures of one size; prompts with a single picture are dropped and counted.
    """
    pixels = np.stack([np.asarray(i.convert("RGB"), dtype=np.float32).ravel() / 255 for i in images])
    values = []
    for group in np.unique(groups):
        x = pixels[np.asarray(groups) == group]
        distance = [np.sqrt(np.mean((a - b) ** 2)) for n, a in enumerate(x) for b in x[:n]]
        values.append(np.mean(distance) if distance else np.nan)
    return mean(values, reason="fewer than two pictures")


def feature_distance(features: np.ndarray, groups: Sequence[int] | np.ndarray) -> Estimate:
    """Mean of 1 - cos between the features [n, D] of two pictures of one prompt, averaged over prompts.

    Prompts with a single picture are dropped and counted.
    """
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    values = []
    for group in np.unique(groups):
        x = unit[np.asarray(groups) == group]
        distance = [1 - float(a @ b) for n, a in enumerate(x) for b in x[:n]]
        values.append(float(np.mean(distance)) if distance else np.nan)
    return mean(values, reason="fewer than two pictures")


@torch.no_grad()
def implicit_accuracy(
    model: nn.Module, scorer: DenoisingScorer, examples: Any, *, draws: int = 10, batch_size: int = 32
) -> Estimate:
    """Share of held-out pairs that the implicit reward orders as they are labelled, ties 1/2.

    The reward of an image is its denoising log-ratio averaged over `draws` noise levels (a single one is mostly noise).
    """
    device = next(model.parameters()).device
    right: list[float] = []
    for start in range(0, len(examples), batch_size):
        rows = [examples[i] for i in range(start, min(start + batch_size, len(examples)))]
        total: torch.Tensor | float = 0.0
        for epoch in range(draws):
            batch = scorer.collate([Draw(row, epoch) for row in rows]).to(device)
            scored = scorer.score(model, batch, {"scores:policy": {}, "scores:reference": {}})
            scores = only(Scores, scored["responses"])
            ratio = (scores["policy"] - scores["reference"]).sum()
            pairs = batch.notes["pairs"]
            total = total + ratio[pairs[:, 0]] - ratio[pairs[:, 1]]
        right += ((torch.sign(torch.as_tensor(total)) + 1) / 2).tolist()
    return share(right)
