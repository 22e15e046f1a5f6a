import torch
from torch import Tensor

from ...objectives.hyper import Positive, Smoothing
from ...objectives.loss import Loss, compare, over_responses
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import smoothed


def matched(x: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """Of sorted `others` the quantiles at which x stand among `own`; x itself where there are none."""
    if not len(others):
        return x
    place = torch.searchsorted(own, x.detach()) + 0.5
    return others[(place * len(others) / max(len(own), 1)).long().clamp(max=len(others) - 1)]


def whole(x: Tensor) -> Tensor:
    """Half the value with the whole gradient: both sides of a match carry it."""
    return x - x.detach() / 2


@method("aot", paper="2406.05882", beta="sum of log-ratios", tags=("pointwise",), surveyed=True)
def aot(r: Responses, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.0, paired: bool = True) -> Loss:
    """Alignment by optimal transport: mean_k -log sigmoid(beta (x_(k) - y_(k))), the k-th smallest with the k-th smallest.

    paired: x = log pi(y_w)/pi(y_l) and y = log ref(y_w)/ref(y_l) of the same pairs; else x = h_w and y = h_l, on pairs
    or labelled rows. The sorting is over the whole optimiser step, on all processes. Costs a second forward.
    """
    how = smoothed(label_smoothing)
    if paired:
        w, l = r.pairs()
        x, y = w.policy.sum() - l.policy.sum(), w.reference.sum() - l.reference.sum()
        quantile = matched(x, r.step_values("policy", x), r.step_values("reference", y))
        rewards = (beta * w.log_ratio.sum(), beta * l.log_ratio.sum())
        return Loss(dominance=compare(beta * (x - quantile), how), rewards=rewards)
    good, bad = r.sides()
    h_w, h_l = good.log_ratio.sum(), bad.log_ratio.sum()
    all_w, all_l = r.step_values("chosen", h_w), r.step_values("rejected", h_l)
    above = how(beta * (h_w - matched(h_w, all_w, all_l)))
    below = how(beta * (matched(h_l, all_l, all_w) - h_l))
    return Loss(good=over_responses(whole(above)), bad=over_responses(whole(below)), rewards=(beta * h_w, beta * h_l))
