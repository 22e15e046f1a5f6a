from typing import Literal

from ...objectives.hyper import Positive, Smoothing
from ...objectives.loss import Loss, prefer
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import comparison


@method("dpo", paper="2305.18290", beta="sum of log-ratios", surveyed=True)
def dpo(
    r: Responses,
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
    loss_type: Literal["sigmoid", "robust", "hinge"] = "sigmoid",
) -> Loss:
    """Direct Preference Optimization (eq. 7): -log sigmoid(beta (h_w - h_l)), h = log pi(y)/pi_ref(y).

    label_smoothing: with sigmoid the conservative form, with robust the unbiased one (2403.00409).
    hinge: max(0, 1 - u) on the same margin (RSO, 2309.06657).
    """
    w, l = r.pairs()
    return prefer(beta * w.log_ratio.sum(), beta * l.log_ratio.sum(), comparison(loss_type, label_smoothing))
