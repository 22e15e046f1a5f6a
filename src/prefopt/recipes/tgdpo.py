"""TGDPO (2506.14574): the loss, and its two runs from pairs alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..methods.pairwise.dpo import dpo
from ..objectives.hyper import NonNegative, Positive
from ..objectives.loss import Loss, compare, over_pairs, over_tokens
from ..objectives.method import Method, method, require
from ..objectives.responses import Responses
from ..objectives.words import bradley_terry
from .steps import Steps, recipe


@method(
    "tgdpo", "2506.14574", beta="sum of log-ratios, each token's times its strength f", tags=("token",), surveyed=True,
    family="token",
)  # fmt: skip
def tgdpo(
    r: Responses,
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 0.5,
    reward_beta: Positive | None = None,
    floor: NonNegative | None = None,
    gamma_sft: NonNegative = 0.0,
) -> Loss:
    """-log sigmoid(beta sum_t f_w rho_w - beta sum_t f_l rho_l), rho = log pi/pi_ref, f_w = 1 + alpha r_hat on the chosen
    and f_l = 1 - alpha r_hat on the rejected tokens, r_hat = reward_beta log pi_rm/pi_ref of a model trained before.

    reward_beta: none takes beta. floor: the least strength (the paper has none: with a large alpha strengths turn
    negative, and chosen tokens are pushed down). gamma_sft: weight of the chosen answers' mean NLL per token.
    """

    def guided(y: Responses, sign: int) -> tuple[Tensor, Tensor, Tensor]:
        """sum_t f rho, f, and the sum of r_hat."""
        r_hat = (reward_beta or beta) * (y.score("token_reward") - y.reference)
        f = 1 + sign * alpha * r_hat.values
        f = f if floor is None else f.clamp(min=floor)
        return beta * (y.log_ratio * f).sum(), f, r_hat.sum()

    w, l = r.pairs()
    (h_w, f_w, sum_w), (h_l, f_l, sum_l) = guided(w, +1), guided(l, -1)
    r_w, r_l = beta * w.log_ratio.sum(), beta * l.log_ratio.sum()
    labelled, free = (r_w - r_l).detach(), (h_w - h_l - r_w + r_l).detach()  # h = DPO's margin + what has no label
    terms = {"preference": compare(h_w - h_l, bradley_terry)}
    if gamma_sft:
        terms["sft"] = gamma_sft * over_pairs(-w.policy.mean())
    return Loss(
        rewards=(r_w, r_l),
        metrics={
            "strength/chosen": over_tokens(w.reference.like(f_w)),
            "strength/rejected": over_tokens(l.reference.like(f_l)),
            "margin/dpo": labelled,
            "margin/label_free": free,
            "token_reward/chosen": sum_w,
            "token_reward/rejected": sum_l,
        },
        health={
            "non_positive_strengths": (f_w <= 0).sum() + (f_l <= 0).sum(),
            "label_free_part_dominates": free.mean().abs() > labelled.mean().abs(),
        },
    ).replace(terms)


@recipe("tgdpo-from-pairs", "2506.14574", ("pairs",), tags=("token",), surveyed=True)
def tgdpo_from_pairs(
    steps: Steps, *, base: Method = tgdpo(), first: Method = dpo(), first_train: dict[str, Any] | None = None
) -> str:
    """TGDPO from pairs alone: a first run makes the token-reward model, the guided run starts where the first did.

    first: the method of the first run. The token reward is base.beta (or base.reward_beta) times its log-ratios.
    first_train: keys of `train` that differ in the first run, e.g. {max_steps: 100}. The first model is in first/.
    """
    require(
        "scores:token_reward" in base.needs(), f"method.base = {base.name}: it asks for no token reward; take tgdpo"
    )
    require(
        not steps.config.sources,
        "sources has no effect on tgdpo-from-pairs: the first run makes the token-reward model; train `tgdpo` with it",
    )
    reward = steps.train("first", first, train=first_train)
    return steps.train("guided", base, sources={"token_reward": reward})
