import torch
from torch import Tensor

from ...objectives.hyper import NonNegative
from ...objectives.loss import Loss, Update, over_pairs
from ...objectives.method import Method, method, require
from ...objectives.responses import Responses
from ..pairwise.dpo import dpo


@method("grpo-robust", paper="2405.20304", tags=("heterogeneity",), surveyed=True)
def grpo_robust(r: Responses, *, base: Method = dpo(), groups: int = 2, step_size: NonNegative = 0.01) -> Loss:
    """Group robust preference optimisation (eq. 8): min over pi, max over a in the simplex, of sum_g a_g mean_g loss.

    Groups are those of the column annotator; `base` is any loss over pairs. After every step of the policy the weights
    take one of mirror ascent (algorithm 1): a_g <- a_g exp(step_size loss_g), normalised. A group's loss is its mean
    over the step; a group that is absent keeps its share.
    """
    require(groups >= 2, f"groups = {groups}: at least 2, with one this is {base.name}")
    a = r.state("group_weights", lambda: torch.full((groups,), 1 / groups, dtype=torch.float64))
    who = r.note("annotator", "P", dtype=int, below=groups)
    out = base(r)
    loss = out.per("pairs")
    member = torch.nn.functional.one_hot(who, groups).to(loss.dtype)

    def ascend(old: Tensor, total: Tensor, n: Tensor) -> Tensor:
        return torch.softmax(old.log() + step_size * total / n.clamp(min=1), 0)

    terms = {f"group_{g}": a[g].to(loss.dtype) * over_pairs(loss, who == g) for g in range(groups)}
    moved = Update(loss.detach() @ member, member.sum(0), ascend)
    shares = {f"group_weights/{g}": a[g] for g in range(groups)}
    return out.replace(
        terms | out.others("pairs"), metrics=out.metrics | shares, updates={**out.updates, "group_weights": moved}
    )
