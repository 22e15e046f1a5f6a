"""Judges of single denoising steps: score(images, prompts, timesteps) -> one number each (2406.04314)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import PrefoptError
from ..models.preference import PreferenceModel, as_clip_reads, load_modulation
from .callables import accepts, ask, load_function
from .images import ImageScorer, clip_words, load_clip, names_scorer

log = logging.getLogger("prefopt")


class StepJudge(Protocol):
    """Pictures [n, 3, H, W] in [-1, 1], their prompts, and the times [n] (as the denoiser reads them) at which they were
    predicted -> scores [n], higher is better, differences are logits."""

    def score(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor: ...


class StepAware(ImageScorer):
    """A step-aware preference model that `prefopt train clip-preference method.step_aware=true` made.

    As a scorer of finished pictures it judges at time 0.
    """

    kind = "step-aware"
    model: PreferenceModel

    def load(self, place: str) -> PreferenceModel:
        clip = load_clip(place, self.name)
        return PreferenceModel(clip, load_modulation(clip, place, self.name))

    def values(self, pixels: Tensor, prompts: list[str], time: Tensor | None = None) -> Tensor:
        time = torch.zeros(len(pixels), device=pixels.device) if time is None else time
        words = clip_words(self.processor.tokenizer, self.model.clip, prompts).to(self.device)
        return self.model(pixels, words, time=time)

    @torch.no_grad()
    def score(  # type: ignore[override]  # of decoded tensors, with their times
        self, images: Any, prompts: Sequence[str], timesteps: Tensor | None = None
    ) -> Any:
        if not isinstance(images, Tensor):
            if timesteps is not None:
                raise PrefoptError(f"{self.name}: pictures of a denoising step are a tensor [n, 3, H, W] in [-1, 1]")
            return super().score(images, prompts)
        time = torch.zeros(len(images)) if timesteps is None else timesteps
        if not len(images) == len(prompts) == len(time):
            raise PrefoptError(f"{self.name}: {len(images)} images, {len(prompts)} prompts and {len(time)} times")
        pixels = as_clip_reads(images.to(self.device), self.processor.image_processor)
        return self.values(pixels, list(prompts), time.to(self.device)).float()


def load_step_judge(spec: str | Callable[..., Any]) -> StepJudge:
    """The judge that `spec` names: step-aware:FOLDER, module:function(images, prompts, timesteps), or any reward of
    pictures, which then judges all times alike.

    Raises PrefoptError for what does not exist or cannot be called so.
    """
    from .load import load_reward

    if isinstance(spec, str) and names_scorer(spec):
        from .images import load_scorer

        made = load_scorer(spec)
        return made if isinstance(made, StepAware) else _TimeBlind(made, spec)  # type: ignore[return-value]
    if isinstance(spec, str) and ":" in spec:
        function = load_function(spec, None, "step judge")
    elif callable(spec):
        function = spec
    else:
        function = load_reward(spec)
    name = spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)
    if accepts(function, 3):
        return _Checked(function, name)
    if not accepts(function, 2):
        raise PrefoptError(
            f"step judge {name!r} must take (images, prompts, timesteps), or be a reward of (prompts, images)"
        )
    return _TimeBlind(load_reward(function), name)


class _Checked:
    """A user's function, its answers checked."""

    def __init__(self, function: Callable[..., Any], name: str):
        self.function, self.name = function, name

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        answer = ask(self.function, f"step judge {self.name!r}", images, list(prompts), timesteps)
        try:
            found = torch.as_tensor(answer, dtype=torch.float32, device=images.device).flatten()
        except (TypeError, ValueError, RuntimeError) as error:
            raise PrefoptError(
                f"step judge {self.name!r} must return one number for each picture, got {type(answer).__name__}: {error}"
            ) from error
        if len(found) != len(images):
            raise PrefoptError(f"step judge {self.name!r} returned {len(found)} scores for {len(images)} pictures")
        if not bool(torch.isfinite(found).all()):
            raise PrefoptError(f"step judge {self.name!r} returned {found[~torch.isfinite(found)][0]}: no number")
        return found


class _TimeBlind(_Checked):
    """A reward of pictures at every step: it sees them as PIL images and knows no time."""

    def __init__(self, reward: Callable[..., Any], name: str):
        super().__init__(lambda images, prompts, _: reward(prompts, as_pictures(images)), name)
        log.warning("step judge %r knows no time: it judges half-made pictures as if they were finished", name)


def as_pictures(images: Tensor) -> list[Any]:
    """PIL images of pictures [n, 3, H, W] in [-1, 1]."""
    from PIL import Image

    bytes_ = ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(x) for x in bytes_]
