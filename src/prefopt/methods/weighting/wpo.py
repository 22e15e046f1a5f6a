import torch

from ...objectives.links import capped
from ...objectives.loss import Loss
from ...objectives.method import Method, method
from ...objectives.responses import Responses
from ..pairwise.dpo import dpo


@method("wpo", paper="2406.11827", beta="as in the base method", tags=("distribution_shift",))
def wpo(r: Responses, *, base: Method = dpo()) -> Loss:
    """w_w w_l times any pairwise loss, w = exp(mean_t (log pi(y_t) - log sum_v pi(v)^2)) without gradient (eqs. 1, 2).

    Pairs that the policy would write itself count more, so that data of others are as if sampled from it. The sum over
    the vocabulary makes a token count 1 where it is as likely as a draw of the policy is on average.
    """

    w, l = r.pairs()
    log_w, log_l = ((y.score("policy") - y.score("log_collision")).mean() for y in (w, l))
    weights = torch.exp(capped(log_w + log_l))
    out = base(r).weighted(weights)
    return out.replace(metrics=out.metrics | {"weights": weights})
