import torch

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_pairs
from ...objectives.method import method
from ...objectives.responses import Responses


@method("apo-down", paper="2408.06266", beta="sum of log-ratios", tags=("likelihood_collapse",), surveyed=True)
def apo_down(r: Responses, *, beta: Positive = 0.1) -> Loss:
    """Anchored preference optimisation (eq. 8): sigmoid(r_w) + 1 - sigmoid(r_w - r_l), r = beta h.

    For pairs whose chosen side is worse than the model: both sides go down, the rejected one further.
    """
    w, l = r.pairs()
    r_w, r_l = beta * w.log_ratio.sum(), beta * l.log_ratio.sum()
    return Loss(anchored=over_pairs(torch.sigmoid(r_w) + torch.sigmoid(r_l - r_w)), rewards=(r_w, r_l))
