from torch import Tensor

from ...objectives.hyper import Fraction, Positive
from ...objectives.loss import Loss, prefer
from ...objectives.method import method
from ...objectives.responses import Responses


@method("d2po", paper="2502.14340", beta="decayed sum of log-ratios", tags=("token",), surveyed=True)
def d2po(r: Responses, *, beta: Positive = 0.1, gamma: Fraction = 0.98) -> Loss:
    """DPO with temporal decay: -log sigmoid(beta sum_t gamma^t (h_w,t - h_l,t)), t = 0 for the first token.

    Earlier tokens count more; gamma = 1 is DPO.
    """

    def reward(y: Responses) -> Tensor:
        t = (y.policy.position - 1).clamp(min=0).to(y.policy.values.dtype)
        return beta * (y.log_ratio * gamma**t).sum()

    w, l = r.pairs()
    return prefer(reward(w), reward(l))
