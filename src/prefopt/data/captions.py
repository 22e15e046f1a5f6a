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

from ..errors import PrefoptError
from ..models.diffusion import ImageModel
from ..scoring.conditioning import CONDITIONS, time_ids
from .config import DataConfig
from .example import Example
from .latents import encode_captions, read_cached
from .prepare import prompt_key
from .source import read_image_examples

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
    train, record = read_image_examples(data, needs_pairs=False, needs={"prompts"})
    held_out: list[Example] = []
    if data.eval_paths:
        held_out, record["eval_data"] = read_image_examples(data, needs_pairs=False, held_out=True, needs={"prompts"})
    elif data.eval_fraction:
        inside = [prompt_key(e, str(data.seed)) / 2**64 < data.eval_fraction for e in train]
        held_out = [e for e, out in zip(train, inside, strict=True) if out]
        train = [e for e, out in zip(train, inside, strict=True) if not out]
    for name, part in {"train": train, "eval": held_out}.items():
        if not part and (name == "train" or data.eval_paths or data.eval_fraction):
            raise PrefoptError(f"data: no prompt is left for {name} ({record['rows']} rows were read); give more data")
    encoded = _encoded(train, model, progress)
    evaluated = _encoded(held_out, model, progress) if held_out else None
    record |= {"paths": data.paths, "train": {"examples": len(train)}, "notes": [], "names": {}}
    record |= {"eval": {"examples": len(held_out)}} if held_out else {}
    return PreparedPrompts(encoded, evaluated, record | {"fingerprint": encoded.fingerprint})


def _encoded(examples: Sequence[Example], model: ImageModel, progress: bool) -> PromptSet:
    captions = encode_captions([str(e.prompt) for e in examples], model, progress=progress)
    shared = {"time_ids": time_ids(model.resolution)} if "time_ids" in CONDITIONS[model.kind] else {}
    return PromptSet(list(examples), captions, shared)
