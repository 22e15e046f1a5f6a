import torch

from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, compare
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry


@method("safe-dpo", paper="2505.20065", beta="sum of log-ratios", tags=("safety",))
def safe_dpo(r: Responses, *, beta: Positive = 0.1, delta: NonNegative = 0.0) -> Loss:
    """SafeDPO: -log sigmoid(beta (h_w - h_l) - delta (unsafe_l - unsafe_w)) on pairs that safety has put in order.

    unsafe is of the data, 0 or 1 for each response (a classifier's probability counts as 1 above 1/2). A pair whose
    chosen side alone is unsafe is turned round, one of two unsafe sides is left out (health: both_unsafe). delta: how
    much further a safe response is to be from an unsafe one.
    """
    w, l = r.pairs()
    bad_w, bad_l = (y.note("unsafe", "R", within=(0, 1)) > 0.5 for y in (w, l))
    h_w, h_l = beta * w.log_ratio.sum(), beta * l.log_ratio.sum()
    turned, both = bad_w & ~bad_l, bad_w & bad_l
    better, worse = torch.where(turned, h_l, h_w), torch.where(turned, h_w, h_l)
    margin = delta * (bad_w ^ bad_l).to(h_w.dtype)
    return Loss(
        preference=compare(better - worse - margin, bradley_terry, keep=~both),
        rewards=(better, worse),
        metrics={"turned": turned.to(h_w.dtype)},
        health={"both_unsafe": both.sum()},
    )
