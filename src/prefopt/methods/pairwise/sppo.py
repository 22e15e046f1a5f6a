from typing import Literal

import torch
from torch import Tensor

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_pairs
from ...objectives.method import method
from ...objectives.responses import Responses


@method("sppo", paper="2405.00675", beta="1/beta is eta, the target's scale", tags=("self_play",), surveyed=True)
def sppo(r: Responses, *, beta: Positive = 1e-3, target: Literal["hard", "measured"] = "hard") -> Loss:
    """Self-play preference optimisation, one iteration (eq. 4.7): sum over both sides of (h - (P - 1/2)/beta)^2.

    P is the probability that the response beats the policy. hard: 1 for the chosen and 0 for the rejected side (TRL's
    sppo_hard); measured: the column win_probability, a number for each response. beta is 1/eta of the paper (eta =
    1000). The reference of an iteration is the policy that it starts from.
    """

    def distance(y: Responses, hard: float) -> tuple[Tensor, Tensor]:
        h = y.log_ratio.sum()
        p = y.note("win_probability", "R") if target == "measured" else torch.full_like(h, hard)
        return (h - (p - 0.5) / beta).square(), beta * h

    w, l = r.pairs()
    (d_w, r_w), (d_l, r_l) = distance(w, 1.0), distance(l, 0.0)
    return Loss(distance=over_pairs(d_w + d_l), rewards=(r_w, r_l))
