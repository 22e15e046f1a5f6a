"""Divergence links: the implicit reward that belongs to a penalty D_f(pi || pi_ref), as a function of the log-ratio.

s(R) = f'(u) at u = exp(R) up to an additive constant, R = log pi(y)/pi_ref(y) (2309.16240, table 1). The constants are
those of its authors' code: they cancel in every comparison of two responses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

NO_LINK = {
    "total_variation": "its f' takes two values only, so no reward can be read from a ratio",
    "chi_squared": "its f' is finite at a ratio of 0, so the optimum may lose support and no closed form exists",
}
"""Divergences that one may expect and that have no link, with the reason."""


def reverse_kl(R: Tensor) -> Tensor:
    """f(u) = u log u: DPO's own."""
    return R


def forward_kl(R: Tensor) -> Tensor:
    """f(u) = -log u, KL(pi_ref || pi): -1/u, increasing in u."""
    return -capped(-R).exp()


def jsd(R: Tensor) -> Tensor:
    """f(u) = u log u - (u + 1) log((u + 1)/2): log(2u/(1 + u)), bounded above by log 2."""
    return math.log(2) + logsigmoid(R)


def alpha_divergence(R: Tensor, alpha: float) -> Tensor:
    """f(u) = (u^(1-a) - (1-a) u - a)/(a (a-1)), 0 < a < 1: -u^-a / a. To reverse KL as a -> 0, forward KL as a -> 1."""
    return -capped(-alpha * R).exp() / alpha


def capped(x: Tensor) -> Tensor:
    """An exponent that stays finite (float32: 80, float64: 700); beyond, the gradient is 0 instead of NaN."""
    return x.clamp(max=cap(x))


def cap(x: Tensor) -> float:
    return 700.0 if x.dtype == torch.float64 else 80.0


def divergence(R: Tensor, name: str, alpha: float = 0.5) -> Tensor:
    """Non-negative estimate of D_f(pi || pi_ref) from each log-ratio R of a sample y ~ pi: its mean is unbiased.

    E_pi[g(v)], g(v) = v f(1/v), v = exp(-R), less g'(1)(v - 1), whose mean is 0.
    """
    v = capped(-R).exp()
    if name == "reverse_kl":
        return R + v - 1
    if name == "forward_kl":
        return -R * v - v + 1
    if name == "jsd":
        return -R * v - (1 + v) * torch.log((1 + v) / 2)
    return (v**alpha - (1 - alpha) - alpha * v) / (alpha * (alpha - 1))
