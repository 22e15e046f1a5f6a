import dataclasses

import torch

from ...objectives.hyper import NonNegative
from ...objectives.loss import Loss, compare
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry, soft


@method("clip-preference", paper="2406.04314", tags=("free",))
def clip_preference(
    r: Responses, *, step_aware: bool = False, guidance: NonNegative = 5.0, per_prompt: bool = True
) -> Loss:
    """Bradley-Terry preference model with ties, l = q softplus(s_l - s_w) + (1 - q) softplus(s_w - s_l) + [q = 1/2] log 1/2.

    Averaged with weights 1/N (per_prompt: N pairs have the prompt): sum l/N / sum 1/N. step_aware: pictures are noised at
    a random time, shared by a pair, and judged by what a frozen pipeline (`sources.base`, with guidance) predicts of them.
    """
    if step_aware:
        r = r.noised("predicted", guidance=guidance)
    w, l = r.pairs()
    s_w, s_l = w.score("reward", grad=True).sum(), l.score("reward", grad=True).sum()
    q = r.note("label_probability", "P", default=lambda: torch.ones_like(s_w.detach()), within=(0, 1)).to(s_w)
    weight = (
        1 / r.note("prompt_pairs", "P", within=(1, float("inf"))).double()
        if per_prompt
        else torch.ones_like(q).double()
    )
    tie = torch.where(q == 0.5, q.log(), 0.0)
    term = compare(s_w - s_l, lambda u: soft(bradley_terry, q)(u) + tie) * weight.to(s_w)
    return Loss(preference=dataclasses.replace(term, count=weight.sum()), rewards=(s_w, s_l))
