import torch
from torch import Tensor

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_groups
from ...objectives.method import method
from ...objectives.responses import Responses

ROUNDS = 30  # of Sinkhorn: rows and columns sum to 1 up to a few per cent by then


@method("opo", paper="2410.04346", beta="sum of log-ratios", tags=("listwise",), surveyed=True)
def opo(r: Responses, *, beta: Positive = 0.1, tau: Positive = 1.0) -> Loss:
    """Ordinal preference optimisation: -NeuralNDCG of a list, -(1/maxDCG) sum_k (P g)_k / log2(1 + k), g = 2^score - 1.

    P is the smooth sorting of the rewards s = beta h, row k softmax_j(((n + 1 - 2k) s_j - sum_i |s_j - s_i|)/tau), scaled
    to rows and columns that sum to 1; tau -> 0 sorts them, and the loss is -NDCG.
    """
    same, s = r.same_group(), beta * r.log_ratio.sum()
    g = torch.exp2(r.note("score", "R")).to(s) - 1
    n, k = same.sum(-1), same.tril().sum(-1)  # [R] how many responses the list has; each row stands for a place in it
    discount = 1 / torch.log2(1 + k.to(s))
    apart = torch.where(same, (s[:, None] - s).abs(), 0.0).sum(-1)
    P = torch.where(same, ((n + 1 - 2 * k)[:, None] * s - apart) / tau, -torch.inf)
    ideal = (discount[:, None] * torch.where(same & (k[:, None] == r.rank(g)), g, 0.0)).sum(-1)  # [R] of each place
    gained = doubly(P) * g * discount[:, None]
    best = torch.where(same, ideal[None], 0.0).sum(-1)
    ndcg = torch.where(best[:, None] > 0, gained / best.clamp(min=torch.finfo(s.dtype).tiny)[:, None], 0.0)
    return Loss(ranking=over_groups(-ndcg, r), rewards=s)


def doubly(logits: Tensor) -> Tensor:
    """Sinkhorn's scaling of exp(logits) [R, R] in logarithms."""
    x = logits - logits.logsumexp(-1, keepdim=True)
    for _ in range(ROUNDS):
        x = x - x.logsumexp(-2, keepdim=True)
        x = x - x.logsumexp(-1, keepdim=True)
    return x.exp()
