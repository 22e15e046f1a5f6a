import torch
from torch.nn.functional import logsigmoid

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_groups
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import lambda_weight


@method("lipo", paper="2402.01878", beta="sum of log-ratios", tags=("listwise",), surveyed=True)
def lipo(r: Responses, *, beta: Positive = 0.05) -> Loss:
    """LiPO-lambda (eq. 8): -sum_{s_i > s_j} |2^s_i - 2^s_j| |1/log(1 + rank_i) - 1/log(1 + rank_j)| log sigmoid(r_i - r_j).

    r = beta h; s is the `score` of the data; ranks are those of the policy's rewards of the moment, as far as rounding
    lets them be told apart.
    """
    score = r.note("score", "R")
    h = r.log_ratio
    reward = beta * h.sum()
    weight = lambda_weight(score, r.rank(reward.detach(), beta * h.rounding()))
    losses = -weight * logsigmoid(reward[:, None] - reward[None])
    return Loss(ranking=over_groups(torch.where(r.beats(score), losses, 0.0), r), rewards=reward)
