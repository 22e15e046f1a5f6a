from typing import Literal

from torch.nn.functional import logsigmoid

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, Term, over_groups
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import lambda_weight


@method(
    "rankdpo", paper="2410.18013", beta="mean (or sum) of the denoising log-ratio over elements", tags=("listwise",)
)
def rankdpo(
    r: Responses,
    *,
    beta: Positive = 2500.0,
    reduction: Literal["mean", "sum"] = "mean",
    rank_source: Literal["target", "policy"] = "target",
    gain: Literal["exponential", "identity"] = "exponential",
    noise: Literal["own", "shared"] = "own",
) -> Loss:
    """RankDPO (eqs. 5-7): -sum_{phi_i > phi_j} |G_i - G_j| |1/D(tau_i) - 1/D(tau_j)| log sigmoid(h_i - h_j) of a list.

    h = -beta s, s = how much more denoising error the policy makes than the reference; G = 2^phi - 1 (identity: phi),
    D = log(1 + tau), tau the rank by phi (rank_source policy: by h). noise: drawn for every image, or once for the list.
    """
    r = r.noised("forward_each" if noise == "own" else "forward")
    phi = r.note("phi", "R", within=(0, 1))
    ratio = r.log_ratio
    h = beta * (ratio.mean() if reduction == "mean" else ratio.sum())
    gap = lambda_weight(phi.to(h), r.rank(phi if rank_source == "target" else h.detach()), gain)
    beats = r.beats(phi)
    pairs = beats.sum().to(h)
    metrics = {
        "pair_accuracy": Term((beats & (h[:, None] > h)).to(h), pairs, "ordered pairs"),
        "list_weight": Term(beats * gap, pairs, "ordered pairs"),
    }
    return Loss(ranking=over_groups(beats * gap * -logsigmoid(h[:, None] - h), r), rewards=h, metrics=metrics)
