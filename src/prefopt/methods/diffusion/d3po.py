import torch

from ...objectives.hyper import Inside, Positive, Real, Share
from ...objectives.loss import Loss
from ...objectives.method import method, require
from ...objectives.responses import Responses
from ...objectives.steps import step_dpo


@method(
    "d3po",
    paper="2311.13231",
    beta="difference of the logs of two clipped ratios of densities, each a mean over elements",
    tags=("granularity.step", "online"),
)
def d3po(
    r: Responses,
    *,
    beta: Positive = 0.1,
    clip: Inside | None = 0.1,
    samples: int = 2,
    steps: int = 20,
    eta: Share = 1.0,
    guidance: Real = 5.0,
    timestep_fraction: Share = 1.0,
) -> Loss:
    """D3PO (eq. 14 with the official clip): the verdict on two final images is DPO's for every step that led to them.

    Per step: -log sigmoid(beta (log rho_w - log rho_l)), rho = clamp(p_policy/p_reference, 1 - clip, 1 + clip), where
    log p is the Gaussian density of a stochastic DDIM step, averaged over elements. Ties count log 2.
    samples: roll-outs of each prompt from one noise; every two of them are a pair. timestep_fraction: of the steps of a
    pair that are trained on. rollout.reward = people waits for marks by hand in every round.
    """
    require(samples >= 2, f"samples = {samples}: a pair needs at least two roll-outs of a prompt")
    r = r.generated(
        "trajectories", samples=samples, steps=steps, eta=eta, guidance=guidance, fraction=timestep_fraction
    )
    w, l = r.pairs()
    tied = r.note("tie", "P", lambda: torch.zeros_like(w.reference.length, dtype=torch.bool), dtype=bool)
    return step_dpo(w, l, beta, clip, tied)
