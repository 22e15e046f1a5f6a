import torch

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_responses
from ...objectives.method import method
from ...objectives.responses import Responses


@method("apo-zero-unpaired", paper="2408.06266", beta="sum of log-ratios", tags=("pointwise", "likelihood_collapse"))
def apo_zero_unpaired(
    r: Responses, *, beta: Positive = 0.1, desirable_weight: Positive = 1.0, undesirable_weight: Positive = 1.0
) -> Loss:
    """Anchored preference optimisation (eq. 7) of single responses: 1 - sigmoid(r) if desirable, else sigmoid(r).

    r = beta h. KTO without its baseline (TRL's apo_zero_unpaired): needs no mismatched completions.
    """
    good = r.note("label", "R", dtype=bool)
    reward = beta * r.log_ratio.sum()
    value = torch.where(good, desirable_weight * torch.sigmoid(-reward), undesirable_weight * torch.sigmoid(reward))
    return Loss(value=over_responses(value), rewards=reward)
