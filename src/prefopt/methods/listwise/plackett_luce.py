import torch

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_groups
from ...objectives.method import method
from ...objectives.responses import Responses


@method("plackett-luce", paper="2305.18290", beta="sum of log-ratios", tags=("listwise",), surveyed=True)
def plackett_luce(r: Responses, *, beta: Positive = 0.1) -> Loss:
    """DPO of whole rankings (eq. 20): -sum_k log(exp(r_k) / sum_{j >= k} exp(r_j)), r = beta h, best first by `score`.

    Responses of equal score stand in each other's sums (Breslow), so that their order does not matter.
    """
    score = r.note("score", "R")
    reward = beta * r.log_ratio.sum()
    below = r.same_group() & (score[None] <= score[:, None])  # [R, R] j is not before i, itself included
    remaining = torch.where(below, reward[None], -torch.inf).logsumexp(-1)
    return Loss(ranking=over_groups(torch.diag(remaining - reward), r), rewards=reward)
