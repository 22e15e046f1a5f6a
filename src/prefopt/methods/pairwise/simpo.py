from typing import Literal

from ...objectives.hyper import NonNegative, Positive, Smoothing
from ...objectives.loss import Loss, over_tokens, prefer
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import comparison


@method("simpo", paper="2405.14734", beta="mean log-probability", tags=("free", "length_bias"), surveyed=True)
def simpo(
    r: Responses,
    *,
    beta: Positive = 2.0,
    gamma_beta_ratio: NonNegative = 0.5,
    label_smoothing: Smoothing = 0.0,
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid",
    sft_weight: NonNegative = 0.0,
) -> Loss:
    """SimPO (eq. 6): -log sigmoid(beta mean log pi(y_w) - beta mean log pi(y_l) - gamma).

    The average log-probability is the reward; no reference model; a target margin.
    gamma_beta_ratio: the paper's gamma divided by beta. Rewards are reported without the margin.
    """
    w, l = r.pairs()
    nll = sft_weight * over_tokens(-w.policy) if sft_weight else None
    how, gamma = comparison(loss_type, label_smoothing), beta * gamma_beta_ratio
    return prefer(beta * w.policy.mean(), beta * l.policy.mean(), how, margin=gamma, nll=nll)
