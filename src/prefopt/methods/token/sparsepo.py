from functools import partial
from typing import Any, Literal

from torch import Tensor

from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, compare, over_pairs
from ...objectives.masks import LastMask, LayersMask, activation_mask
from ...objectives.method import method, require
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry

Hook = Literal["mlp", "attn", "resid", "logits", "uniform"]
ALL: tuple[Hook, ...] = ("mlp", "attn", "resid", "logits")


@method("sparsepo", paper="2410.05102", beta="masked log-ratios and sequential KL", tags=("token",), surveyed=True)
def sparsepo(
    r: Responses,
    *,
    beta: Positive = 0.1,
    variant: Literal["spo-common", "spo-independent", "mapo"] = "spo-common",
    l1_u: NonNegative = 0.0,
    l1_d: NonNegative = 0.0,
    mask_on_reward: bool = True,
    mask_on_kl: bool = True,
    mask_layers: Literal["all", "last"] = "all",
    mask_init: Literal["positive", "official"] = "positive",
    mask_weight_decay: NonNegative = 0.01,
    hooks: tuple[Hook, ...] = ALL,
) -> Loss:
    """SparsePO: TDPO1 with a mask on each token's log-ratio, m_u, and one on its KL(reference || policy), m_d.

    h = (U_w - U_l) - (D_l - D_w), U = sum m_u rho, D = sum m_d kl; -log sigmoid(beta h) + l1_u |m_u| + l1_d |m_d|.
    spo-*: one mask network or two on the reference's hidden states before each token (mask_layers: of every block or
    of the last). mapo: a mask from the reference's activations (hooks: which groups; uniform is TDPO1), not learned.
    """
    require(mask_on_reward or mask_on_kl, "without any mask this is TDPO1: take tdpo with variant tdpo1")
    require(variant != "mapo" or l1_u == l1_d == 0, "l1_u and l1_d have no effect with mapo: its mask is not learned")
    require(mask_on_reward or l1_u == 0, "l1_u has no effect without mask_on_reward")
    require(mask_on_kl or l1_d == 0, "l1_d has no effect without mask_on_kl")
    require(0 < len(hooks) == len(set(hooks)), "hooks: name at least one group of activations, each once")
    require("uniform" not in hooks or len(hooks) == 1, "hooks: uniform is a mask of ones, the others have no effect")
    rho, kl = r.log_ratio, r.score("token_kl", grad=True)
    ones = (rho.count > 0).to(rho.values)

    def mask(name: str) -> Tensor:
        if variant == "mapo" and hooks == ("uniform",):
            return ones
        if variant == "mapo":
            activations = r.feature("activations", "R J T", of=hooks)
            return activation_mask(activations, r.feature("activation_group", "J", dtype=int, of=hooks), ones, hooks)
        H = r.feature("reference_hidden", "R L T D", of=mask_layers)
        one = partial(LastMask, H.shape[3]) if mask_layers == "last" else partial(LayersMask, H.shape[1], H.shape[3])
        return ones * r.module(name, lambda: one(start=mask_init), weight_decay=mask_weight_decay)(H)

    shared = mask_on_reward and mask_on_kl and variant != "spo-independent"
    m_u = mask("reward_mask") if mask_on_reward else ones
    m_d = m_u if shared else mask("kl_mask") if mask_on_kl else ones
    U, D = (rho * m_u).sum(), (kl * m_d).sum()
    w, l = (y.rows for y in r.pairs())
    l1 = (l1_u * m_u.sum(-1) + l1_d * m_d.sum(-1)) / (2 if shared else 1)  # one mask would be counted twice
    seen: dict[str, Any] = {}
    for side, y in (("chosen", w), ("rejected", l)):
        seen |= {f"seq_kl/{side}": kl.sum()[y], f"masked_kl/{side}": D[y]}
        for name, m in ([("u", m_u)] if mask_on_reward else []) + ([("d", m_d)] if mask_on_kl else []):
            zeros = 100 * (ones * (m == 0)).sum(-1) / ones.sum(-1)
            seen |= {f"sparsity_{name}/{side}": zeros[y], f"l1_{name}/{side}": m.sum(-1)[y]}
    dead = (m_u[w] + m_u[l] + m_d[w] + m_d[l]).sum(-1) == 0  # such a pair teaches nothing, not even its mask
    terms: dict[str, Any] = {"preference": compare(beta * ((U[w] - U[l]) - (D[l] - D[w])), bradley_terry)}
    terms |= {"l1": over_pairs(l1[w] + l1[l])} if l1_u or l1_d else {}
    rewards, health = (beta * (U - D)[w], beta * (U - D)[l]), {"dead_masks": dead.to(U).mean()}
    return Loss(rewards, metrics=seen, health=health, **terms)
