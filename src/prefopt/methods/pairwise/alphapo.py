import torch
from torch import Tensor

from ...objectives.hyper import NonNegative, Positive, Real, Smoothing
from ...objectives.loss import Loss, prefer
from ...objectives.method import method, require
from ...objectives.responses import Responses
from ...objectives.words import comparison

LARGEST = 60.0  # of the exponent: a response of vanishing probability is not infinitely bad


def shaped(s: Tensor, alpha: float) -> Tensor:
    """(1 - p^-alpha)/alpha of p = exp(s): log p where alpha goes to 0."""
    return -torch.expm1((-alpha * s).clamp(max=LARGEST)) / alpha


@method("alphapo", paper="2501.03884", beta="the shaped mean log-probability", tags=("free", "length_bias"))
def alphapo(
    r: Responses,
    *,
    beta: Positive = 2.5,
    alpha: Real = 0.25,
    gamma_beta_ratio: NonNegative = 0.1,
    label_smoothing: Smoothing = 0.0,
) -> Loss:
    """AlphaPO (eq. 8): SimPO on another reward, -log sigmoid(beta (R_w - R_l) - gamma), R = (1 - p^-alpha)/alpha.

    p = exp(mean log pi(y)); SimPO is the limit alpha = 0. gamma_beta_ratio: gamma divided by beta.
    """
    require(alpha != 0, "alpha = 0 is SimPO: take `simpo`")
    w, l = r.pairs()
    r_w, r_l = beta * shaped(w.policy.mean(), alpha), beta * shaped(l.policy.mean(), alpha)
    return prefer(r_w, r_l, comparison("sigmoid", label_smoothing), margin=beta * gamma_beta_ratio)
