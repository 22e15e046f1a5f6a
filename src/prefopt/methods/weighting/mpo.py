from ...objectives.hyper import NonNegative
from ...objectives.loss import Loss
from ...objectives.method import Method, method, require
from ...objectives.responses import Responses
from ..pairwise.dpo import dpo
from ..pointwise.bco import bco
from ..pointwise.sft import sft


@method("mpo", paper="2411.10442", tags=("likelihood_collapse",))
def mpo(
    r: Responses,
    *,
    preference: Method = dpo(),
    quality: Method = bco(shift=False),
    generation: Method = sft(),
    w_p: NonNegative = 0.8,
    w_q: NonNegative = 0.2,
    w_g: NonNegative = 1.0,
) -> Loss:
    """Mixed preference optimisation (eq. 1): w_p L_preference + w_q L_quality + w_g L_generation.

    Any three methods that read the same data: which response is better, how good each is by itself, and how to write
    the better one. A weight of 0 leaves its loss out. Rewards are those of the first that is left.
    """
    parts = {"preference": (w_p, preference), "quality": (w_q, quality), "generation": (w_g, generation)}
    parts = {k: (w, m) for k, (w, m) in parts.items() if w > 0}
    require(bool(parts), "w_p, w_q and w_g are all 0: nothing is left to train on")
    made = Loss()
    for key, (w, m) in parts.items():
        out = m(r)
        named = {f"{key}_{k}": w * t for k, t in out.terms.items()}
        made = made.replace(
            made.terms | named,
            rewards=out.rewards if made.rewards is None else made.rewards,
            metrics=made.metrics | {f"{key}/{k}": x for k, x in out.metrics.items()},
            health=made.health | {f"{key}/{k}": x for k, x in out.health.items()},
            updates=made.updates | out.updates,
            exports=made.exports | out.exports,
        )
    return made
