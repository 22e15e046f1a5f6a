from ...objectives.hyper import Positive
from ...objectives.loss import Loss, compare
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry


@method("gdpo-geometric", paper="2409.06691", beta="sum of log-ratios", tags=("distinguishability",), surveyed=True)
def gdpo_geometric(r: Responses, *, beta: Positive = 0.1) -> Loss:
    """Geometric-averaged DPO (eq. 9): -log sigmoid((2 p - 1) beta (h_w - h_l)), p = label_probability of the data.

    The two responses are averaged geometrically by their soft label, which weighs the logit: a tie teaches nothing.
    """
    w, l = r.pairs()
    p = r.note("label_probability", "P")
    r_w, r_l = beta * w.log_ratio.sum(), beta * l.log_ratio.sum()
    return Loss(preference=compare((2 * p - 1) * (r_w - r_l), bradley_terry), rewards=(r_w, r_l))
