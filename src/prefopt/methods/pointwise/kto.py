from collections.abc import Mapping
from typing import Any

import torch

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_responses
from ...objectives.method import method
from ...objectives.responses import Responses

LEAST, MOST = 1.0, 4 / 3  # of the two classes' weights times their numbers (section 4.2)


def balance(hyper: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """Whether the weights fit how many desirable and undesirable responses there are."""
    if not (labels := data.get("labels")):
        return None
    good, bad = labels["desirable"], labels["undesirable"] * hyper["undesirable_weight"]
    ratio = hyper["desirable_weight"] * good / bad
    if LEAST - 1e-6 <= ratio <= MOST + 1e-6:
        return None
    return (
        f"{good} desirable and {labels['undesirable']} undesirable responses weigh as {ratio:.3g} to 1, and should as 1 to 1 "
        f"up to 4 to 3: set desirable_weight between {LEAST * bad / good:.3g} and {MOST * bad / good:.3g}"
    )


@method("kto", paper="2402.01306", beta="sum of log-ratios", tags=("pointwise",), surveyed=True, advice=balance)
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
