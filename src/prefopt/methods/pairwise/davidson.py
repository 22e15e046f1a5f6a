import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, prefer
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import with_ties


def outcomes(nu: float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """-log P of a win, log(1 + e^-u + 2 nu e^(-u/2)), and of a tie."""
    tie = math.log(2 * nu)

    def won(u: Tensor) -> Tensor:
        return torch.logsumexp(torch.stack([torch.zeros_like(u), -u, tie - u / 2]), 0)

    return won, lambda u: won(u) - tie + u / 2


@method("davidson", paper="2409.17431", beta="sum of log-ratios", surveyed=True)
def davidson(r: Responses, *, beta: Positive = 0.1, nu: Positive = 1.0) -> Loss:
    """DPO with ties after Davidson: P(w > l) = 1/(1 + e^-D + 2 nu e^(-D/2)), P(tie) = 2 nu e^(-D/2) P(w > l).

    D = beta (h_w - h_l). The column label_probability says what happened: 1 won, 1/2 tied, 0 lost; what lies between is
    a mixture of the two next to it. nu: how likely ties are between equals.
    """
    w, l = r.pairs()
    how = with_ties(*outcomes(nu), r.note("label_probability", "P"))
    return prefer(beta * w.log_ratio.sum(), beta * l.log_ratio.sum(), how)
