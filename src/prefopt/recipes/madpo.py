"""MADPO (2510.05342): weights around any pairwise loss, and its steps from pairs alone."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch.nn.functional import logsigmoid

from ..methods.pairwise.dpo import dpo
from ..methods.reward.bt_reward import bt_reward
from ..objectives.hyper import Inside, Positive, Within
from ..objectives.loss import Loss
from ..objectives.method import Method, method, require
from ..objectives.responses import Responses
from .steps import Steps, recipe


@method("madpo", "2510.05342", beta="as in the base method", tags=("distinguishability",), family="weighting")
def madpo(
    r: Responses,
    *,
    base: Method = dpo(),
    c_min: Inside = 0.5,
    c_max: Annotated[float, Within(1, open_low=True)] = 2.0,
    lam: Positive = 1.0,
    tau: Positive = math.log(999),
    use_margin: bool = False,
) -> Loss:
    """w(h) times any pairwise loss: h is a reward model's margin, w = sigmoid(c(|h|) h) / sigmoid(h) for h > -tau, else 1.

    c falls from below c_max through 1 at |h| = tau to c_min; for |h| < tau the optimum's margin becomes c(|h|) h.
    h comes from `reward_score` of both sides, or with use_margin from the data's `margin`.
    """
    w, l = r.pairs()
    h = r.note("margin", "P") if use_margin else w.note("reward_score", "R") - l.note("reward_score", "R")
    c = c_min + (c_max - c_min) * torch.sigmoid(-lam * (h.abs() - tau) - math.log((c_max - 1) / (1 - c_min)))
    contradicts = h <= -tau
    weight = torch.where(contradicts, 0.0, logsigmoid(c * h) - logsigmoid(h)).exp()
    seen = {"weights": weight, "target_margin": c * h, "c": c, "contradicting_labels": contradicts.to(h.dtype)}
    return (out := base(r).weighted(weight)).replace(metrics=out.metrics | seen)


@recipe("madpo-from-pairs", "2510.05342", ("pairs",), tags=("distinguishability", "reward_model"))
def madpo_from_pairs(
    steps: Steps,
    *,
    base: Method = madpo(),
    reward: Method = bt_reward(),
    reward_model: str | None = None,
    reward_train: dict[str, Any] | None = None,
) -> str:
    """MADPO from pairs alone: a Bradley-Terry reward model on the pairs, its scores of the same pairs, the policy.

    reward_model: a folder of a reward model to take instead of training one. reward_train: keys of `train` that differ
    for the reward model, e.g. {num_train_epochs: 3}. The reward model is in reward/, the scored pairs are in scored/.
    """
    require(
        "notes:reward_score" in base.needs(), f"method.base = {base.name}: it asks for no reward scores; take madpo"
    )
    require(
        reward_model is None or not reward_train,
        "method.reward_train has no effect with method.reward_model: nothing is trained for it",
    )
    judge = reward_model or steps.train("reward", reward, train=reward_train)
    return steps.train("policy", base, data=steps.scored("scored", {"reward_score": [judge]}))
