from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_responses
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry


@method("npo", paper="2404.05868", beta="sum of log-ratios", surveyed=True)
def npo(r: Responses, *, beta: Positive = 0.1) -> Loss:
    """Negative Preference Optimization (eq. 3): (2 / beta) log(1 + (pi(y) / pi_ref(y))^beta) on responses to forget.

    These are the rejected ones of pairs, or those labelled false; beta -> 0 is gradient ascent on their NLL.
    """
    _, forget = r.sides()
    h = forget.log_ratio.sum()
    return Loss(forget=over_responses(2 / beta * bradley_terry(-beta * h)), metrics={"log_ratio/forget": h})
