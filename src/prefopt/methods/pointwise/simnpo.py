from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, over_responses
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry


@method("simnpo", paper="2410.07163", beta="mean log-probability", tags=("free", "length_bias"), surveyed=True)
def simnpo(r: Responses, *, beta: Positive = 2.5, gamma: NonNegative = 0.0) -> Loss:
    """SimNPO (eq. 5): -(2 / beta) log sigmoid(-beta / |y| log pi(y) - gamma) on the responses to forget; no reference.

    These are the rejected ones of pairs, or those labelled false.
    """
    _, forget = r.sides()
    s = forget.policy.mean()
    return Loss(forget=over_responses(2 / beta * bradley_terry(-beta * s - gamma)), metrics={"logps/forget": s})
