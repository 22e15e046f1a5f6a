from typing import Literal

from torch import Tensor

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, compare
from ...objectives.method import method, require
from ...objectives.responses import Responses
from ...objectives.words import comparison, squared


@method("diffusion-dpo", paper="2311.12908", beta="mean squared error over elements, times half_factor")
def diffusion_dpo(
    r: Responses,
    *,
    beta: Positive = 5000.0,
    half_factor: Positive = 0.5,
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
    beta_schedule: Literal["constant", "(1-s)^2"] = "constant",
) -> Loss:
    """Diffusion-DPO (eq. 14): the log-ratio is how much less denoising error the policy makes than the reference.

    half_factor 0.5 is the official code's; 1.0 is that of diffusers' script. hinge and ipo, (margin - 1/(2 beta))^2, are
    taken without it. beta_schedule (1-s)^2, of flow models: their error is that of the noise over (1-s)^2, which this
    undoes.
    """
    w, l = r.pairs()
    error_w, error_l = -w.log_ratio.mean(), -l.log_ratio.mean()  # E_pol - E_ref: both may rise while the margin grows
    seen = {"errors/chosen": error_w.detach(), "errors/rejected": error_l.detach()}
    if loss_type == "ipo":
        require(beta_schedule == "constant", "beta_schedule has no meaning for ipo, whose beta is the target's")
        preference = compare(error_l - error_w, squared(1 / (2 * beta)))
        return Loss(preference=preference, rewards=(-beta * error_w, -beta * error_l), metrics=seen)
    h: Tensor | float = beta * (half_factor if loss_type == "sigmoid" else 1.0)
    if beta_schedule == "(1-s)^2":
        h = h * w.note("flow_signal", "R").square()
    preference = compare(h * (error_l - error_w), comparison(loss_type))
    return Loss(preference=preference, rewards=(-h * error_w, -h * error_l), metrics=seen)
