import math
from typing import Literal

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, prefer
from ...objectives.method import method, require
from ...objectives.responses import Responses


@method(
    "mallows-po",
    paper="2405.14953",
    beta="sum of log-ratios, times the prompt's dispersion",
    tags=("heterogeneity",),
    surveyed=True,
)
def mallows_po(
    r: Responses, *, beta: Positive = 0.1, dispersion: Literal["entropy", "column"] = "entropy", vocabulary: int = 32000
) -> Loss:
    """MallowsPO-theta: -log sigmoid(phi(x) beta (h_w - h_l)), phi(x) large where annotators agree on a prompt.

    entropy: phi = -log(H / log n), H the mean entropy per token over both answers, n the size of the vocabulary. H is the
    policy's of the moment, without gradient (the paper's is the first model's). column: phi is the data's `dispersion`.
    """
    require(vocabulary >= 2, f"vocabulary = {vocabulary}: must be 2 words or more")
    w, l = r.pairs()
    if dispersion == "column":
        phi = r.note("dispersion", "P", within=(0, math.inf))
    else:
        H = (w.score("entropy").mean() + l.score("entropy").mean()).abs() / 2  # abs: rounding below 0
        phi = -(H / math.log(vocabulary)).clamp(1e-6, 1.0).log()
    scale = phi.to(w.policy.values) * beta
    return prefer(scale * w.log_ratio.sum(), scale * l.log_ratio.sum(), metrics={"dispersion": phi})
