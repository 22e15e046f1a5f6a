"""What tasks on a diffusers pipeline have in common: how it is opened, what is trained, the reference, the record, the end."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ...config import RunConfig
from ...data.latents import empty_condition, fingerprint
from ...errors import PrefoptError
from ...models.diffusion import ImageModel, load_image_model, make_trainable, save_image_model
from ...models.text import DTYPES
from ..average import Average
from .following import kind_of_reference

log = logging.getLogger("prefopt")

T = TypeVar("T")
Save = Callable[[nn.Module, Path, dict[str, Any] | None], None]


def opened(config: RunConfig, path: str | None = None) -> ImageModel:
    """The pipeline of `model.path`, or of another folder, as the configuration wants it loaded."""
    resolution = config.denoising.resolution
    return load_image_model(path or config.model.path, dtype=dtype_of(config), resolution=resolution)


def refuse_refiner(model: ImageModel) -> None:
    """For methods whose networks begin with pure noise."""
    if model.reads_score:
        raise PrefoptError(
            f"{model.source} refines pictures that it is given, and this method lets it begin with noise; train the base model"
        )


def dtype_of(config: RunConfig) -> torch.dtype:
    """In which the weights are loaded."""
    found = DTYPES[config.model.dtype]
    return found if isinstance(found, torch.dtype) else torch.float32


def encoded(model: ImageModel, encode: Callable[[], T]) -> tuple[T, dict[str, Tensor]]:
    """What `encode` makes of data by the frozen parts, and the condition of the empty caption.

    All of the pipeline is on the GPU for it, if there is one; the frozen parts stay on the CPU afterwards, and the trainer
    moves the denoiser itself.
    """
    if torch.cuda.is_available():
        model.pipeline.to("cuda")
    found, empty = encode(), empty_condition(model)
    for part in model.frozen.values():
        part.to("cpu")
    return found, empty


class Reference(NamedTuple):
    """The reference of a run."""

    kind: str | None  # adapter_off, frozen, user_off; None: there is none
    frozen: nn.Module | None  # the copy, or the other model, that is asked
    identity: str | None  # fingerprint of its weights
    is_start: bool  # is it the model that training starts from?


def reference_of(config: RunConfig, model: ImageModel, start: str, *, asked: bool, own: bool = False) -> Reference:
    """The reference that the configuration says, before anything of the model is made trainable.

    start  fingerprint of the denoiser
    asked  does the method read a reference at all?
    own    a branch beside the backbone is trained, so that without what it reads the network is the start
    Raises PrefoptError for kinds that images do not have, and for another model that reads something else.
    """
    if not asked:
        return Reference(None, None, None, False)
    kind = _kind(config, own)
    if kind != "frozen":
        return Reference(kind, None, start, True)
    if config.reference.path is None:
        return Reference(kind, copy.deepcopy(model.denoiser).requires_grad_(False).eval(), start, True)
    other = opened(config, config.reference.path)
    refuse_unlike(config, model, other)
    return Reference(kind, other.denoiser, fingerprint({"denoiser": other.denoiser}), False)


def _kind(config: RunConfig, own: bool) -> str:
    kind, beside = kind_of_reference(config.reference), config.reference.path is not None
    if kind == "store":
        raise PrefoptError(
            "reference.kind = store: denoising errors depend on fresh noise, so there is nothing to store"
        )
    if kind == "adapter_off" and (config.model.adapter is None or beside):
        raise PrefoptError(
            "reference.kind = adapter_off needs model.adapter, and no reference.path; take frozen, or auto"
        )
    if kind != "auto":
        return kind
    if own and not beside:
        return "user_off"
    return "frozen" if config.model.adapter is None or beside else "adapter_off"


def refuse_unlike(config: RunConfig, model: ImageModel, other: ImageModel) -> None:
    """The model of `reference.path` must read the same latents and captions, and predict alike."""
    same = (other.kind, other.schedule.prediction) == (model.kind, model.schedule.prediction)
    if not same or fingerprint(other.frozen) != fingerprint(model.frozen):
        raise PrefoptError(
            f"reference.path = {config.reference.path}: it is another kind of model, predicts something else, or has another "
            f"VAE or text encoder than {config.model.path}, so the same latents and captions mean something else to it"
        )


def adapter_of(config: RunConfig) -> dict[str, Any] | None:
    """The settings of the LoRA, as peft reads them; None: all weights are trained."""
    return None if config.model.adapter is None else config.model.adapter.model_dump()


def trainable(config: RunConfig, model: ImageModel, reference: str | None = None) -> nn.Module:
    """The denoiser with what is trained of it, or beside it, set so. reference: its kind."""
    net = make_trainable(model, adapter_of(config))
    checked(net, reference)
    return net


def checked(net: nn.Module, reference: str | None) -> None:
    """Ready for the trainer. Raises PrefoptError where it would compute at random beside a reference inside it."""
    if reference in ("adapter_off", "user_off"):
        _refuse_dropout(net)

    def enable(**_: Any) -> None:
        net.enable_gradient_checkpointing()  # type: ignore[operator]

    net.gradient_checkpointing_enable = enable  # type: ignore[assignment]  # the trainer asks by transformers' name


def _refuse_dropout(net: nn.Module) -> None:
    """With an adapter switched off, dropout of the base would make policy and reference differ at random."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0 and "lora_dropout" not in name:
            raise PrefoptError(
                f"the base model's dropout '{name}' (p = {module.p}) is active; set reference.kind = frozen"
            )


def record_of(
    config: RunConfig, model: ImageModel, start: str, data: Mapping[str, Any], reference: Reference
) -> dict[str, Any]:
    """What a run's record says. start: fingerprint of the denoiser; data: the record of the data."""
    told = {"path": config.model.path, "kind": model.kind, "prediction": model.schedule.prediction}
    record = {"data": data, "model": told | {"fingerprint": start}, "reference_is_start": reference.is_start}
    if reference.kind is not None:
        record["reference"] = {"kind": reference.kind, "identity": reference.identity}
    return record


def saver(model: ImageModel, mean: Mapping[str, Average], write: Callable[[Path], None] | None = None) -> Save:
    """How a result is written: with the running mean as weights where there is one. write: if not as a pipeline or a LoRA."""

    def save(trained: nn.Module, folder: Path, _: dict[str, Any] | None) -> None:
        for kept in mean.values():
            kept.into(trained)
        trained.to("cpu")
        if write is None:
            save_image_model(model, folder)
        else:
            write(folder)

    return save


def log_dropped(record: Mapping[str, Any]) -> None:
    """What the record of the rows says was dropped, as warnings."""
    for reason, dropped in record["dropped"].items():
        log.warning("%d rows dropped: %s (the run's record lists them)", dropped["count"], reason)
