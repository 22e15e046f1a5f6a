from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_pairs, prefer
from ...objectives.method import method
from ...objectives.responses import Responses


@method("cal-dpo", paper="2412.14516", beta="1/(2 beta) is the target of a response's log-ratio",
        tags=("likelihood_collapse",))  # fmt: skip
def cal_dpo(r: Responses, *, beta: Positive = 0.1) -> Loss:
    """Calibrated DPO (eq. 9): -log sigmoid(h_w - h_l) + (h_w - 1/(2 beta))^2 + (h_l + 1/(2 beta))^2.

    The comparison leaves the sum of both log-ratios free; the squares fix their scale, so that the chosen side rises.
    """
    w, l = r.pairs()
    h_w, h_l, target = w.log_ratio.sum(), l.log_ratio.sum(), 1 / (2 * beta)
    calibration = over_pairs((h_w - target).square() + (h_l + target).square())
    return prefer(h_w, h_l, calibration=calibration)
