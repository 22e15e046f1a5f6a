import torch
from torch import Tensor

from ...objectives.hyper import Annotators, Positive
from ...objectives.loss import Loss, Update, over_pairs
from ...objectives.method import Method, method, require
from ...objectives.responses import Responses
from ..pairwise.dpo import dpo


@method("grpo-robust", paper="2405.20304", tags=("heterogeneity",), surveyed=True)
def grpo_robust(
    r: Responses, *, base: Method = dpo(), annotators: Annotators = None, step_size: Positive = 0.01
) -> Loss:
    """Group robust preference optimisation (eq. 8): min over pi, max over a in the simplex, of sum_g a_g mean_g loss.

    Groups are those of the column annotator; `base` is any loss over pairs. After every step of the policy the weights
    take one of mirror ascent (algorithm 1): a_g <- a_g exp(step_size loss_g), normalised. A group's loss is its mean
    over the step; a group that is absent keeps its share. annotators: none takes as many as the data names.
    """
    groups = 2 if annotators is None else annotators
    require(groups >= 2, f"one group has no worst case: give pairs of several annotators, or train {base.name} alone")
    a = r.state("group_weights", lambda: torch.full((groups,), 1 / groups, dtype=torch.float64), of="annotator")
    who = r.note("annotator", "P", dtype=int, below=groups)
    out = base(r)
    loss, keep = out.per("pairs"), out.keep("pairs")
    member = torch.nn.functional.one_hot(who, groups).bool() & (True if keep is None else keep[:, None])

    def ascend(old: Tensor, total: Tensor, n: Tensor) -> Tensor:
        return torch.softmax(old.log() + step_size * total / n.clamp(min=1), 0)

    terms = {f"group_{g}": a[g].to(loss.dtype) * over_pairs(loss, member[:, g]) for g in range(groups)}
    counted = member.to(loss.dtype)
    moved = Update(loss.detach() @ counted, counted.sum(0), ascend)
    return out.replace(
        terms | out.others("pairs"),
        metrics=out.metrics | {"group_weight": a[who]},
        updates=out.updates | {"group_weights": moved},
    )
