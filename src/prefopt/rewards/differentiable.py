"""Rewards with a gradient: functions of pictures as tensors, for generators that are trained through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PrefoptError
from .callables import load_function
from .images import ImageScorer, load_scorer, names_scorer

Differentiable = Callable[[Tensor, list[str]], Tensor]
"""(pictures [N, 3, H, W] in [-1, 1], prompts) -> [N]: higher is better, each number of its own picture alone."""


def load_differentiable(spec: str) -> Differentiable:
    """The reward that `spec` names: "module:function", "file.py:function", or a scorer of pictures (KIND:FOLDER).

    A function takes tensors, not the PIL images that a reward without gradient gets.
    """
    if names_scorer(spec):
        return differentiable(load_scorer(spec))
    if ":" not in spec:
        raise PrefoptError(
            f'reward {spec!r} is neither "module:function" nor "file.py:function" nor a scorer of pictures (KIND:FOLDER)'
        )
    return load_function(spec, ("images", "prompts"), "reward")


def differentiable(scorer: ImageScorer) -> Differentiable:
    """A scorer of pictures read as tensors: its own preprocessing (resize, crop, normalise) written in torch."""
    settings: Any = scorer.processor.image_processor
    size = settings.size if isinstance(settings.size, dict) else dict(settings.size)
    crop = dict(settings.crop_size) if getattr(settings, "do_center_crop", False) else None
    moments = [torch.tensor(x)[:, None, None] for x in (settings.image_mean, settings.image_std)]

    def preprocessed(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if "shortest_edge" in size:
            scale = size["shortest_edge"] / min(height, width)
            to = (round(height * scale), round(width * scale))
        else:
            to = (size["height"], size["width"])
        x = images if to == (height, width) else F.interpolate(images, to, mode="bicubic", antialias=True)
        if crop is not None:
            top, left = (x.shape[-2] - crop["height"]) // 2, (x.shape[-1] - crop["width"]) // 2
            x = x[..., top : top + crop["height"], left : left + crop["width"]]
        mean, std = (m.to(x) for m in moments)
        return ((x / 2 + 0.5).clamp(0, 1) - mean) / std

    def reward(images: Tensor, prompts: list[str]) -> Tensor:
        if scorer.device != images.device:
            scorer.device = images.device
            scorer.model.to(images.device)
        return scorer.values(preprocessed(images.float()), prompts)

    return reward


def check_differentiable(reward: Differentiable, name: str, shape: Sequence[int], prompts: Sequence[str]) -> None:
    """PrefoptError unless `reward` gives each of some pictures [3, H, W] a finite number whose gradient is its own."""
    g = torch.Generator().manual_seed(0)
    images = (2 * torch.rand(2, *shape, generator=g) - 1).requires_grad_()
    said = [prompts[0], prompts[-1]]
    try:
        values = reward(images, said)
    except PrefoptError:
        raise
    except Exception as e:
        raise PrefoptError(
            f"reward {name!r} failed on pictures as a tensor {list(images.shape)} with {type(e).__name__}: {e}"
        ) from e
    if not isinstance(values, Tensor):
        raise PrefoptError(f"reward {name!r} must return a tensor [N] with a gradient, got {type(values).__name__}")
    if values.shape != (2,):
        raise PrefoptError(
            f"reward {name!r} returned {list(values.shape)} for 2 pictures: it must give one number for each, [2], not one "
            "for the batch"
        )
    if not values.requires_grad:
        raise PrefoptError(f"reward {name!r} has no gradient: compute it in torch from the tensor that it is given")
    if not bool(values.isfinite().all()):
        raise PrefoptError(f"reward {name!r} returned {values.tolist()}, which is not finite")
    (gradient,) = torch.autograd.grad(values[0], images, allow_unused=True)
    if gradient is None:
        raise PrefoptError(f"reward {name!r} has no gradient with respect to the pictures")
    if not bool(gradient.isfinite().all()):
        raise PrefoptError(f"the gradient of reward {name!r} is not finite")
    if bool(gradient[1].any()):
        raise PrefoptError(
            f"reward {name!r} mixes pictures: the number of one depends on another (a batch norm in training mode, or a "
            "mean over the batch)"
        )
