import torch
from torch import Tensor

from ...objectives.hyper import Fraction, NonNegative, Positive
from ...objectives.loss import Loss, Update, compare
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry

LOWEST = 1e-3  # a negative beta would turn the preference round


@method("beta-dpo", paper="2407.08639", beta="sum of log-ratios", tags=("distinguishability",), surveyed=True)
def beta_dpo(
    r: Responses, *, beta: Positive = 0.1, alpha: NonNegative = 0.6, momentum: Fraction = 0.9, filtered: bool = False
) -> Loss:
    """DPO with beta set by the step (eqs. 6-9): -log sigmoid(beta' (h_w - h_l)), beta' = beta (1 + alpha (mean M - M_0)).

    M = beta (h_w - h_l) without gradient, its mean over the whole optimiser step; M_0 is its running mean over earlier
    steps. Steps of easy pairs get a larger beta. filtered: pairs far from M_0 count less, by exp(-(M - M_0)^2/(2 s^2)),
    s^2 the running variance (what the paper's sampling of pairs does on average). Costs a second forward.
    """
    w, l = r.pairs()
    h = w.log_ratio.sum() - l.log_ratio.sum()
    M = (beta * h).detach()
    M_0, square = r.state("margin", lambda: torch.tensor([0.0, 1.0], dtype=torch.float64)).to(M.dtype)
    near = torch.exp(-((M - M_0).square()) / (2 * (square - M_0.square()).clamp(min=1e-6))) if filtered else 1 + 0 * M
    mass = r.step_mean("weight", near).clamp(min=1e-6) if filtered else 1.0
    step_beta = (beta * (1 + alpha * (r.step_mean("margin", near * M) / mass - M_0))).clamp(min=LOWEST)

    def follow(old: Tensor, total: Tensor, n: Tensor) -> Tensor:
        return torch.where(n > 0, momentum * old + (1 - momentum) * total / n.clamp(min=1), old)

    seen = torch.stack([M, M.square()], -1)
    moved = Update(seen.sum(0), seen.new_full((2,), len(M)), follow)
    preference = compare(step_beta * h, bradley_terry) * (near / mass)
    rewards = (beta * w.log_ratio.sum(), beta * l.log_ratio.sum())
    return Loss(preference=preference, rewards=rewards, metrics={"beta": step_beta}, updates={"margin": moved})
