from typing import Literal

import torch

from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, over_pairs, prefer
from ...objectives.method import method
from ...objectives.responses import Responses


@method(
    "3d-properties",
    paper="2406.07327",
    beta="sum of log-ratios, one for each side",
    tags=("likelihood_collapse",),
    surveyed=True,
)
def flex_dpo(
    r: Responses,
    *,
    beta_chosen: Positive = 0.1,
    beta_rejected: Positive = 0.08,
    sft_gamma: NonNegative = 0.0,
    sft_norm: Literal["sum", "mean"] = "sum",
) -> Loss:
    """Flex-DPO and SFT-DPO (appendix B): -log sigmoid(beta+ R_w - beta- R_l) - gamma log pi(y_w).

    A smaller beta on the rejected side slows the fall of its likelihood; the NLL of the chosen one keeps that from
    falling too. sft_norm: log pi(y_w) summed over its tokens as printed, or their mean (then gamma is larger by about
    the length). Both betas equal and gamma 0 is DPO. The three properties themselves: `diagnostics.every`.
    """
    w, l = r.pairs()
    nll = -getattr(w.policy, sft_norm)()
    sft = sft_gamma * over_pairs(nll) if sft_gamma else None
    R_w, R_l = w.log_ratio.sum(), l.log_ratio.sum()
    out = prefer(beta_chosen * R_w, beta_rejected * R_l, metrics={"log_ratio/margin": R_w - R_l}, sft=sft)
    outweighs = torch.full_like(R_w, float(beta_rejected > beta_chosen)).mean()
    return out.replace(health={"beta_rejected_above_beta_chosen": outweighs})
