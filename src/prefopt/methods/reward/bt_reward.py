from ...objectives.hyper import NonNegative
from ...objectives.loss import Loss, over_pairs, prefer
from ...objectives.method import method
from ...objectives.responses import Responses


@method("bt-reward", paper="2406.09279", tags=("free",))
def bt_reward(r: Responses, *, use_margin: bool = False, center_coefficient: NonNegative = 0.0) -> Loss:
    """Bradley-Terry reward model (card `unpacking`): -log sigmoid(r(y_w) - r(y_l) - margin), r from a scalar head.

    use_margin: the data's `margin` column. center_coefficient: weight of (r_w + r_l)^2 (2312.09244, eq. 2).
    """
    w, l = r.pairs()
    r_w, r_l = w.score("reward", grad=True).sum(), l.score("reward", grad=True).sum()
    center = center_coefficient * over_pairs((r_w + r_l).square()) if center_coefficient else None
    return prefer(r_w, r_l, margin=r.note("margin", "P") if use_margin else 0.0, center=center)
