"""Training on the policy's own sampler steps: a pipeline, prompts, a reward or a judge, and rounds of roll-outs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import RunConfig
from ..data.captions import prepare_prompts
from ..data.latents import empty_condition, fingerprint
from ..errors import PrefoptError
from ..models.diffusion import ImageModel, load_image_model, make_trainable, save_image_model
from ..objectives.method import Method
from ..rewards.load import load_reward
from ..rewards.step_aware import load_step_judge
from ..rollout.pools import Pools
from ..rollout.trajectories import Trajectories
from ..scoring.transition_scorer import TransitionScorer
from ..scoring.transitions import refuse_flows
from .diffusion_task import dtype_of, frozen_reference, reference_kind, refuse_noise, with_checkpointing
from .following import averaged, following
from .image_rounds import ImageRounds, PoolRounds, Sources, TrajectoryRounds
from .rounds import Rounds
from .task import Task

PEOPLE = "people"
"""rollout.reward: pictures are marked by hand, and the run waits for it in every round."""


def transition_task(config: RunConfig, method: Method) -> Task:
    """Everything of a run on roll-outs. Raises PrefoptError for whatever cannot be trained on."""
    needs = method.needs()
    name = next(n for n in MAKERS if f"generation:{n}" in needs)
    given = needs[f"generation:{name}"]["how"]
    model = load_image_model(config.model.path, dtype=dtype_of(config), resolution=config.denoising.resolution)
    refuse_flows(model.schedule)
    _refuse_clipping(model)
    if torch.cuda.is_available():
        model.pipeline.to("cuda")  # encoding is faster there; the trainer moves the denoiser itself
    data = prepare_prompts(config.data, model)
    empty = empty_condition(model)
    for part in model.frozen.values():
        part.to("cpu")
    identity = fingerprint({"denoiser": model.denoiser})
    kind = reference_kind(config) if "scores:reference" in needs else None
    frozen = frozen_reference(config, model) if kind == "frozen" else None
    net = make_trainable(model, None if config.model.adapter is None else config.model.adapter.model_dump())
    if kind == "adapter_off":
        refuse_noise(net)
    with_checkpointing(net)
    seed = int(config.train.get("data_seed") or config.train.get("seed") or 0)
    maker: Any = MAKERS[name](given, Sources(model, data.train, empty, config.rollout, seed))
    rounds = Rounds(maker, Path(config.output), config.rollout.rounds, keep=config.rollout.reward == PEOPLE)
    scorer: Any = TransitionScorer(
        model.kind,
        model.schedule,
        empty,
        eta=given["eta"],
        guidance=given["guidance"],
        generation=name,
        reference=frozen,
        notes=maker.notes,
    )
    other = identity if config.reference.path is None else fingerprint({"denoiser": frozen})  # type: ignore[dict-item]
    record: dict[str, Any] = {
        "data": data.record,
        "model": {"path": config.model.path, "kind": model.kind, "prediction": model.schedule.prediction}
        | {"fingerprint": identity},
        "reference_is_start": kind is not None and config.reference.path is None,
    }
    if kind is not None:
        record["reference"] = {"kind": kind, "identity": other}

    mean = averaged(config, net)

    def save(trained: nn.Module, folder: Path, _: dict[str, Any] | None) -> None:
        for kept in mean.values():
            kept.into(trained)
        trained.to("cpu")
        save_image_model(model, folder)

    moving = {} if frozen is None else following(config.reference, frozen, net)
    return Task(net, rounds, None, scorer, save, record, rounds=rounds, unit="images", moving={**moving, **mean})


def _refuse_clipping(model: ImageModel) -> None:
    """A sampler that clips its estimates has another density than the Gaussian that is trained on."""
    for key in ("clip_sample", "thresholding"):
        if model.pipeline.scheduler.config.get(key):
            raise PrefoptError(
                f"{model.source}: scheduler/scheduler_config.json has {key} = true, so the sampler's steps are not the "
                "Gaussians that this method learns from. Set it to false"
            )


def _trajectories(given: dict[str, Any], of: Sources) -> ImageRounds:
    spec = of.rollout.reward
    if spec is None:
        raise PrefoptError(
            "there is no verdict on the pictures: set rollout.reward to a function of (prompts, images), a scorer "
            f"(KIND:FOLDER), or '{PEOPLE}' for marks by hand"
        )
    return TrajectoryRounds(of, Trajectories(**given), None if spec == PEOPLE else load_reward(spec))


def _pools(given: dict[str, Any], of: Sources) -> ImageRounds:
    spec = of.rollout.reward
    if spec is None:
        raise PrefoptError(
            "there is no judge of the steps: set rollout.reward to step-aware:FOLDER (prefopt train clip-preference "
            "method.step_aware=true makes one), or module:function of (images in [-1, 1], prompts, timesteps)"
        )
    return PoolRounds(of, Pools(**given), load_step_judge(spec))


MAKERS: dict[str, Callable[[dict[str, Any], Sources], ImageRounds]] = {
    "trajectories": _trajectories,
    "pools": _pools,
}
