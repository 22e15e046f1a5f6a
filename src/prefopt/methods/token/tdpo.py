from typing import Literal

from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, compare
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry


@method(
    "tdpo",
    paper="2404.11999",
    beta="sum of log-ratios and sequential KL",
    tags=("token",),
    surveyed=True,
)
def tdpo(
    r: Responses,
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 0.5,
    variant: Literal["tdpo1", "tdpo2"] = "tdpo2",
) -> Loss:
    """Token-level DPO (eqs. 13, 16): the margin carries the sequential KL(reference || policy) along each response.

    tdpo1: h = R_w - R_l - (K_l - K_w). tdpo2: h = R_w - R_l - alpha (K_l - sg K_w), so that the rejected side's KL is
    drawn towards the chosen side's, and that one is not pushed up. K is exact over the vocabulary at every position of
    the answers in the data, summed, so the reference has to run in the step (an adapter switched off, or a copy).
    """
    w, l = r.pairs()
    R_w, R_l = w.log_ratio.sum(), l.log_ratio.sum()
    K_w, K_l = (y.score("token_kl", grad=True).sum() for y in (w, l))
    correction = K_l - K_w if variant == "tdpo1" else alpha * (K_l - K_w.detach())
    return Loss(
        preference=compare(beta * (R_w - R_l - correction), bradley_terry),
        rewards=(beta * (R_w + K_w), beta * (R_l + K_l)),
        metrics={"seq_kl/chosen": K_w, "seq_kl/rejected": K_l, "seq_kl/margin": K_l - K_w},
    )
