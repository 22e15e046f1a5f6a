from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...objectives.hyper import Positive, Within
from ...objectives.loss import Loss, prefer
from ...objectives.method import method
from ...objectives.responses import Responses


def blended(tau: float) -> Callable[[Tensor], Tensor]:
    """The logistic loss where u < 0, the exponential where u > 0; exp(-u) sigmoid(u/tau) taken as one exponent."""
    return lambda u: torch.exp(logsigmoid(u / tau) - u) - torch.sigmoid(-u / tau) * logsigmoid(u)


@method("discopop", paper="2406.08414", beta="sum of log-ratios", tags=("generalization",))
def discopop(
    r: Responses, *, beta: Positive = 0.1, discopop_tau: Annotated[float, Within(0, 1, open_low=True)] = 0.05
) -> Loss:
    """Log-ratio modulated loss (eq. 5): sigmoid(u/tau) exp(-u) - (1 - sigmoid(u/tau)) log sigmoid(u), u = beta (h_w - h_l).

    Found by search, not derived: not convex, with two levels about u = 0.
    """
    w, l = r.pairs()
    return prefer(beta * w.log_ratio.sum(), beta * l.log_ratio.sum(), blended(discopop_tau))
