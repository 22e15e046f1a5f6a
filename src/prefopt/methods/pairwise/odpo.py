import torch

from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, compare
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry


@method("odpo", paper="2402.10571", beta="sum of log-ratios", tags=("distinguishability",), surveyed=True)
def odpo(r: Responses, *, beta: Positive = 0.1, alpha: NonNegative = 1.0) -> Loss:
    """DPO with an offset (eq. 8): -log sigmoid(beta (h_w - h_l) - delta), delta = alpha log(score_w - score_l).

    Pairs whose chosen side is not scored higher have no offset, and are left out (health: not_higher).
    """
    w, l = r.pairs()
    gap = w.note("score", "R") - l.note("score", "R")
    higher = gap > 0
    delta = alpha * torch.log(torch.where(higher, gap, 1.0))
    r_w, r_l = beta * w.log_ratio.sum(), beta * l.log_ratio.sum()
    preference = compare(r_w - r_l - delta, bradley_terry, keep=higher)
    return Loss(preference=preference, rewards=(r_w, r_l), health={"not_higher": (~higher).sum()})
