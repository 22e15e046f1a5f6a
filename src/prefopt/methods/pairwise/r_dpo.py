from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, compare
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry


@method("r-dpo", paper="2403.19159", beta="sum of log-ratios", tags=("length_bias",), surveyed=True)
def r_dpo(r: Responses, *, beta: Positive = 0.1, alpha: NonNegative = 0.01) -> Loss:
    """Length-regularised DPO (eq. 9): -log sigmoid(beta (h_w - h_l) + alpha (|y_w| - |y_l|)).

    What length alone explains of a preference is not asked of the policy; alpha = 0 is DPO.
    """
    w, l = r.pairs()
    h_w, h_l = w.log_ratio.sum(), l.log_ratio.sum()
    longer = w.policy.length - l.policy.length
    return Loss(
        preference=compare(beta * (h_w - h_l) + alpha * longer, bradley_terry), rewards=(beta * h_w, beta * h_l)
    )
