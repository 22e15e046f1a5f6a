"""What methods on single steps of a sampler share: DPO on transition densities whose ratio is clipped."""

from __future__ import annotations

import math

from torch import Tensor

from .loss import Loss, Term
from .responses import Responses
from .words import bradley_terry


def step_dpo(w: Responses, l: Responses, beta: float, clip: float | None, tied: Tensor | None = None) -> Loss:
    """Mean over pairs and their steps of -log sigmoid(beta (log rho_w - log rho_l)), with
    rho = clamp(exp(lp - lp_ref), 1 - clip, 1 + clip) of densities averaged over the elements of a step.

    Clamped as a logarithm, which is the same number and gradient (zero outside) and does not overflow.
    tied [P] bool: such pairs stay in the mean with log 2 and teach nothing.
    """
    ratios = [x.log_ratio.each_mean() for x in (w, l)]  # [P, T] each
    bounds = (-math.inf, math.inf) if clip is None else (math.log1p(-clip), math.log1p(clip))
    rho_w, rho_l = clamped = [x.clamp(*bounds) for x in ratios]
    both = (w.score("policy").count > 0) & (l.score("policy").count > 0)  # [P, T] steps that the two sides share
    gap = (rho_w - rho_l) * both
    if tied is not None:
        gap = gap * ~tied[:, None]
    logit = beta * gap
    number = both.sum().to(logit.dtype)
    cut = sum((x != rho).to(logit.dtype) for x, rho in zip(ratios, clamped, strict=True))
    return Loss(
        preference=Term(bradley_terry(logit) * both, number, "steps"),
        rewards=((beta * rho_w * both).sum(-1), (beta * rho_l * both).sum(-1)),
        metrics={"clipped": Term(cut * both / 2, number, "steps")},
    )
