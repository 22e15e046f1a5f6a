from typing import Literal

from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, over_pairs, over_tokens, prefer
from ...objectives.method import method
from ...objectives.responses import Responses


@method("cpo", paper="2401.08417", beta="sum of log-probabilities")
def cpo(
    r: Responses, *, beta: Positive = 0.1, cpo_alpha: NonNegative = 1.0, nll: Literal["token", "sequence"] = "token"
) -> Loss:
    """Contrastive Preference Optimization (eq. 6): DPO without a reference, plus the chosen responses' NLL.

    nll: mean over all chosen tokens (TRL), or each response's sum as part of its pair's loss.
    """
    w, l = r.pairs()
    sft = over_tokens(-w.policy) if nll == "token" else over_pairs(-w.policy.sum())
    return prefer(beta * w.policy.sum(), beta * l.policy.sum(), nll=cpo_alpha * sft)
