"""Image models to draw with: a pipeline folder, a LoRA on its start, or two networks of which one is subtracted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..config import read_yaml
from ..errors import PrefoptError

LORA = "pytorch_lora_weights.safetensors"


def open_pipeline(model: str | Path, *, start: str | None = None, negative: str | None = None) -> Any:
    """The pipeline of a folder or hub name, on the accelerator if there is one.

    A folder that holds a LoRA is laid on `start`, or on the model that the run's config.yaml names, and fused into its
    weights. negative: a folder (a LoRA's too) whose denoiser becomes the negative branch of guidance.
    Raises PrefoptError for what cannot be read, and for negative networks of another architecture.
    """
    pipeline = _open(Path(model), model, start)
    if negative is not None:
        from ..pipelines import denoiser_name, with_negative

        if hasattr(pipeline, "negative_" + denoiser_name(pipeline)):
            raise PrefoptError(f"{model} has a negative network already; {negative} would be a second one")
        other = _open(Path(negative), negative, start or base_of(Path(model)) or str(model))
        pipeline = with_negative(pipeline, getattr(other, denoiser_name(other), None))
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def base_of(folder: Path) -> str | None:
    """The model that a run folder's training started from; None for other folders."""
    note = folder / "config.yaml"
    section = read_yaml(note).get("model") if note.is_file() else None
    return section.get("path") if isinstance(section, dict) else None


def _open(place: Path, model: str | Path, start: str | None) -> Any:
    from ..pipelines import CLASSES, load
    from .diffusion import load_image_model

    if (place / LORA).is_file():
        base = base_of(place) or start
        if base is None:
            raise PrefoptError(f"{place} holds a LoRA, and no config.yaml that says of which model: give its start")
        pipeline = load_image_model(base).pipeline
        pipeline.load_lora_weights(str(place))
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()  # what is left are plain weights under the base's names
        return pipeline
    index = place / "model_index.json"
    if place.is_dir() and not index.is_file():
        raise PrefoptError(f"{place} holds no trained model yet: let the run finish")
    if index.is_file() and json.loads(index.read_text(encoding="utf-8")).get("_class_name") in CLASSES:
        return load(place)
    return load_image_model(model).pipeline
