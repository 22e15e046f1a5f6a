import torch

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_pairs
from ...objectives.method import Method, method
from ...objectives.responses import Responses
from ..pairwise.dpo import dpo


@method("dr-dpo", paper="2407.07880", beta="as in the base method", tags=("noise",), surveyed=True)
def dr_dpo(r: Responses, *, base: Method = dpo(), beta_prime: Positive = 1.0) -> Loss:
    """Distributionally robust DPO (eq. 12): -beta' log mean exp(-L/beta'), L the loss of a pair under any pairwise base.

    The mean is over the whole optimiser step. Pairs of a large loss, which may be mislabelled, count less, by
    exp(-L/beta'); beta' -> infinity is the base itself. Costs a second forward.
    """
    out = base(r)
    loss, keep = out.per("pairs"), out.keep("pairs")
    counted = loss if keep is None else torch.where(keep, loss, torch.inf)
    every = r.step_values("loss", counted)
    number = every.isfinite().sum().clamp(min=1)
    log_mean = torch.logsumexp(-every / beta_prime, 0) - torch.log(number.to(loss.dtype))
    weight = torch.exp(-counted.detach() / beta_prime - log_mean)  # mean 1 over the step
    robust = weight * (loss - loss.detach()) - beta_prime * log_mean  # its value, and its gradient
    terms = {"preference": over_pairs(robust, keep)} | out.others("pairs")
    return out.replace(terms, metrics=out.metrics | {"weights": weight})
