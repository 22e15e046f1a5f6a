import torch
from torch import Tensor

from ...objectives.hyper import NonNegative, Positive, Real
from ...objectives.loss import Loss, Update, compare
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry


@method("c-dpo", paper="2403.02475", beta="sum of log-ratios", tags=("safety", "multi_objective"), surveyed=True)
def c_dpo(
    r: Responses, *, beta: Positive = 0.1, budget: Real = 0.0, lam_0: NonNegative = 1.0, step_size: NonNegative = 0.1
) -> Loss:
    """Constrained DPO: -log sigmoid(s beta (h_w - h_l)), s = sign(u_w - u_l), u = score - lam cost, lam by dual ascent.

    lam <- max(0, lam + step_size (J - budget)) once an optimiser step, J the policy's expected cost. The two responses of a
    pair stand for the reference's, so the policy's are had by weights: J = mean of softmax(h_w, h_l) . (cost_w, cost_l).
    score and cost are columns of the data; a pair of equal u is left out (health: equal).
    """
    w, l = r.pairs()
    score, cost = ([y.note(name, "R") for y in (w, l)] for name in ("score", "cost"))
    lam = r.state("lam", lambda: torch.tensor(lam_0, dtype=torch.float64))
    u = score[0] - score[1] - lam * (cost[0] - cost[1])
    h_w, h_l = w.log_ratio.sum(), l.log_ratio.sum()
    order = torch.sign(u).to(h_w.dtype)  # -1: the label is turned round
    share = torch.sigmoid(h_w - h_l).detach()
    J = share * cost[0] + (1 - share) * cost[1]

    def ascend(old: Tensor, total: Tensor, n: Tensor) -> Tensor:
        return (old + step_size * (total / n.clamp(min=1) - budget)).clamp(min=0)

    moved = Update(J.sum().to(lam), torch.tensor(float(len(J))).to(lam), ascend)
    return Loss(
        preference=compare(order * beta * (h_w - h_l), bradley_terry, keep=order != 0),
        rewards=(beta * h_w, beta * h_l),
        metrics={"lam": lam, "expected_cost": J, "turned": (order < 0).to(h_w.dtype)},
        health={"equal": (order == 0).sum()},
        updates={"lam": moved},
    )
