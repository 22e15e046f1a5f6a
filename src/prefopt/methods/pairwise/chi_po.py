import torch
from torch import Tensor

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, compare
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry

LARGEST = 20.0  # exp of more than this is no number to train on


def phi(h: Tensor) -> Tensor:
    """z + log z of z = exp(h); beyond h = 20 only the logarithm grows."""
    return torch.exp(h.clamp(max=LARGEST)) + h


@method("chi-po", paper="2407.13399", beta="z + log z of the ratio z", tags=("generalization",), surveyed=True)
def chi_po(r: Responses, *, beta: Positive = 0.1, r_max: Positive = 10.0) -> Loss:
    """chi^2 preference optimisation (eq. 9): -log sigmoid(clip(beta phi(z_w) - beta phi(z_l), 2 r_max)).

    z = pi/pi_ref, phi(z) = z + log z: the KL mixed with a chi^2 divergence, against overoptimisation. A pair whose
    logit is beyond +-2 r_max, the range of rewards, teaches nothing (metric: clipped).
    """
    w, l = r.pairs()
    r_w, r_l = beta * phi(w.log_ratio.sum()), beta * phi(l.log_ratio.sum())
    logit = (r_w - r_l).clamp(-2 * r_max, 2 * r_max)
    clipped = ((r_w - r_l).abs() > 2 * r_max).double()
    return Loss(preference=compare(logit, bradley_terry), rewards=(r_w, r_l), metrics={"clipped": clipped})
