"""InfiFPO (2505.13878): the loss, and scoring by the source models before it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..objectives.hyper import Fraction, Positive
from ..objectives.loss import Loss, prefer
from ..objectives.method import Method, method, require
from ..objectives.responses import Responses
from ..objectives.scores import Scores
from ..objectives.words import bradley_terry, squared
from .steps import Steps, recipe

LOG_PROBABILITY, TOKENS = (-math.inf, 0.0), (1.0, math.inf)


@dataclass(frozen=True)
class Fusion:
    """How source models become one reference f(y) = sum_i gamma_i(y) c_i(y)."""

    length_norm: bool
    clip: bool
    include_pivot: bool
    eps: float
    fusion: str
    gamma: tuple[float, ...] | None
    margin_space: str

    def own(self, s: Scores) -> Tensor:
        return s.mean() if self.length_norm else s.sum()

    def clipped(self, r: Responses, pivot: Tensor, better: bool, name: str = "source", axis: str = "R") -> Tensor:
        """c [P, N]: the sources' scores, never on the wrong side of the pivot's start [P, 1]."""
        n = f"{axis} N" if self.gamma is None else f"{axis} {len(self.gamma) - self.include_pivot}"
        s = r.note(f"{name}_sums", n, within=LOG_PROBABILITY).to(pivot.dtype)
        if self.length_norm:
            s = s / r.note(f"{name}_counts", n, within=TOKENS).to(pivot.dtype)
        s = torch.cat([s, pivot], 1) if self.include_pivot else s
        return (torch.maximum if better else torch.minimum)(s, pivot) if self.clip else s

    def fused(self, c: Tensor, pivot: Tensor, apart: Tensor | None = None) -> Tensor:
        """f [P]. apart [P, N]: what max_margin looks at instead of each response's distance from the pivot."""
        if self.fusion == "max_margin":
            p = (c.exp() - pivot.exp()) if self.margin_space == "prob" else c - pivot
            k = one_hot((p.abs() if apart is None else apart).argmax(1), c.shape[1]).to(c)
        elif self.gamma is not None:
            k = torch.tensor(self.gamma, dtype=c.dtype, device=c.device).expand_as(c)
        else:
            k = torch.ones_like(c) if self.fusion == "average" else 1 / (self.eps - c)
        return (c * k / k.sum(1, keepdim=True)).sum(1)


@method(
    "infifpo", "2505.13878", beta="mean log-ratio to the fused sources (without length_norm the sum)",
    tags=("generalization",), family="pairwise",
)  # fmt: skip
def infifpo(
    r: Responses,
    *,
    beta: Positive = 2.5,
    length_norm: bool = True,
    clip: bool = True,
    include_pivot: bool = False,
    eps: Positive = 1e-8,
    fusion: Literal["max_margin", "average", "confidence", "explicit"] = "max_margin",
    gamma: tuple[float, ...] | None = None,
    margin_space: Literal["log", "prob"] = "log",
    margin_scope: Literal["response", "pair"] = "response",
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid",
    wrpo_alpha: Fraction | None = None,
) -> Loss:
    """-log sigmoid(z), z = beta ((s(y_w) - f(y_w)) - (s(y_l) - f(y_l))): the reference f is fused from source models.

    s: log-probability per token (length_norm), or in all. c: the sources' scores, with clip never below the policy's
    start (the pivot) on the chosen side, never above it on the rejected. f takes the source farthest from the pivot
    (max_margin; margin_scope pair: the one that sets the pair farthest apart), or sums them with weights: equal
    (average), 1/(eps - c) (confidence), gamma (explicit). include_pivot: the pivot is the last source.
    ipo: (z/beta - 1/(2 beta))^2. wrpo_alpha a: -log sigmoid(a h(y_w) + (1 - a) h(gold) - h(y_l)), h = beta (s - f),
    y_w the sources' best answer and `gold` the pivot's own (its scores: gold_source_sums, gold_source_counts).
    """
    explicit = fusion == "explicit"
    require(explicit == (gamma is not None), "fusion = explicit and gamma, a weight for each source, go together")
    if gamma is not None:
        require(min(gamma) >= 0 and abs(sum(gamma) - 1) < 1e-6, f"gamma = {gamma}: weights of 0 or more that sum to 1")
    require(length_norm or margin_space == "log", "margin_space = prob needs length_norm: whole answers underflow")
    plain = loss_type == "sigmoid" and margin_scope == "response"
    require(wrpo_alpha is None or plain, "wrpo_alpha goes with loss_type = sigmoid and margin_scope = response")
    of = Fusion(length_norm, clip, include_pivot, eps, fusion, gamma, margin_space)
    w, l = r.pairs()
    p_w, p_l = of.own(w.reference)[:, None], of.own(l.reference)[:, None]
    c_w, c_l = of.clipped(w, p_w, True), of.clipped(l, p_l, False)
    apart = c_w - c_l if margin_scope == "pair" else None
    f_w, f_l = of.fused(c_w, p_w, apart), of.fused(c_l, p_l, apart)
    h_w, h_l = beta * (of.own(w.policy) - f_w), beta * (of.own(l.policy) - f_l)
    best = h_w
    if wrpo_alpha is not None:
        gold = r.extra("gold")
        p = of.own(gold.reference)[:, None]
        f = of.fused(of.clipped(r, p, True, "gold_source", "P"), p)
        best = wrpo_alpha * h_w + (1 - wrpo_alpha) * beta * (of.own(gold.policy) - f)
    how = bradley_terry if loss_type == "sigmoid" else lambda z: squared(1 / (2 * beta))(z / beta)
    seen = {"disparity": torch.sigmoid(h_l - best), "fused/chosen": f_w, "fused/rejected": f_l}
    mismatch = beta < 0.5 if length_norm else beta > 1
    out = prefer(best, h_l, how, metrics=seen)
    return out.replace(rewards=(h_w, h_l), health={"beta_scale_mismatch": torch.ones(())} if mismatch else {})


@recipe(
    "infifpo-from-pairs", "2505.13878", ("pairs", "method.models: the source models"), tags=("generalization",)
)  # fmt: skip
def infifpo_from_pairs(steps: Steps, *, base: Method = infifpo(), models: tuple[str, ...] = ()) -> str:
    """InfiFPO from pairs and source models: each model scores the pairs under its own tokenizer, then the policy.

    models: folders, in the order of `gamma`. The scored pairs are in scored/.
    """
    require(len(models) > 0, "method.models is empty: give the folders of the source models")
    require("notes:source_sums" in base.needs(), f"method.base = {base.name}: it asks for no sources; take infifpo")
    return steps.train("policy", base, data=steps.scored("scored", {"sources": models}))
