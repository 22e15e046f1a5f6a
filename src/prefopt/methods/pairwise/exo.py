import math
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...objectives.hyper import Positive, Within
from ...objectives.loss import Loss, prefer
from ...objectives.method import method
from ...objectives.responses import Responses


def reverse_kl(eps: float) -> Callable[[Tensor], Tensor]:
    """KL((q, 1 - q) || (1 - eps, eps)), q = sigmoid(u)."""
    to_w, to_l = math.log1p(-eps), math.log(eps)
    return lambda u: torch.sigmoid(u) * (logsigmoid(u) - to_w) + torch.sigmoid(-u) * (logsigmoid(-u) - to_l)


@method("exo", paper="2402.00856", beta="sum of log-ratios", tags=("generalization",), surveyed=True)
def exo(
    r: Responses, *, beta: Positive = 0.1, label_smoothing: Annotated[float, Within(0, 0.5, True, True)] = 1e-3
) -> Loss:
    """Efficient exact optimisation on pairs (eq. 16): KL(softmax(r_w, r_l) || (1 - eps, eps)), r = beta h.

    The KL of DPO turned round. It needs eps = label_smoothing > 0: a certain label makes it infinite.
    """
    w, l = r.pairs()
    return prefer(beta * w.log_ratio.sum(), beta * l.log_ratio.sum(), reverse_kl(label_smoothing))
