import math
from typing import Literal

import torch
from torch.nn.functional import cosine_similarity, logsigmoid

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, Term, over_groups
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.scores import into_segments
from ...objectives.words import lambda_weight


@method(
    "tree-tpo",
    paper="2410.12854",
    beta="weighted sum of the steps' log-ratios",
    tags=("step", "listwise"),
    surveyed=True,
)
def tree_tpo(
    r: Responses,
    *,
    beta: Positive = 0.5,
    adaptive_step_reward: bool = True,
    step_reduce: Literal["sum", "weighted_mean"] = "sum",
    list_loss: Literal["lambda", "pairwise", "official_pairwise"] = "lambda",
) -> Loss:
    """Tree Preference Optimization: a ranked list of answers in steps, -sum_{v_i > v_j} lam_ij log sigmoid(s_i - s_j).

    s_n = beta sum_k w_nk sum_{t in k} log-ratio (weighted_mean: of the steps' means), w_nk = 1 + cos(e_nk, e_0k), where
    e is the policy's mean last hidden state over step k and 0 the first (best) answer of the list; without
    adaptive_step_reward w = 1. lam: LambdaRank's weight by labels and ranks (as
    far as rounding lets rewards be told apart); pairwise: 1; official_pairwise: every pair
    twice, ties and i = j at log 2, over N (N - 1).
    """
    step = r.note("step_index", "R T", dtype="common step").long() - 1  # -1: no step
    K = step.shape[1]  # no answer has more steps than tokens
    steps = r.log_ratio.segments(step, K)
    w = has = (steps.count > 0).to(steps.values)
    same = r.same_group()
    if adaptive_step_reward:
        length = steps.count.clamp(min=1)[..., None]
        e = into_segments(r.feature("hidden", "R T H").to(w), step, K) / length  # [R, K, H]
        first = same.int().argmax(1)
        w = (1 + cosine_similarity(e, e[first], dim=-1)) * has * has[first]
    mean = (steps.each_mean() * w).sum(-1) / w.sum(-1).clamp(min=1e-12)
    s = beta * ((steps * w).sum() if step_reduce == "sum" else mean)
    v = r.note("value", "R", within=(-1, 1) if list_loss == "lambda" else None)
    beats, nll = r.beats(v), -logsigmoid(s[:, None] - s)  # [R, R]
    if list_loss == "official_pairwise":
        n = same.sum(1, keepdim=True)
        ties = (same & ~beats & ~beats.T).to(s) * math.log(2)
        ranking = over_groups(torch.where(beats, 2 * nll, ties) / (n * (n - 1)).clamp(min=1), r)
    else:
        apart = beta * r.reference.rounding() / (1 if step_reduce == "sum" else r.reference.positions)
        lam = lambda_weight(v, r.rank(s, apart)) if list_loss == "lambda" else 1.0
        ranking = over_groups(beats * nll * lam, r)
    ordered = Term((beats & (s[:, None] > s)).to(s), beats.sum().to(s), "ordered pairs")
    weights = Term(w * has, has.sum(), "steps")
    return Loss(ranking=ranking, rewards=s, metrics={"ranking_accuracy": ordered, "step_weights": weights})
