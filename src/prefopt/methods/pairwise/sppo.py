import torch

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_pairs
from ...objectives.method import method
from ...objectives.responses import Responses


@method("sppo", paper="2405.00675", beta="1/beta is eta, the target's scale", tags=("self_play",), surveyed=True)
def sppo(r: Responses, *, beta: Positive = 1e-3) -> Loss:
    """Self-play preference optimisation, one iteration (eq. 4.7): sum over both sides of (h - (P - 1/2)/beta)^2.

    P is the probability that the response beats the policy: the column win_probability, one number a response; without
    it 1 for the chosen and 0 for the rejected side (TRL's sppo_hard). beta is 1/eta of the paper (eta = 1000). The
    reference of an iteration is the policy that it starts from.
    """
    w, l = r.pairs()
    h_w, h_l = w.log_ratio.sum(), l.log_ratio.sum()
    p_w = w.note("win_probability", "R", default=lambda: torch.ones_like(h_w))
    p_l = l.note("win_probability", "R", default=lambda: torch.zeros_like(h_l))
    value = (h_w - (p_w - 0.5) / beta).square() + (h_l - (p_l - 0.5) / beta).square()
    return Loss(distance=over_pairs(value), rewards=(beta * h_w, beta * h_l))
