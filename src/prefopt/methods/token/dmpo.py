import torch
from torch import Tensor

from ...objectives.hyper import Inside, Positive
from ...objectives.loss import Loss, prefer
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.scores import Scores


@method(
    "dmpo", paper="2406.14868", beta="sum of log-ratios, each turn's times its weight", tags=("turn",), surveyed=True
)
def dmpo(r: Responses, *, beta: Positive = 0.1, gamma: Inside = 0.7) -> Loss:
    """Multi-turn DPO (eq. 12): -log sigmoid(beta (H_w - H_l)), H = sum_t gamma^t (1 - gamma^(T-t))/(1 - gamma^T) h_t.

    h_t is the log-ratio of turn t = 0 .. T-1 of an answer, and turns are runs of scored tokens: what others say between
    them is not scored. Later turns of a trajectory count less; an answer of one turn counts as in DPO.
    """

    def reward(y: Responses) -> Tensor:
        return beta * (y.log_ratio * weights(y.log_ratio, gamma)).sum()

    w, l = r.pairs()
    return prefer(reward(w), reward(l))


def weights(s: Scores, gamma: float) -> Tensor:
    """[R, T] of each position's turn, which begins where a scored position follows one that is not."""
    scored = s.count > 0
    begins = scored & ~torch.nn.functional.pad(scored, (1, 0))[:, :-1]
    t = (begins.cumsum(-1) - 1).clamp(min=0).to(s.values)
    T = begins.sum(-1, keepdim=True).to(s.values)
    return gamma**t * (1 - gamma ** (T - t)) / (1 - gamma**T)
