import math
from typing import Literal

import torch
from torch import Tensor

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, prefer
from ...objectives.method import method
from ...objectives.responses import Responses

STEEPEST = 30.0


def exponential(u: Tensor) -> Tensor:
    """exp(-u); below u = -30 its tangent, so that one pair does not end the run."""
    tangent = math.exp(STEEPEST) * (1 - u - STEEPEST)
    return torch.where(u < -STEEPEST, tangent, torch.exp(-u.clamp(min=-STEEPEST)))


def truncated_quadratic(u: Tensor) -> Tensor:
    """max(0, 1 - u)^2."""
    return (1 - u).clamp(min=0).square()


def savage(u: Tensor) -> Tensor:
    """1/(1 + exp(u))^2."""
    return torch.sigmoid(-u).square()


CONVEX = {"exponential": exponential, "truncated-quadratic": truncated_quadratic, "savage": savage}


@method("gpo", paper="2402.05749", beta="sum of log-ratios", tags=("generalization",), surveyed=True)
def gpo(
    r: Responses,
    *,
    beta: Positive = 0.1,
    loss_type: Literal["exponential", "truncated-quadratic", "savage"] = "exponential",
) -> Loss:
    """Generalised preference optimisation (table 1): g(beta (h_w - h_l)) for a decreasing g.

    g: exponential exp(-u), truncated-quadratic max(0, 1 - u)^2, savage 1/(1 + exp(u))^2. The rest of the family stands
    alone: logistic and hinge are `dpo`, squared is `ipo`.
    """
    w, l = r.pairs()
    return prefer(beta * w.log_ratio.sum(), beta * l.log_ratio.sum(), CONVEX[loss_type])
