from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss
from ...objectives.method import method, require
from ...objectives.responses import Responses
from .diffusion_dpo import diffusion_dpo


@method("inpo", paper="2503.18454", beta="mean squared error over elements, times half_factor")
def inpo(
    r: Responses,
    *,
    beta: Positive = 2000.0,
    half_factor: Positive = 0.5,
    inversion_steps: int = 10,
    inversion_eta: NonNegative = 0.1,
    invert_exactly_to_tau: bool = False,
) -> Loss:
    """DDIM-InPO: Diffusion-DPO's loss at the latents that the policy itself would make each image from.

    x is found by DDIM inversion of z_0 with inversion_steps (n) on the whole grid, inversion_eta of stochastic DDIM's
    noise added after each; the goal is the noise y = (x - sqrt(abar) z_0) / sqrt(1 - abar) that it implies at tau.
    invert_exactly_to_tau: the last step leads to tau, not to the grid's next level as in the official code.
    """
    require(inversion_steps >= 1, f"inversion_steps = {inversion_steps}: must be at least 1")
    r = r.noised("ddim_inversion", steps=inversion_steps, eta=inversion_eta, exact_tau=invert_exactly_to_tau)
    return diffusion_dpo.fn(r, beta=beta, half_factor=half_factor)
