from typing import Literal

from ...objectives.hyper import BelowOne, Positive, Real
from ...objectives.loss import Loss, over_tokens
from ...objectives.method import method, require
from ...objectives.responses import Responses


@method("self-npo", paper="2505.11777", tags=("pointwise", "free", "self_play"))
def self_npo(
    r: Responses,
    *,
    guidance: Real = -1.0,
    evaluations: int = 6,
    grid: int = 25,
    start: Literal["data", "noise"] = "data",
    random_moves: bool = True,
    ema: BelowOne = 0.999,
    loss_type: Literal["huber", "l2"] = "huber",
    huber_c: Positive = 0.001,
) -> Loss:
    """Self-NPO: the negative network of guidance, tuned on its own poor samples by truncated diffusion fine-tuning.

    The running mean of the network (decay ema) makes evaluations - 1 moves on a grid of DDIM times with guidance w
    (-1: the caption is ignored, as in the official code for SD 1.5; -5 there for SDXL) and stops; from its state, noised
    again, the network predicts what the mean saw in it: mean of sqrt((X0_hat - X0)^2 + c^2) - c, or of the square.
    start = data: images noised to a random time of the grid (official). noise: prompts alone; the number of moves is
    then drawn anew from evaluations - 1 .. grid - 1, or no low noise level would ever be trained (random_moves).
    """
    require(evaluations >= 1, f"evaluations = {evaluations} must be at least 1")
    require(grid >= 2, f"grid = {grid}: a roll-out needs at least 2 times")
    require(start == "data" or evaluations > 1, "start = noise needs evaluations of at least 2: noise must become less")
    require(start == "data" or evaluations <= grid, f"evaluations = {evaluations}: the grid has only {grid} times")
    r = r.noised(
        "truncated_rollout",
        guidance=guidance,
        evaluations=evaluations,
        grid=grid,
        from_noise=start == "noise",
        random_moves=start == "noise" and random_moves,
        ema=ema,
        huber_c=huber_c if loss_type == "huber" else None,
    )
    return Loss(regression=over_tokens(-r.policy))
