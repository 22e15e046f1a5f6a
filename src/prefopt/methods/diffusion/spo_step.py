from typing import Literal

from ...objectives.hyper import BelowOne, Inside, Positive, Real, Share
from ...objectives.loss import Loss
from ...objectives.method import method, require
from ...objectives.responses import Responses
from ...objectives.steps import step_dpo


@method(
    "spo-step",
    paper="2406.04314",
    beta="difference of the logs of two clipped ratios of densities, each a mean over elements",
    tags=("granularity.step", "online"),
)
def spo_step(
    r: Responses,
    *,
    beta: Positive = 10.0,
    clip: Inside | None = 0.1,
    pool: int = 4,
    threshold: BelowOne = 0.3,
    divert_start_step: int = 4,
    inner_steps: int = 0,
    steps: int = 20,
    eta: Share = 1.0,
    guidance: Real = 5.0,
    continuation: Literal["random", "best"] = "random",
) -> Loss:
    """Step-aware preference optimisation: a fresh verdict at every step, on candidates drawn from one state.

    From x_t (steps >= divert_start_step) `pool` candidates x_{t'} are drawn and judged by the images that they promise;
    best and worst are a pair if softmax(s_w, s_l) differs by more than `threshold`, and a random candidate goes on.
    Loss as D3PO's. inner_steps: ordinary steps that each candidate takes alone before it is judged (SDXL: 3, pool 2).
    rollout.reward names the judge: a step-aware preference model, or a function of (images, prompts, timesteps).
    """
    require(pool >= 2, f"pool = {pool}: best and worst need at least two candidates")
    span = inner_steps + 1
    require(inner_steps >= 0, f"inner_steps = {inner_steps} must not be negative")
    require(
        0 <= divert_start_step < steps - 1,
        f"divert_start_step = {divert_start_step} must lie in 0 .. {steps - 2}: of {steps} steps some must be left to judge",
    )
    require(
        (steps - divert_start_step) % span == 0,
        f"inner_steps = {inner_steps} runs past the last step: {span} must divide the {steps - divert_start_step} steps "
        "that are left",
    )
    r = r.generated(
        "pools", pool=pool, threshold=threshold, divert=divert_start_step, span=span, steps=steps, eta=eta,
        guidance=guidance, best=continuation == "best",
    )  # fmt: skip
    return step_dpo(*r.pairs(), beta, clip)
