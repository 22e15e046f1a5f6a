from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, over_pairs, prefer
from ...objectives.method import method, require
from ...objectives.responses import Responses


@method("xpo", paper="2405.21046", beta="sum of log-ratios", tags=("online",), surveyed=True)
def xpo(r: Responses, *, beta: Positive = 0.1, alpha: NonNegative = 1e-5) -> Loss:
    """Exploratory preference optimisation (eq. 4): -log sigmoid(beta (h_w - h_l)) + alpha log pi(y~), y~ of the reference.

    Of each pair one side is the policy's sample and one the reference's: `from_reference` of the data is 1 for that one.
    What the reference would say anyway becomes less likely, so that the policy explores. Recipe: xpo-rounds.
    """
    require(not r.given("link"), "its optimism is a log-probability, whatever the link")
    w, l = r.pairs()
    own = [y.note("from_reference", "R", within=(0, 1)) * y.policy.sum() for y in (w, l)]
    return prefer(beta * w.log_ratio.sum(), beta * l.log_ratio.sum(), optimism=alpha * over_pairs(own[0] + own[1]))
