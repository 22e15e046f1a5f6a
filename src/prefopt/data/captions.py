"""Prompts for image models that make their own pictures: captions with cached embeddings, no images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..models.diffusion import ImageModel
from .config import DataConfig
from .example import Example
from .image_examples import read_split, stop_if_empty
from .latents import encode_captions, read_cached, same_for_all

_kept = lru_cache(maxsize=256)(read_cached)


@dataclass(frozen=True)
class EncodedPrompt:
    """One caption as the denoiser reads it."""

    index: int
    prompt: str
    condition: Mapping[str, Tensor]  # "text" [L, D], "pooled" [E], "time_ids" [6]


@dataclass
class PromptSet:
    """Captions whose embeddings lie in the cache."""

    examples: list[Example]
    captions: list[Path]
    shared: dict[str, Tensor]  # conditions that are the same for all
    tokens: np.ndarray = field(init=False)  # [n] cost of each: one picture

    def __post_init__(self) -> None:
        self.tokens = np.ones(len(self.examples), dtype=int)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> EncodedPrompt:
        condition = _kept(self.captions[index]) | self.shared
        return EncodedPrompt(index, str(self.examples[index].prompt), condition)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the prompts in their order."""
        return hashlib.sha256(repr([path.name for path in self.captions]).encode()).hexdigest()


@dataclass(frozen=True)
class PreparedPrompts:
    """The prompts of a run and their record."""

    train: PromptSet
    eval: PromptSet | None
    record: dict[str, Any]


def prepare_prompts(data: DataConfig, model: ImageModel, *, progress: bool = True) -> PreparedPrompts:
    """Reads the prompts of rows of any layout (images are not looked at) and encodes what the cache does not hold.

    Raises PrefoptError by the rule for rows, and where nothing is left to train on.
    """
    train, held_out, record = read_split(data, {"prompts"})
    stop_if_empty(train, held_out, data, record["rows"])
    encoded = _encoded(train, model, progress)
    evaluated = _encoded(held_out, model, progress) if held_out else None
    record |= {"paths": data.paths, "train": {"examples": len(train)}, "notes": [], "names": {}}
    record |= {"eval": {"examples": len(held_out)}} if held_out else {}
    return PreparedPrompts(encoded, evaluated, record | {"fingerprint": encoded.fingerprint})


def _encoded(examples: Sequence[Example], model: ImageModel, progress: bool) -> PromptSet:
    captions = encode_captions([str(e.prompt) for e in examples], model, progress=progress)
    return PromptSet(list(examples), captions, same_for_all(model))
