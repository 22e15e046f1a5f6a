"""Preference models of pictures: a CLIPModel trained on pairs, plain or step-aware, saved as a CLIPModel folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...config import RunConfig
from ...data.example import Example
from ...data.images import image_of
from ...data.latents import content_of, empty_condition, encode_examples, fingerprint
from ...data.prepare_images import read_pictures
from ...errors import PrefoptError
from ...models.diffusion import load_image_model
from ...models.preference import PreferenceModel
from ...objectives.method import Method
from ...rewards.images import clip_words, load_clip, load_processor
from ...scoring.base import PREDICTED
from ...scoring.denoising import DenoisingScorer
from ...scoring.preference import PictureExample, Predicted, PreferenceScorer, WithPrompts
from ..needs import data_needs
from ..task import Task
from .pipeline import dtype_of, log_dropped

BASE = "base"
"""The source that a step-aware model's pictures are predicted by."""


class PictureSet:
    """Pictures read and preprocessed when they are asked for."""

    def __init__(self, examples: Sequence[Example], processor: Any):
        self.examples, self.processor = examples, processor
        self.tokens = np.array([len(e.responses) for e in examples])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> PictureExample:
        e = self.examples[index]
        images = [image_of(r, e) for r in e.responses]
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return PictureExample(index, str(e.prompt), pixels, e.pairs, e.notes)


def preference_task(config: RunConfig, method: Method) -> Task:
    """Model, data and scorer of a preference model. Raises PrefoptError for whatever cannot be trained on."""
    needs = method.needs()
    if config.model.adapter is not None:
        raise PrefoptError("model.adapter has no effect: a preference model is trained whole")
    clip = load_clip(config.model.path, "model.path")
    processor = load_processor(config.model.path, "model.path")
    start = fingerprint({"model": clip})
    step_aware = f"noising:{PREDICTED}" in needs
    model = PreferenceModel.of(clip.to(dtype_of(config)), step_aware).requires_grad_(True)
    read = read_pictures(config.data, data_needs(needs))
    log_dropped(read.record)
    record: dict[str, Any] = {
        "data": read.record | {"fingerprint": _content(read.train)},
        "model": {"path": config.model.path, "kind": "clip", "fingerprint": start},
        "reference_is_start": False,
    }
    predicted = None
    if step_aware:
        predicted, record["sources"] = _predicted(config, needs[f"noising:{PREDICTED}"]["how"])
        sets = [encode_examples(e, predicted.model) for e in (read.train, read.eval) if e]
        data: list[Any] = [WithPrompts(x) for x in sets]
    else:
        data = [PictureSet(e, processor) for e in (read.train, read.eval) if e]
    words = partial(clip_words, processor.tokenizer, clip)
    notes = read.record["notes"]
    scorer: Any = PreferenceScorer(words, processor.image_processor, notes=notes, predicted=predicted)

    def save(trained: nn.Module, folder: Path, _: dict[str, Any] | None) -> None:
        assert isinstance(trained, PreferenceModel)
        trained.to("cpu").save(folder)
        processor.save_pretrained(folder)

    model.gradient_checkpointing_enable = _checkpointing(clip, step_aware)  # type: ignore[assignment]
    held_out = data[1] if len(data) > 1 else None
    return Task(model, data[0], held_out, scorer, save, record, unit="pictures")


def _predicted(config: RunConfig, how: dict[str, Any]) -> tuple[Predicted, dict[str, Any]]:
    """The frozen pipeline of `sources.base`, and its record."""
    path = config.sources[BASE].path
    base = load_image_model(path)
    draws = DenoisingScorer(base.kind, base.schedule, empty_condition(base), seed=config.data_seed, caption_dropout=0.0)
    parts = {"denoiser": base.denoiser, **base.frozen}
    return Predicted(base, draws, **how), {BASE: {"path": path}, "fingerprint": fingerprint(parts)}


def _content(examples: Sequence[Example]) -> str:
    """SHA-256 of what is trained on: prompts, pictures, pairs and annotations."""
    digest = hashlib.sha256()
    for e in examples:
        pictures = [hashlib.sha256(content_of(r, e)).hexdigest() for r in e.responses]
        digest.update(repr((str(e.prompt), pictures, e.pairs, sorted(e.notes.items()))).encode())
    return digest.hexdigest()


def _checkpointing(clip: Any, step_aware: bool) -> Any:
    def enable(gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        if step_aware:
            raise PrefoptError(
                "train.gradient_checkpointing has no effect on a step-aware preference model: leave it out"
            )
        clip.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    return enable
