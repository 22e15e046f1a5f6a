from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ...objectives.hyper import NonNegative, Positive, Rising
from ...objectives.loss import Loss, Term
from ...objectives.method import Method, method, require
from ...objectives.responses import Responses
from ..pairwise.dpo import dpo


@method("self-spo", paper="2409.17791", tags=("distinguishability",))
def self_spo(
    r: Responses,
    *,
    base: Method = dpo(),
    gamma: NonNegative = 0.1,
    levels: int = 3,
    ratios: Rising = (),
    sides: Literal["both", "chosen", "rejected"] = "both",
    degrade: Literal["text", "hidden"] = "text",
    feature: Literal["last", "mean"] = "last",
    head_init: Literal["zeros", "normal"] = "zeros",
    head_rate: Positive = 1.0,
) -> Loss:
    """Self-supervised SPO: any method, plus gamma times telling how much of an answer's key content was cut.

    L_deg = mean over answers and their valid levels k of -log q^(k)[k], q^(k) = softmax(W f^(k) + b), one head for all;
    f^(k): the policy's state, with gradient, of the answer without the best ratios[k] of its key phrases (degrade=hidden:
    of the whole answer, averaged over the tokens that are left). ratios: none are evenly spaced from 0 to 1. head_rate
    multiplies the learning rate for the head. The head is dropped when the model is saved.
    """
    require(levels >= 2, f"levels = {levels}: there are at least 2, the answer and what is left of it")
    require(len(ratios) in (0, levels), f"ratios = {list(ratios)}: give one for each of the {levels} levels")
    require(degrade == "text" or feature == "mean", "degrade = hidden averages over tokens: set feature = mean")
    out = base(r)
    if gamma == 0:
        return out
    cut = ratios or tuple(k / (levels - 1) for k in range(levels))
    f = r.feature("graded_features", f"R {levels} D", grad=True, pool=feature, degrade=degrade, ratios=cut, sides=sides)
    valid = r.note("graded_valid", f"R {levels}", dtype=int, below=2).to(f)
    if sides != "both":
        rows = r.sides()[sides == "rejected"].rows
        assert rows is not None
        valid = valid * torch.zeros_like(valid[:, :1]).index_fill(0, rows, 1.0)

    def make() -> nn.Module:
        head = nn.Linear(f.shape[-1], levels)
        nn.init.normal_(head.weight, std=0.02 if head_init == "normal" else 0.0)
        nn.init.zeros_(head.bias)
        return head

    q = r.module("degree_head", make, rate=head_rate)(f)  # [R, K, K]
    k = torch.arange(levels, device=f.device).expand(len(f), -1)
    nll = cross_entropy(q.transpose(1, 2), k, reduction="none") * valid
    over = (valid.sum(), "graded versions")
    shown = {"degree_accuracy": Term(((q.argmax(-1) == k) * valid), *over), "degree_loss": Term(nll.detach(), *over)}
    return out.replace(out.terms | {"degree": gamma * Term(nll, *over)}, metrics=out.metrics | shown)
