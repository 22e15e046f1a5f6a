"""Rewards with a gradient: functions of pictures as tensors, for generators that are trained through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import PrefoptError
from ..models.preference import as_clip_reads
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
    """A scorer of pictures read as tensors: its processor's rule (resize, crop, normalise) in torch."""

    def reward(images: Tensor, prompts: list[str]) -> Tensor:
        if scorer.device != images.device:
            scorer.device = images.device
            scorer.model.to(images.device)
        return scorer.values(as_clip_reads(images, scorer.processor.image_processor), prompts)

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
