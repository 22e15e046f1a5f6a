import torch

from ...objectives.loss import Loss, over_pairs
from ...objectives.method import method
from ...objectives.responses import Responses


@method("simper", paper="2502.00883", tags=("free",), surveyed=True)
def simper(r: Responses) -> Loss:
    """SimPER (eq. 4): exp(mean log pi(y_l)) - exp(mean log pi(y_w)), the inverse perplexities; no hyperparameter."""
    w, l = r.pairs()
    p_w, p_l = torch.exp(w.policy.mean()), torch.exp(l.policy.mean())
    return Loss(perplexity=over_pairs(p_l - p_w), rewards=(p_w, p_l))
