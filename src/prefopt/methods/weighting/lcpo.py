from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ...objectives.hyper import Annotators, Inside, Share
from ...objectives.loss import Loss, Update, over_pairs
from ...objectives.method import Method, method, require
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry, soft
from ..pairwise.dpo import dpo


@method("lcpo", paper="2509.24159", tags=("noise", "heterogeneity"))
def lcpo(
    r: Responses,
    *,
    base: Method = dpo(),
    eta_0: Inside = 0.9,
    ema: Share = 0.1,
    annotators: Annotators = None,
    cpo_nll: Literal["inside", "outside"] = "inside",
) -> Loss:
    """-w log sigmoid(s) - (1 - w) log sigmoid(-s), s = L(l > w) - L(w > l), w = sigmoid(s + log eta/(1 - eta)), no gradient.

    Latent collective preference optimisation (eqs. 2-7; later versions are called RPO and RE-PO): w is the posterior
    that a label is right, L the loss of a pair under any pairwise `base`, eta the reliability of the pair's annotator,
    moved once an optimiser step by `ema` towards the mean w of that annotator's pairs (1: replaced by it).
    annotators: none takes the data's column `annotator`; 1 holds all labels for one annotator's. cpo_nll: whether terms
    of `base` per pair that compare nothing (the likelihood of cpo with nll: sequence) are a part of s or stay beside it.
    """
    eta = r.state("eta", lambda: torch.full((annotators or 1,), eta_0, dtype=torch.float64), of="annotator")
    observed = base(r)

    def order(out: Loss) -> Tensor:
        inside = {k: t for k, t in out.terms.items() if cpo_nll == "inside" or t.logit is not None}
        require(bool(inside), "the base compares nothing, so cpo_nll = outside leaves nothing to judge a label by")
        return out.replace(inside).per("pairs")

    s = order(base(r.swapped())) - order(observed)  # [P], p = sigmoid(s)
    one = torch.zeros_like(s, dtype=torch.long)
    who = one if annotators == 1 else r.note("annotator", "P", lambda: one, dtype=int, below=annotators or 1)
    w = torch.sigmoid(s + torch.logit(eta[who]).to(s.dtype)).detach()  # E-step
    keep = observed.keep("pairs")
    mine = one_hot(who, len(eta)).to(eta.dtype) * (1 if keep is None else keep[:, None])

    def advance(old: Tensor, total: Tensor, n: Tensor) -> Tensor:  # M-step: annotators of this step only
        mean = total / n.clamp(min=1)
        return torch.where(n > 0, (1 - ema) * old + ema * mean, old).clamp(1e-4, 1 - 1e-4)

    beside = {
        k: t for k, t in observed.terms.items() if t.over != "pairs" or (cpo_nll == "outside" and t.logit is None)
    }
    posterior = {"weight": w, "induced_logit": s.detach(), "eta": eta[who]}
    return observed.replace(
        {"preference": over_pairs(soft(bradley_terry, w)(s), keep)} | beside,
        metrics=observed.metrics | {"weights": w, "induced_logit": s, "reliability": eta[who]},
        health=observed.health | {"unreliable_annotators": (eta <= 0.5).sum()},
        updates=observed.updates | {"eta": Update(w.to(eta.dtype) @ mine, mine.sum(0), advance)},
        exports=observed.exports | posterior,
    )
