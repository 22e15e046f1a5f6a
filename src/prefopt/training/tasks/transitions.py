"""Training on the policy's own sampler steps: a pipeline, prompts, a reward or a judge, and rounds of roll-outs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...config import RunConfig
from ...data.captions import prepare_prompts
from ...data.latents import fingerprint
from ...errors import PrefoptError
from ...models.diffusion import ImageModel
from ...objectives.method import Method
from ...rewards.load import load_reward
from ...rewards.step_aware import load_step_judge
from ...rollout.pools import Pools
from ...rollout.trajectories import Trajectories
from ...scoring.transition_scorer import TransitionScorer
from ...scoring.transitions import refuse_flows
from ..rounds import Rounds
from ..task import Task
from .following import averaged, following
from .image_rounds import ImageRounds, PoolRounds, Sources, TrajectoryRounds
from .pipeline import encoded, opened, record_of, reference_of, refuse_refiner, saver, trainable

PEOPLE = "people"
"""rollout.reward: pictures are marked by hand, and the run waits for it in every round."""


def transition_task(config: RunConfig, method: Method) -> Task:
    """Everything of a run on roll-outs. Raises PrefoptError for whatever cannot be trained on."""
    needs = method.needs()
    name = next(n for n in MAKERS if f"generation:{n}" in needs)
    given = needs[f"generation:{name}"]["how"]
    model = opened(config)
    refuse_refiner(model)
    refuse_flows(model.schedule)
    _refuse_clipping(model)
    data, empty = encoded(model, lambda: prepare_prompts(config.data, model))
    start = fingerprint({"denoiser": model.denoiser})
    reference = reference_of(config, model, start, asked="scores:reference" in needs)
    net = trainable(config, model, reference.kind)
    maker: Any = MAKERS[name](given, Sources(model, data.train, empty, config.rollout, config.data_seed))
    rounds = Rounds(maker, Path(config.output), config.rollout.rounds, keep=config.rollout.reward == PEOPLE)
    scorer: Any = TransitionScorer(
        model.kind,
        model.schedule,
        empty,
        eta=given["eta"],
        guidance=given["guidance"],
        generation=name,
        reference=reference.frozen,
        notes=maker.notes,
    )
    record = record_of(config, model, start, data.record, reference)
    mean = averaged(config, net)
    moving: dict[str, Any] = {**following(config.reference, reference.frozen, net), **mean}
    return Task(net, rounds, None, scorer, saver(model, mean), record, rounds=rounds, unit="images", moving=moving)


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
