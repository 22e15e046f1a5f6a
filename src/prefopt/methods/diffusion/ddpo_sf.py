from ...objectives.hyper import Real, Share
from ...objectives.loss import Loss, over_responses
from ...objectives.method import method, require
from ...objectives.responses import Responses


@method("ddpo-sf", paper="2305.13301", tags=("pointwise", "granularity.step", "online", "free"))
def ddpo_sf(
    r: Responses,
    *,
    samples: int = 2,
    steps: int = 20,
    eta: Share = 1.0,
    guidance: Real = 5.0,
    timestep_fraction: Share = 1.0,
) -> Loss:
    """DDPO with the score-function estimator: the policy gradient of the reward itself on a sampler's own steps.

    -A log p(x_t' | x_t), a mean over steps; A is the reward less the mean of the prompt's roll-outs, in units of its
    deviation over the round. The baseline of methods that are told only which of two pictures is better.
    """
    require(samples >= 2, f"samples = {samples}: a mean over one roll-out leaves no advantage")
    r = r.generated(
        "trajectories", samples=samples, steps=steps, eta=eta, guidance=guidance, fraction=timestep_fraction
    )
    return Loss(policy=over_responses(-r.note("advantage", "R") * r.policy.mean()))
