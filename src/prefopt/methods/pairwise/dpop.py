from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, compare
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry


@method("dpop", paper="2402.13228", beta="sum of log-ratios", tags=("likelihood_collapse",), surveyed=True)
def dpop(r: Responses, *, beta: Positive = 0.3, lam: NonNegative = 50.0) -> Loss:
    """DPO-Positive (Smaug, eq. 3): -log sigmoid(beta (h_w - h_l - lam max(0, -h_w))).

    A chosen response that is less likely than under the reference is penalised; lam = 0 is DPO.
    """
    w, l = r.pairs()
    h_w, h_l = w.log_ratio.sum(), l.log_ratio.sum()
    lost = (-h_w).clamp(min=0)
    return Loss(
        preference=compare(beta * (h_w - h_l - lam * lost), bradley_terry),
        rewards=(beta * h_w, beta * h_l),
        metrics={"lost/chosen": lost},
    )
