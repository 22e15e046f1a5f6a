"""The image modality: a diffusers pipeline, cached latents, denoising scores, a reference."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import RunConfig
from ..data.latents import empty_condition, fingerprint
from ..data.prepare_images import prepare_images
from ..data.rule import CAPTIONS
from ..data.users import UserTable
from ..errors import PrefoptError
from ..models.diffusion import ImageModel, load_image_model, make_trainable, save_image_model
from ..models.user_branch import insert_user_branch, save_user_branch
from ..objectives.method import Method
from ..scoring.bank import Bank
from ..scoring.denoising import DenoisingScorer
from ..scoring.moving import Moving
from ..scoring.noising import Forward, Noising, noising_for
from ..scoring.noising.forward import ForwardEach
from ..scoring.schedules import Schedule
from .following import averaged, following, kind_of_reference
from .generations import generation_of
from .needs import data_needs
from .task import Task

log = logging.getLogger("prefopt")


def diffusion_task(config: RunConfig, method: Method) -> Task:
    """Model, data and scorer of an image run. Raises PrefoptError for whatever cannot be trained on."""
    needs = method.needs()
    if (way := generation_of(needs)) is not None:
        return way.load()(config, method)
    model = load_image_model(config.model.path, dtype=dtype_of(config), resolution=config.denoising.resolution)
    schedule, noising = _schedule(config, model), _noising(config, needs)
    noising.check(schedule)
    if torch.cuda.is_available():
        model.pipeline.to("cuda")  # encoding is faster there; the trainer moves the denoiser itself
    look = config.denoising
    mixed = look.mixed_sizes == "resize"
    data = prepare_images(config.data, model, needs=data_needs(needs), flip=look.random_flip, mixed_sizes=mixed)
    empty = empty_condition(model)
    for part in model.frozen.values():
        part.to("cpu")
    _tell(data.record)
    identity = fingerprint({"denoiser": model.denoiser})
    user = needs.get("conditions:user")
    kind = reference_kind(config, own=user is not None) if "scores:reference" in needs else None
    frozen = frozen_reference(config, model) if kind == "frozen" else None
    own = config.reference.path is None
    reference = None if kind is None else identity if own else fingerprint({"denoiser": frozen})  # type: ignore[dict-item]
    # float32 whatever the policy is in: the small steps of a running mean would round away
    teacher = None if noising.teacher_rate is None else copy.deepcopy(model.denoiser).float()
    if user is None:
        net = make_trainable(model, None if config.model.adapter is None else config.model.adapter.model_dump())
    else:
        net = _with_users(config, model, data.train.users[0].shape[-1], user["how"]["lam"])
    if kind in ("adapter_off", "user_off"):
        refuse_noise(net)
    with_checkpointing(net)
    scorer: Any = DenoisingScorer(  # of image batches: narrower than the protocol says
        model.kind,
        schedule,
        empty,
        seed=int(config.train.get("data_seed") or config.train.get("seed") or 0),
        caption_dropout=_caption_dropout(config, needs),
        reference=frozen,
        notes=data.record["notes"],
        noising=noising,
        teacher=teacher,
        further={} if user is None else {"user": user["how"].get("dropout", 0.0)},
        bank=_bank(config, reference, schedule, noising),
        own_captions=f"conditions:{CAPTIONS}" in needs,
    )
    record = {"data": data.record, "reference_is_start": kind is not None and own}
    record |= {"model": _told(config, model, schedule, identity)}
    record |= {} if kind is None else {"reference": {"kind": kind, "identity": reference}}
    mean = averaged(config, net)
    moving: dict[str, Any] = {} if frozen is None else following(config.reference, frozen, net)
    if teacher is not None and noising.teacher_rate is not None:
        moving["teacher"] = Moving(teacher, noising.teacher_rate, noising.teacher_every).check(net)
    save = _saver(config, model, mean, None if user is None else user["how"]["lam"])
    return Task(net, data.train, data.eval, scorer, save, record, unit="images", moving=moving | mean)


def _told(config: RunConfig, model: ImageModel, schedule: Schedule, identity: str) -> dict[str, Any]:
    """What the record of a run says about its model."""
    prediction = schedule.prediction
    return {"path": config.model.path, "kind": model.kind, "prediction": prediction, "fingerprint": identity}


def _saver(
    config: RunConfig, model: ImageModel, mean: Mapping[str, Any], lam: float | None
) -> Callable[[nn.Module, Path, dict[str, Any] | None], None]:
    """How the result is written. lam: of a user branch, which then is all that is written, and the users beside it."""

    def save(trained: nn.Module, folder: Path, _: dict[str, Any] | None) -> None:
        for kept in mean.values():
            kept.into(trained)
        trained.to("cpu")
        if lam is None:
            save_image_model(model, folder)
            return
        save_user_branch(model.denoiser, folder, lam)
        if config.data.users is not None:
            UserTable.load(config.data.users).save(folder)

    return save


def dtype_of(config: RunConfig) -> torch.dtype:
    """In which the weights are loaded."""
    return torch.float32 if config.model.dtype == "auto" else getattr(torch, config.model.dtype)


def _caption_dropout(config: RunConfig, needs: Mapping[str, Any]) -> float | None:
    """As configured; captions of the images' own are kept unless that is asked for."""
    given = config.denoising.caption_dropout
    return 0.0 if given is None and f"conditions:{CAPTIONS}" in needs else given


def _noising(config: RunConfig, needs: Mapping[str, Mapping[str, Any]]) -> Noising:
    """The method's way, and whether the images of a prompt share their noise."""
    noising = noising_for(needs)
    if config.denoising.shared_noise:
        return noising
    if type(noising) is not Forward:
        raise PrefoptError(f"denoising.shared_noise has no effect: the method noises images by '{noising.name}'")
    return ForwardEach(force_epsilon=noising.force_epsilon)


def _bank(config: RunConfig, reference: str | None, schedule: Schedule, noising: Noising) -> Bank | None:
    """The bank of fixed draws that is asked for. Raises PrefoptError where no reference's errors stay what they are."""
    draws = config.denoising.bank
    if draws is None:
        return None
    if reference is None:
        raise PrefoptError("denoising.bank has no effect: the method has no reference whose errors could be kept")
    if config.reference.moves:
        raise PrefoptError("denoising.bank keeps the errors of one reference, and this one follows the policy")
    levels = b"" if schedule.alphas_cumprod is None else schedule.alphas_cumprod.numpy().tobytes()
    computed = [config.train.get(name) for name in ("bf16", "fp16", "tf32")]
    how = [schedule.prediction, hashlib.sha256(levels).hexdigest(), noising.name, config.model.dtype, *computed]
    return Bank(draws, " ".join(map(str, [reference, *how])))


def _schedule(config: RunConfig, model: ImageModel) -> Schedule:
    given = config.given("denoising") & {"flow_sampling", "flow_shift"}
    if not given:
        return model.schedule.limited(config.denoising.timesteps)
    if model.schedule.prediction != "flow":
        key = sorted(given)[0]
        raise PrefoptError(
            f"denoising.{key} has no effect: {config.model.path} predicts {model.schedule.prediction}, no flow"
        )
    drawn = model.schedule.drawn_by(config.denoising.flow_sampling, config.denoising.flow_shift)
    return drawn.limited(config.denoising.timesteps)


def _with_users(config: RunConfig, model: ImageModel, width: int, lam: float) -> nn.Module:
    """The denoiser with a user branch, which alone is trained."""
    if config.model.adapter is not None:
        raise PrefoptError(
            "model.adapter: with a user branch the backbone stays frozen, for without the user it is the reference; leave "
            "the adapter out"
        )
    insert_user_branch(model.denoiser, width, lam=lam, seed=int(config.train.get("seed") or 0))
    return model.denoiser


def reference_kind(config: RunConfig, own: bool = False) -> str:
    """adapter_off, frozen, or user_off. Raises PrefoptError for what images do not have.

    own: a branch beside the backbone is trained, so that without what it reads the network is the start.
    """
    kind = kind_of_reference(config.reference)
    if kind == "store":
        raise PrefoptError(
            "reference.kind = store: denoising errors depend on fresh noise, so there is nothing to store"
        )
    if kind == "adapter_off" and (config.model.adapter is None or config.reference.path is not None):
        raise PrefoptError(
            "reference.kind = adapter_off needs model.adapter, and no reference.path; take frozen, or auto"
        )
    if kind == "auto" and own and config.reference.path is None:
        return "user_off"
    if kind == "auto":
        return "frozen" if config.model.adapter is None or config.reference.path is not None else "adapter_off"
    return kind


def frozen_reference(config: RunConfig, model: ImageModel) -> nn.Module:
    """A frozen copy of the start, or the denoiser of `reference.path`, which must read the same latents and text."""
    if config.reference.path is None:
        return copy.deepcopy(model.denoiser).requires_grad_(False).eval()
    other = load_image_model(config.reference.path, dtype=dtype_of(config), resolution=config.denoising.resolution)
    same = (other.kind, other.schedule.prediction) == (model.kind, model.schedule.prediction)
    if not same or fingerprint(other.frozen) != fingerprint(model.frozen):
        raise PrefoptError(
            f"reference.path = {config.reference.path}: it is another kind of model, or has another VAE or text "
            f"encoder than {config.model.path}, so the same latents and captions mean something else to it"
        )
    return other.denoiser


def refuse_noise(net: nn.Module) -> None:
    """With an adapter switched off, dropout of the base would make policy and reference differ at random."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0 and "lora_dropout" not in name:
            raise PrefoptError(
                f"the base model's dropout '{name}' (p = {module.p}) is active; set reference.kind = frozen"
            )


def with_checkpointing(net: nn.Module) -> None:
    """The trainer asks by transformers' names."""

    def enable(**_: Any) -> None:
        net.enable_gradient_checkpointing()  # type: ignore[operator]

    net.gradient_checkpointing_enable = enable  # type: ignore[assignment]


def _tell(record: dict[str, Any]) -> None:
    for reason, dropped in record["dropped"].items():
        log.warning("%d rows dropped: %s (the run's record lists them)", dropped["count"], reason)
    sizes = record["images"]
    if sizes["examples_of_mixed_size"] or sizes["enlarged"]:
        log.warning(
            "%d examples mix image sizes and %d images are smaller than %d pixels; all are resized and cropped",
            sizes["examples_of_mixed_size"],
            sizes["enlarged"],
            sizes["resolution"],
        )
