from ...objectives.hyper import Positive
from ...objectives.loss import Loss, prefer
from ...objectives.method import method
from ...objectives.responses import Responses


@method("e-dpo", paper="2405.19316", beta="sum of log-ratios", tags=("likelihood_collapse",), surveyed=True)
def e_dpo(r: Responses, *, beta: Positive = 0.1) -> Loss:
    """Reward distillation (eq. 7): (score_w - score_l - beta (h_w - h_l))^2.

    The implicit rewards regress on the `score` of the data (an ensemble: its mean), so that a pair has a finite target.
    """
    w, l = r.pairs()
    target = w.note("score", "R") - l.note("score", "R")
    return prefer(beta * w.log_ratio.sum(), beta * l.log_ratio.sum(), lambda u: (target - u).square())
