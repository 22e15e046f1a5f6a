from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_pairs
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry


@method("nca", paper="2402.05369", beta="sum of log-ratios", tags=("pointwise",), surveyed=True)
def nca(r: Responses, *, beta: Positive = 0.1) -> Loss:
    """Noise contrastive alignment of pairs: -log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l).

    r = beta h. Absolute rewards, so that the chosen likelihood is not free to fall with the rejected one.
    """
    w, l = r.pairs()
    r_w, r_l = beta * w.log_ratio.sum(), beta * l.log_ratio.sum()
    value = bradley_terry(r_w) + (bradley_terry(-r_w) + bradley_terry(-r_l)) / 2
    return Loss(contrast=over_pairs(value), rewards=(r_w, r_l))
