from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, over_responses, prefer
from ...objectives.method import method, require
from ...objectives.responses import Responses


@method("hypo", paper="2406.01462", beta="sum of log-ratios", tags=("online", "distribution_shift"), surveyed=True)
def hypo(r: Responses, *, beta: Positive = 0.1, lam: NonNegative = 0.1) -> Loss:
    """Hybrid preference optimisation: -log sigmoid(beta (h_w - h_l)) on offline pairs + lam KL(pi || ref) on-policy.

    KL = mean h(y) over samples y of the policy, responses in no pair whose `on_policy` in the data is 1; its gradient is
    that of h(y) log pi(y), h constant. A step without samples has no such term. Recipe: hypo-rounds.
    """
    require(not r.given("link"), "its KL is that of log-ratios, whatever the link")
    w, l = r.pairs()
    sampled = r.note("on_policy", "R", within=(0, 1)) > 0.5
    logp = r.policy.sum()
    h = logp.detach() - r.reference.sum()
    kl = over_responses(h * (1 + logp - logp.detach()), sampled)
    return prefer(beta * w.log_ratio.sum(), beta * l.log_ratio.sum(), metrics={"kl": kl}, kl=lam * kl)
