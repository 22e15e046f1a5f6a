import math

from prefopt.objectives.hyper import Inside, Positive, Real
from prefopt.objectives.loss import Loss, compare, over_pairs
from prefopt.objectives.method import method
from prefopt.objectives.responses import Responses
from prefopt.objectives.words import bradley_terry


@method(
    "d3po-sum",
    paper="2311.13231",
    beta="difference of the logs of two clipped ratios of densities",
    tags=("granularity.step", "online"),
)
def d3po_sum(r: Responses, *, beta: Positive = 0.1, clip: Inside = 0.1, steps: int = 20, guidance: Real = 5.0) -> Loss:
    """An ablation of D3PO, made for its reproduction alone: log p is summed over the elements of a step, not averaged.

    Of two roll-outs, whose verdict is never a tie.
    """
    r = r.generated("trajectories", samples=2, steps=steps, eta=1.0, guidance=guidance, fraction=1.0)
    free = [x.log_ratio.sum() for x in r.pairs()]
    w, l = (x.clamp(math.log1p(-clip), math.log1p(clip)) for x in free)
    clipped = ((free[0] != w).to(w.dtype) + (free[1] != l).to(l.dtype)) / 2
    return Loss(
        preference=compare(beta * (w - l), bradley_terry),
        rewards=(beta * w, beta * l),
        metrics={"clipped": over_pairs(clipped)},
    )
