from ...objectives.hyper import NonNegative
from ...objectives.loss import Loss, compare, over_pairs
from ...objectives.method import method
from ...objectives.responses import Responses


@method("slic", paper="2305.10425", tags=("free",))
def slic(r: Responses, *, delta: NonNegative = 1.0, reg: NonNegative = 0.1) -> Loss:
    """SLiC-HF (eq. 2): max(0, delta - log pi(y_w) + log pi(y_l)) - reg log pi(y_w); sums, no reference.

    reg is the paper's lambda. The hinge on reference-normalised margins is `dpo` with loss_type hinge.
    """
    w, l = r.pairs()
    s_w, s_l = w.policy.sum(), l.policy.sum()
    calibration = compare(s_w - s_l, lambda u: (delta - u).clamp(min=0))
    return Loss(calibration=calibration, nll=reg * over_pairs(-s_w), rewards=(s_w, s_l))
