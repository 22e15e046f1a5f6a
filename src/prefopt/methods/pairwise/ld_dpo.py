from typing import Literal

import torch
from torch import Tensor

from ...objectives.hyper import Fraction, Positive
from ...objectives.loss import Loss, prefer
from ...objectives.method import method, require
from ...objectives.responses import Responses


@method("ld-dpo", paper="2409.06411", beta="sum of (weighted) log-ratios", tags=("length_bias",), surveyed=True)
def ld_dpo(
    r: Responses,
    *,
    beta: Positive = 0.1,
    ld_alpha: Fraction = 0.5,
    reference: Literal["policy_only", "both"] = "policy_only",
    side: Literal["both", "chosen", "rejected"] = "both",
) -> Loss:
    """-log sigmoid(beta ((L_w - ref_w) - (L_l - ref_l))), L = sum_{t <= l_p} log pi_t + ld_alpha sum_{t > l_p} log pi_t.

    l_p = min(|y_w|, |y_l|): what the longer response has beyond its partner counts with ld_alpha (eq. 11); 1 is DPO.
    reference: `policy_only` leaves the reference's log-probability whole (the paper's reading: longer responses start
    with an offset); `both` weighs it alike (TRL: the margin starts at 0). side: which response may lose its tail.
    """
    require(not r.given("length"), "has a length rule of its own; put length on dpo or simpo")
    w, l = r.pairs()
    l_p = torch.minimum(w.policy.positions, l.policy.positions)[:, None]  # [P, 1]

    def reward(y: Responses, cut: bool) -> Tensor:
        values = y.policy.values
        weight = torch.where((y.policy.position <= l_p) | (not cut), 1.0, values.new_full((), ld_alpha))  # [P, T]
        if reference == "both":
            return beta * (y.log_ratio * weight).sum()
        if y.reference.values.shape != values.shape:  # stored sums
            return beta * ((y.policy * weight).sum() - y.reference.sum())
        return beta * (y.policy * weight - y.reference).sum()

    ratio = {
        k: beta * (y.policy.values.sum(-1) - y.reference.values.sum(-1)) for k, y in (("chosen", w), ("rejected", l))
    }
    whole = {f"log_ratio_rewards/{k}": x for k, x in ratio.items()}  # DPO's rewards: the others hold the weights
    out = prefer(reward(w, side != "rejected"), reward(l, side != "chosen"), metrics=whole)
    if ld_alpha or side != "both":
        return out
    a, b = (torch.where(y.policy.position <= l_p, y.policy.values, 0.0).detach() for y in (w, l))
    return out.replace(health={"no_signal": torch.isclose(a, b).all(-1).sum()})  # one begins with the other
