from typing import Literal

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, prefer
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import comparison


@method("diffusion-dpo", paper="2311.12908", beta="mean squared error over elements, times half_factor")
def diffusion_dpo(
    r: Responses,
    *,
    beta: Positive = 5000.0,
    half_factor: Positive = 0.5,
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid",
) -> Loss:
    """Diffusion-DPO (eq. 14): the log-ratio is how much less denoising error the policy makes than the reference.

    half_factor 0.5 is the official code's; 1.0 is that of diffusers' script. hinge is taken without it.
    """
    w, l = r.pairs()
    h = beta * (half_factor if loss_type == "sigmoid" else 1.0)
    return prefer(h * w.log_ratio.mean(), h * l.log_ratio.mean(), comparison(loss_type))
