from typing import Literal

from ...objectives.hyper import Positive
from ...objectives.loss import Loss
from ...objectives.method import method
from ...objectives.responses import Responses
from .diffusion_dpo import diffusion_dpo


@method(
    "dcpo",
    paper="2502.06023",
    beta="mean squared error over elements, times half_factor",
    tags=("distinguishability",),
)
def dcpo(
    r: Responses,
    *,
    beta: Positive = 500.0,
    half_factor: Positive = 0.5,
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
    force_epsilon_target: bool = False,
) -> Loss:
    """DCPO: -log sigmoid(beta/2 ([E_ref(w) - E_ref(l)] - [E_pol(w) - E_pol(l)])), E(w) under z_w and E(l) under z_l.

    Diffusion-DPO's loss with a caption z of each image's own, the same for policy and reference; a pair shares time and
    noise. force_epsilon_target: the goal is the noise whatever the network was trained to predict, as in the official
    code. Evaluate with prompts only: under two conditions the margin is no reward for the prompt.
    """
    r = r.conditioned("captions")
    if force_epsilon_target:
        r = r.noised("forward", force_epsilon=True)
    return diffusion_dpo.fn(r, beta=beta, half_factor=half_factor, loss_type=loss_type)
