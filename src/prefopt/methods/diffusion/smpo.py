from collections.abc import Mapping
from typing import Any, Literal

import torch

from ...objectives.hyper import LargestReward, LeastReward, Positive
from ...objectives.loss import Loss
from ...objectives.method import Method, method, require
from ...objectives.responses import Responses
from .diffusion_dpo import diffusion_dpo


def beyond_the_range(hyper: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """Scores of another scale than the range, or of another scorer."""
    least, most = data.get("ranges", {}).get("reward_score", (float("inf"), -float("inf")))
    low, high = hyper["reward_min"], hyper["reward_max"]
    if (low is None or least >= low) and (high is None or most <= high):
        return None
    shown = " .. ".join("null" if x is None else f"{x:g}" for x in (low, high))
    return (
        f"scores go from {least:g} to {most:g}, beyond the range reward_min .. reward_max = {shown}. If the scorer is another "
        "than that of the range, set both to null: the range is then the data's own"
    )


@method("smpo", paper="2506.02698", beta="of the base method", tags=("noise",), advice=beyond_the_range)
def smpo(
    r: Responses,
    *,
    base: Method = diffusion_dpo(beta=2000.0),
    gamma: Positive = 10.0,
    reward_min: LeastReward = 0.11543526500463486,
    reward_max: LargestReward = 0.28201571106910706,
    latents: Literal["inverted", "noised"] = "inverted",
    inversion_steps: int = 10,
    corrections: int = 1,
    invert_exactly_to_tau: bool = False,
) -> Loss:
    """SmPO: smoothed preferences, omega = gamma (2p - 1) on the logit, at latents found by ReNoise inversion.

    p = sigmoid((r_w - r_l) / (reward_max - reward_min)) of each image's reward_score r: near-ties teach little, and the
    score alone says who wins (a pair given the other way round has the same loss). The range is that of PickScore as
    published; none: that of the training data. Inversion as in DDIM-InPO, every step corrected `corrections` times;
    latents = noised: forward noising in its place, with hard labels Diffusion-DPO itself.
    """
    require(inversion_steps >= 1, f"inversion_steps = {inversion_steps}: must be at least 1")
    require(corrections >= 0, f"corrections = {corrections}: must not be negative")
    how = {"steps": inversion_steps, "corrections": corrections, "exact_tau": invert_exactly_to_tau}
    r = r.noised("ddim_inversion", **how) if latents == "inverted" else r.noised("forward")
    w, l = r.pairs()
    if reward_min is not None and reward_max is not None:
        require(reward_max > reward_min, f"reward_max = {reward_max} must be above reward_min = {reward_min}")
    scores = r.note("reward_score", "R")
    low = scores.min() if reward_min is None else scores.new_tensor(reward_min)
    high = scores.max() if reward_max is None else scores.new_tensor(reward_max)
    gap = (w.note("reward_score", "R") - l.note("reward_score", "R")) / (high - low)
    omega = gamma * (2 * torch.sigmoid(gap) - 1)
    out = base(r).recompared(scale=omega)
    outside = ((scores < low) | (scores > high)).sum()
    return out.replace(
        metrics=out.metrics | {"weight": omega}, health=out.health | {"scores_outside_range": outside.to(omega.dtype)}
    )
