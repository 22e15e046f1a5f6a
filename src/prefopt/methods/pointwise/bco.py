import torch

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, Update, over_responses
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry


@method("bco", paper="2404.04656", beta="sum of log-ratios", tags=("pointwise",), surveyed=True)
def bco(r: Responses, *, beta: Positive = 0.1, shift: bool = True) -> Loss:
    """Binary classifier optimisation (eq. 12): -mean log sigmoid(r_w - d) - mean log sigmoid(-(r_l - d)), r = beta h.

    d is the mean of the two sides' mean rewards over all earlier steps (0 in the first). On pairs or on labelled rows.
    shift: false leaves d out (TRL's bco_pair).
    """
    good, bad = r.sides()
    r_w, r_l = beta * good.log_ratio.sum(), beta * bad.log_ratio.sum()
    if not shift:
        return Loss(
            good=over_responses(bradley_terry(r_w)), bad=over_responses(bradley_terry(-r_l)), rewards=(r_w, r_l)
        )
    sums = r.state("seen", lambda: torch.zeros(4, dtype=torch.float64))  # rewards and numbers of both sides
    d = ((sums[0] / sums[2].clamp(min=1) + sums[1] / sums[3].clamp(min=1)) / 2).to(r_w.dtype)
    seen = (
        torch.stack([r_w.sum(), r_l.sum(), torch.ones_like(r_w).sum(), torch.ones_like(r_l).sum()])
        .detach()
        .to(sums.dtype)
    )
    return Loss(
        good=over_responses(bradley_terry(r_w - d)),
        bad=over_responses(bradley_terry(d - r_l)),
        rewards=(r_w, r_l),
        metrics={"shift": d},
        updates={"seen": Update(seen, torch.ones_like(d), lambda old, new, _: old + new)},
    )
