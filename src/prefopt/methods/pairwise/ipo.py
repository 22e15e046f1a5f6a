from typing import Literal

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, compare
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import squared


@method("ipo", paper="2310.12036", beta="1/(2 beta) is the target gap of log-ratios")
def ipo(r: Responses, *, beta: Positive = 0.1, normalise: Literal["mean", "sum"] = "mean") -> Loss:
    """Identity Preference Optimization: (h_w - h_l - 1/(2 beta))^2. beta is the paper's tau.

    normalise: `sum` is eq. 17 as printed; `mean` divides each log-ratio by its own length, as its authors later
    advised (and TRL does). The two need different betas.
    """
    w, l = r.pairs()
    h_w, h_l = (getattr(y.log_ratio, normalise)() for y in (w, l))
    return Loss(preference=compare(h_w - h_l, squared(1 / (2 * beta))), rewards=(beta * h_w, beta * h_l))
