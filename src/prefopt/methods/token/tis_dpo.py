import torch
from torch import Tensor

from ...objectives.hyper import NonNegative, Positive, Real
from ...objectives.loss import Loss, over_tokens, prefer
from ...objectives.method import method, require
from ...objectives.responses import Responses


@method("tis-dpo", paper="2410.04350", beta="weighted sum of log-ratios", tags=("token",), surveyed=True)
def tis_dpo(r: Responses, *, beta: Positive = 0.1, mu: NonNegative = 1.0, low: Real = -0.5, high: Real = 1.5) -> Loss:
    """TIS-DPO: -log sigmoid(beta sum_t w_t (log-ratio)_t of the chosen, less that of the rejected).

    w_t = exp(+-mu clamp(log pi+ - log pi-, low, high)), + on chosen and - on rejected tokens: token importance
    sampling by two contrastive models, `sources.positive` (trained to the chosen side, or prompted to be good) and
    `sources.negative` (to the rejected). mu = 0 is DPO. The paper's sequential KL offset is left out, as in the survey.
    """
    require(low < high, f"low = {low} must be below high = {high}")

    def weight(y: Responses, sign: int) -> Tensor:
        estimate = (y.score("positive") - y.score("negative")).values.clamp(low, high)
        return torch.exp(sign * mu * estimate)

    w, l = r.pairs()
    w_w, w_l = weight(w, +1), weight(l, -1)
    metrics = {
        "weight/chosen": over_tokens(w.reference.like(w_w)),
        "weight/rejected": over_tokens(l.reference.like(w_l)),
    }
    return prefer(beta * (w.log_ratio * w_w).sum(), beta * (l.log_ratio * w_l).sum(), metrics=metrics)
