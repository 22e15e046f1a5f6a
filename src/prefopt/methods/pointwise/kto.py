import torch

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_responses
from ...objectives.method import method
from ...objectives.responses import Responses


@method("kto", paper="2402.01306", beta="sum of log-ratios", tags=("pointwise",), surveyed=True)
def kto(
    r: Responses, *, beta: Positive = 0.1, desirable_weight: Positive = 1.0, undesirable_weight: Positive = 1.0
) -> Loss:
    """Kahneman-Tversky Optimization (eq. 8): each response alone, its log-ratio measured against z0.

    z0 = max(0, mean log-ratio of mismatched completions), over the whole optimiser step, without gradient.
    """
    good = r.note("label", "R", dtype=bool)
    h = r.log_ratio.sum()
    z0 = r.step_mean("kl", r.extra("mismatched", grad=False).log_ratio.sum()).clamp(min=0)
    desirable = desirable_weight * (1 - torch.sigmoid(beta * (h - z0)))
    undesirable = undesirable_weight * (1 - torch.sigmoid(beta * (z0 - h)))
    value = torch.where(good, desirable, undesirable)
    return Loss(value=over_responses(value), rewards=beta * h, metrics={"kl": z0})
