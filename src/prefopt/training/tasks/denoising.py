"""The image modality: a diffusers pipeline, cached latents, denoising scores, a reference."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ...config import RunConfig
from ...data.latents import fingerprint
from ...data.prepare_images import prepare_images
from ...data.rule import CAPTIONS
from ...data.users import UserTable
from ...errors import PrefoptError
from ...models.diffusion import ImageModel
from ...models.user_branch import insert_user_branch, save_user_branch
from ...objectives.method import Method
from ...scoring.bank import Bank
from ...scoring.denoising import DenoisingScorer
from ...scoring.moving import Moving
from ...scoring.noising import Forward, Noising, noising_for
from ...scoring.noising.forward import ForwardEach
from ...scoring.schedules import Schedule
from ..needs import data_needs
from ..task import Task
from .following import averaged, following
from .generations import generation_of
from .pipeline import checked, encoded, log_dropped, opened, record_of, reference_of, refuse_refiner, saver, trainable

log = logging.getLogger("prefopt")


def diffusion_task(config: RunConfig, method: Method) -> Task:
    """Model, data and scorer of an image run. Raises PrefoptError for whatever cannot be trained on."""
    needs = method.needs()
    if (way := generation_of(needs)) is not None:
        return way.load()(config, method)
    model = opened(config)
    schedule, noising = _schedule(config, model), _noising(config, needs)
    noising.check(schedule)
    if noising.from_noise:
        refuse_refiner(model)
    look = config.denoising
    how = {"flip": look.random_flip, "mixed_sizes": look.mixed_sizes == "resize"}
    data, empty = encoded(model, lambda: prepare_images(config.data, model, needs=data_needs(needs), **how))
    _tell(data.record)
    start, user = fingerprint({"denoiser": model.denoiser}), needs.get("conditions:user")
    reference = reference_of(config, model, start, asked="scores:reference" in needs, own=user is not None)
    # float32 whatever the policy is in: the small steps of a running mean would round away
    teacher = None if noising.teacher_rate is None else copy.deepcopy(model.denoiser).float()
    write = None
    if user is None:
        net = trainable(config, model, reference.kind)
    else:
        net = _with_users(config, model, data.train.users[0].shape[-1], user["how"]["lam"])
        checked(net, reference.kind)
        write = partial(_save_users, config, model, user["how"]["lam"])
    scorer: Any = DenoisingScorer(  # of image batches: narrower than the protocol says
        model.kind,
        schedule,
        empty,
        seed=config.data_seed,
        caption_dropout=_caption_dropout(config, needs),
        reference=reference.frozen,
        notes=data.record["notes"],
        noising=noising,
        teacher=teacher,
        further={} if user is None else {"user": user["how"].get("dropout", 0.0)},
        bank=_bank(config, reference.identity, schedule, noising),
        own_captions=f"conditions:{CAPTIONS}" in needs,
    )
    record = record_of(config, model, start, data.record, reference)
    mean = averaged(config, net)
    moving: dict[str, Any] = following(config.reference, reference.frozen, net)
    if teacher is not None and noising.teacher_rate is not None:
        moving["teacher"] = Moving(teacher, noising.teacher_rate, noising.teacher_every).check(net)
    save = saver(model, mean, write)
    return Task(net, data.train, data.eval, scorer, save, record, unit="images", moving=moving | mean)


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
    insert_user_branch(model.denoiser, width, lam=lam, seed=int(config.train.get("seed", 0)))
    return model.denoiser


def _save_users(config: RunConfig, model: ImageModel, lam: float, folder: Path) -> None:
    """The branch alone, and the users beside it."""
    save_user_branch(model.denoiser, folder, lam)
    if config.data.users is not None:
        UserTable.load(config.data.users).save(folder)


def _tell(record: dict[str, Any]) -> None:
    log_dropped(record)
    sizes = record["images"]
    if sizes["examples_of_mixed_size"] or sizes["enlarged"]:
        log.warning(
            "%d examples mix image sizes and %d images are smaller than %d pixels; all are resized and cropped",
            sizes["examples_of_mixed_size"],
            sizes["enlarged"],
            sizes["resolution"],
        )
