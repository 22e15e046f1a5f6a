from typing import Literal

from ...objectives.hyper import NonNegative, Positive, Smoothing
from ...objectives.loss import Loss, compare, over_pairs, over_tokens, prefer
from ...objectives.method import method, require
from ...objectives.responses import Responses
from ...objectives.words import comparison, squared


@method("cpo", paper="2401.08417", beta="sum (ipo: mean) of log-probabilities", tags=("free",), surveyed=True)
def cpo(
    r: Responses,
    *,
    beta: Positive = 0.1,
    cpo_alpha: NonNegative = 1.0,
    nll: Literal["token", "sequence"] = "token",
    label_smoothing: Smoothing = 0.0,
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
) -> Loss:
    """Contrastive Preference Optimization (eq. 6): -log sigmoid(beta (s_w - s_l)) - cpo_alpha s_w, s = log pi(y).

    DPO without a reference, plus imitation of the chosen response. nll: imitation as the mean over all chosen tokens of
    the step (TRL), or each response's sum as part of its pair's loss. loss_type: hinge max(0, 1 - u), and ipo
    (mean log pi_w - mean log pi_l - 1/(2 beta))^2, are TRL's other forms of the comparison.
    """
    w, l = r.pairs()
    sft = over_tokens(-w.policy) if nll == "token" else over_pairs(-w.policy.sum())
    if loss_type == "ipo":
        require(not label_smoothing, "label_smoothing has no effect with loss_type ipo: leave it out")
        s_w, s_l = w.policy.mean(), l.policy.mean()
        preference = compare(s_w - s_l, squared(1 / (2 * beta)))
        return Loss(preference=preference, nll=cpo_alpha * sft, rewards=(beta * s_w, beta * s_l))
    how = comparison(loss_type, label_smoothing)
    return prefer(beta * w.policy.sum(), beta * l.policy.sum(), how, nll=cpo_alpha * sft)
