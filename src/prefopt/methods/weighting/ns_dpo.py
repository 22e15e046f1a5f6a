from ...objectives.hyper import Share
from ...objectives.loss import Loss
from ...objectives.method import Method, method
from ...objectives.responses import Responses
from ..pairwise.dpo import dpo

FOREVER = float("inf")


@method("ns-dpo", paper="2407.18676", beta="as in the base method", tags=("distribution_shift",))
def ns_dpo(r: Responses, *, base: Method = dpo(), gamma: Share = 0.95) -> Loss:
    """Non-stationary DPO (eq. 8): gamma^age * L, L any pairwise loss; preferences drift, and old pairs count less.

    age is a column of the data: how long before now a pair was labelled, in units of the user's choice. gamma = 1 is
    the base itself.
    """
    out = base(r)
    weight = gamma ** r.note("age", "P", within=(0, FOREVER)).to(out.per("pairs"))
    return out.weighted(weight).replace(metrics=out.metrics | {"weights": weight})
