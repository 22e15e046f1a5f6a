"""Image models to draw with: a pipeline folder, a LoRA on its start, or two networks of which one is subtracted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ..config import read_yaml
from ..errors import PrefoptError
from .user_branch import FILE

log = logging.getLogger("prefopt")
LORA = "pytorch_lora_weights.safetensors"


def open_pipeline(
    model: str | Path,
    *,
    start: str | None = None,
    negative: str | None = None,
    user: str | None = None,
    user_pairs: str | None = None,
    prompt_only: bool = False,
) -> Any:
    """The pipeline of a folder or hub name, on the accelerator if there is one.

    A folder that holds a LoRA is laid on `start`, or on the model that the run's config.yaml names, and fused into its
    weights; likewise one that holds a user branch, whose pictures are for `user` ("anna", or "anna=0.3,ben=0.7") or for
    whoever chose the pairs of the file `user_pairs`, else for nobody (prompt_only: see `personal.Users.choose`).
    negative: a folder (a LoRA's too) whose denoiser becomes the negative branch of guidance.
    Raises PrefoptError for what cannot be read, and for negative networks of another architecture.
    """
    pipeline = _open(Path(model), model, start)
    _personalise(pipeline, Path(model), user, user_pairs, prompt_only)
    if negative is not None:
        from ..pipelines import denoiser_name, with_negative

        if hasattr(pipeline, "negative_" + denoiser_name(pipeline)):
            raise PrefoptError(f"{model} has a negative network already; {negative} would be a second one")
        other = _open(Path(negative), negative, start or base_of(Path(model)) or str(model))
        pipeline = with_negative(pipeline, getattr(other, denoiser_name(other), None))
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def _personalise(pipeline: Any, folder: Path, user: str | None, pairs: str | None, prompt_only: bool) -> None:
    asked = user is not None or pairs is not None
    if not (folder / FILE).is_file():
        if asked or prompt_only:
            raise PrefoptError(
                f"{folder} holds no user branch, so no user can be drawn for; prefopt train ppd makes one"
            )
        return
    if prompt_only and not asked:
        raise PrefoptError("prompt_only has no effect without a user")
    if user is not None and pairs is not None:
        raise PrefoptError(f"user {user} and the pairs {pairs}: give one of them")
    from ..personal import load_users, parse_users

    users = load_users(pipeline, folder)
    if not asked:
        log.warning(
            "%s knows users (%s ...); without one the pictures are its start's", folder, ", ".join(users.names[:3])
        )
    users.choose(users.embed(pairs) if pairs else user and parse_users(user), prompt_only=prompt_only)


def base_of(folder: Path) -> str | None:
    """The model that a run folder's training started from; None for other folders."""
    note = folder / "config.yaml"
    section = read_yaml(note).get("model") if note.is_file() else None
    return section.get("path") if isinstance(section, dict) else None


def _open(place: Path, model: str | Path, start: str | None) -> Any:
    from ..pipelines import CLASSES, load
    from .diffusion import load_image_model, pipeline_index

    added = next((name for name in (LORA, FILE) if (place / name).is_file()), None)
    if added is not None:
        base = base_of(place) or start
        if base is None:
            raise PrefoptError(f"{place} holds {added}, and no config.yaml that says of which model: give its start")
        pipeline = load_image_model(base).pipeline
        if added == FILE:
            return pipeline
        pipeline.load_lora_weights(str(place))
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()  # what is left are plain weights under the base's names
        return pipeline
    if place.is_dir():
        if not (place / "model_index.json").is_file():
            raise PrefoptError(f"{place} holds no trained model yet: let the run finish")
        if pipeline_index(place).get("_class_name") in CLASSES:
            return load(place)
    return load_image_model(model).pipeline
