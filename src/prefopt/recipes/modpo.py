"""MODPO (2310.03708): the loss, and its two steps with a sweep over weightings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..objectives.hyper import Positive
from ..objectives.loss import Loss, prefer
from ..objectives.method import method, require
from ..objectives.responses import Responses
from ..objectives.words import comparison


@method(
    "modpo", "2310.03708", beta="sum of log-ratios, over w[0]", tags=("multi_objective",), surveyed=True,
    family="pairwise",
)  # fmt: skip
def modpo(
    r: Responses,
    *,
    beta: Positive = 0.1,
    w: tuple[float, ...] = (0.5, 0.5),
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid",
) -> Loss:
    """-log sigmoid(R(y_w) - R(y_l)), R(y) = (beta log pi(y)/pi_ref(y) - sum_i w_i m_i(y)) / w_0.

    w_0 weighs the objective that labelled the pairs, w_1.. those whose rewards m_i(y) are the data's `margin_rewards`
    (each with its own scale: an implicit reward carries the beta of its training). w = (1,) is DPO.
    """
    require(len(w) > 0, "w is empty: give the weight of the objective that labelled the pairs, then the others'")
    require(w[0] > 0, f"w[0] = {w[0]:g}: the weight of the objective that labelled the pairs must be positive")

    def R(y: Responses) -> Tensor:
        own = beta * y.log_ratio.sum()
        if len(w) == 1:
            return own / w[0]
        m = y.note("margin_rewards", f"R {len(w) - 1}").to(own.dtype)
        return (own - m @ torch.tensor(w[1:], dtype=own.dtype, device=own.device)) / w[0]

    chosen, rejected = r.pairs()
    out = prefer(R(chosen), R(rejected), comparison(loss_type))
    if len(w) > 1:
        for side, y in (("chosen", chosen), ("rejected", rejected)):
            m = y.note("margin_rewards", f"R {len(w) - 1}")
            out.metrics.update({f"margin_rewards/{side}/{i + 1}": m[:, i] for i in range(len(w) - 1)})
    negative = torch.tensor(float(sum(x < 0 for x in w)))
    return out.replace(health={"negative_weights": negative} if negative else {})
