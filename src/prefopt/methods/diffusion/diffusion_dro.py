from ...objectives.hyper import NonNegative, Real
from ...objectives.loss import Loss, over_responses
from ...objectives.method import method, require
from ...objectives.responses import Responses


@method("diffusion-dro", paper="2510.18353", tags=("pointwise", "online", "self_play"))
def diffusion_dro(
    r: Responses, *, margin: NonNegative = 0.001, steps: int = 20, refresh: int = 1, guidance: Real = 1.0
) -> Loss:
    """Diffusion-DRO: improve on the reference at expert images, and not at what the policy itself sees on its way.

    max(0, dE - dP + margin), d = mean squared error of the policy minus that of the reference: E at a noised expert
    image, P at a state of the policy's own sampling path, whose goal is what its snapshot predicted there. Both share
    caption and time. Experts are rows of a prompt and an image (data.top picks the best of many), or the better sides
    of pairs. steps, guidance (1: none) of the sampler; refresh: optimiser steps from one snapshot to the next.
    """
    require(steps >= 1, f"steps = {steps}: a path needs at least one")
    require(refresh >= 1, f"refresh = {refresh} must be at least 1")
    r = r.noised("own_path", steps=steps, refresh=refresh, guidance=guidance)
    d_e = -r.chosen().log_ratio.mean()
    d_p = -r.extra("own").log_ratio.mean()
    gap = d_e - d_p + margin
    active = (gap > 0).to(gap.dtype)
    return Loss(hinge=over_responses(gap.clamp(min=0)), metrics={"active": active, "expert": d_e, "own": d_p})
