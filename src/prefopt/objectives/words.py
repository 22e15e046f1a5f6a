"""Words that methods share: comparisons [P] -> [P], log-odds, list weights. Pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(u: Tensor) -> Tensor:
    """-log sigmoid(u): the negative log-likelihood that the first wins."""
    return -logsigmoid(u)


def hinge(u: Tensor) -> Tensor:
    """max(0, 1 - u) (SLiC, RSO)."""
    return (1 - u).clamp(min=0)


def smoothed(eps: float) -> Callable[[Tensor], Tensor]:
    """Conservative DPO: the label is wrong with probability eps."""
    return lambda u: -(1 - eps) * logsigmoid(u) - eps * logsigmoid(-u)


def robust(eps: float) -> Callable[[Tensor], Tensor]:
    """Robust DPO (2403.00409): unbiased when a share eps of the labels is flipped; can be negative."""
    return lambda u: (-(1 - eps) * logsigmoid(u) + eps * logsigmoid(-u)) / (1 - 2 * eps)


def squared(target: float) -> Callable[[Tensor], Tensor]:
    """(u - target)^2 (IPO)."""
    return lambda u: (u - target).square()


def comparison(name: str, eps: float = 0.0) -> Callable[[Tensor], Tensor]:
    """By name; `eps` is the label smoothing (giving one where it has no effect is refused by the caller's probe)."""
    return {"sigmoid": smoothed(eps), "robust": robust(eps), "hinge": hinge}[name]


def soft(how: Callable[[Tensor], Tensor], p: Tensor) -> Callable[[Tensor], Tensor]:
    """The comparison under a soft label p [P]: p how(u) + (1 - p) how(-u)."""
    return lambda u: p * how(u) + (1 - p) * how(-u)


def with_ties(
    won: Callable[[Tensor], Tensor], tied: Callable[[Tensor], Tensor], p: Tensor
) -> Callable[[Tensor], Tensor]:
    """The comparison where the first won (p = 1), tied (1/2) or lost (0); in between a mixture of its neighbours."""
    lean = 2 * p - 1
    return lambda u: lean.clamp(min=0) * won(u) + (1 - lean.abs()) * tied(u) + (-lean).clamp(min=0) * won(-u)


def log1mexp(a: Tensor) -> Tensor:
    """log(1 - exp(a)) for a < 0. Both branches are safe under autograd; a >= 0 gives what the smallest |a| gives."""
    a = a.clamp(max=-torch.finfo(a.dtype).tiny)
    near = a > -math.log(2)
    x = torch.where(near, a, -1.0)
    y = torch.where(near, -1.0, a)
    return torch.where(near, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(y)))


def log_odds(a: Tensor) -> Tensor:
    """log p/(1 - p) of p = exp(a), a < 0."""
    return a - log1mexp(a)


def lambda_weight(value: Tensor, rank: Tensor, gain: str = "exponential") -> Tensor:
    """[R, R] |G_i - G_j| |1/log(1 + rank_i) - 1/log(1 + rank_j)| (LambdaLoss, natural log), a constant; G = 2^value, or
    with gain "identity" the value."""
    g = 2.0**value if gain == "exponential" else value
    d = 1 / torch.log(1 + rank.to(g.dtype))
    return ((g[:, None] - g[None]).abs() * (d[:, None] - d[None]).abs()).detach()
