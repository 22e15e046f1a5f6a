import math
from collections.abc import Callable
from typing import Annotated

from torch import Tensor
from torch.nn.functional import logsigmoid

from ...objectives.hyper import Positive, Within
from ...objectives.loss import Loss, prefer
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import with_ties


def outcomes(alpha: float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """-log P of a win and of a tie; 1 - sigmoid(u - a) - sigmoid(-u - a) = (e^2a - 1) sigmoid(u - a) sigmoid(-u - a)."""
    width = math.log(math.expm1(2 * alpha))
    return lambda u: -logsigmoid(u - alpha), lambda u: -width - logsigmoid(u - alpha) - logsigmoid(-u - alpha)


@method("rao-kupper", paper="2409.17431", beta="sum of log-ratios", surveyed=True)
def rao_kupper(
    r: Responses, *, beta: Positive = 0.1, alpha: Annotated[float, Within(0, 20, open_low=True)] = math.log(3)
) -> Loss:
    """DPO with ties (Rao, Kupper): P(w > l) = sigmoid(D - alpha), P(tie) = 1 - sigmoid(D - alpha) - sigmoid(-D - alpha).

    D = beta (h_w - h_l). The column label_probability says what happened: 1 won, 1/2 tied, 0 lost; what lies between is
    a mixture of the two next to it. alpha is the paper's log nu: the advantage that is needed to win.
    """
    w, l = r.pairs()
    how = with_ties(*outcomes(alpha), r.note("label_probability", "P"))
    return prefer(beta * w.log_ratio.sum(), beta * l.log_ratio.sum(), how)
