from typing import Literal

import torch
from torch import Tensor

from ...objectives.hyper import BelowOne, Fraction, NonNegative, Positive
from ...objectives.loss import Loss, over_responses
from ...objectives.method import method, require
from ...objectives.responses import Responses


@method("diff-instruct-star", paper="2410.20898", tags=("online", "pointwise", "divergence.diversity"))
def diff_instruct_star(
    r: Responses,
    *,
    alpha_rew: NonNegative = 100.0,
    alpha_cfg: NonNegative = 7.5,
    cfg: Literal["inner", "outer", "none"] = "inner",
    distance: Literal["huber", "l2", "kl"] = "huber",
    c: Positive = 0.05,
    weight: Literal["sigma2", "normalised"] = "sigma2",
    stop_grad_y: bool = False,
    assistant_steps: int = 3,
    assistant_rate: Positive = 5.0,
    assistant_betas: tuple[float, ...] | None = None,
    t_low: Fraction = 0.02,
    t_high: Fraction = 0.98,
    generator_time: int | None = None,
    ema: BelowOne = 0.0,
) -> Loss:
    """Diff-Instruct*: min -alpha_rew r(x_0, c) - w(t) d'(y)^T (s_psi(x_t) - grad log p(x_t | x_0)), y = s_psi - s_ref.

    x_0 = g(z, c), x_t = alpha_t x_0 + sigma_t eps. The assistant s_psi learns the score of the fakes in assistant_steps
    (K_a) updates before each of g, at assistant_rate times its learning rate. alpha_rew 0: score matching alone, which
    makes a generator of the reference. cfg: s_ref guided inside y, or guidance as a reward of its own (alpha_cfg 0: none).
    distance: pseudo-Huber with c, squared L2, or that of Diff-Instruct++ ("kl": w y^T x_t). stop_grad_y: biased, to compare.
    weight: w = sigma_t^2, or sigma_t^4 / (alpha_t^2 mean|x_0 - f_ref|), of clean images. t_low, t_high: pi(t), uniform
    between these shares of all times. generator_time: where g is evaluated; none: at its scheduler's last time.
    ema: decay of g's mean per update; it is then what is saved.
    """
    betas_fit = assistant_betas is None or (len(assistant_betas) == 2 and all(0 <= b < 1 for b in assistant_betas))
    require(betas_fit, f"assistant_betas = {assistant_betas}: must be two numbers in [0, 1)")
    require(assistant_steps >= 1, f"assistant_steps = {assistant_steps}: must be at least 1")
    require(t_low < t_high, f"t_low = {t_low:g} must be below t_high = {t_high:g}")
    r = r.generated("one_step", at=generator_time, low=t_low, high=t_high, ema=ema)
    sigma = r.note("sigma", "R", within=(1e-4, 1.0))
    conditional = -r.note("noise", "R D") / sigma[:, None]  # grad log p(x_t | x_0), of the same eps that made x_t
    if r.turn("assistant", steps=assistant_steps, rate=assistant_rate, betas=assistant_betas):
        s_psi = r.feature("assistant_score", "R D", grad=True)
        error = sigma.square() * (s_psi - conditional).square().sum(1)  # lambda = sigma_t^2
        return Loss(assistant=over_responses(error), metrics={"assistant/error": error / s_psi.shape[1]})

    through_y = distance != "kl" and not stop_grad_y  # the gradient flows through x_t in both factors
    s_psi = r.feature("assistant_score", "R D", grad=distance != "kl")
    s_ref = r.feature("reference_score", "R D", grad=through_y)
    guidance = torch.zeros_like(s_ref)
    if guided := cfg != "none" and alpha_cfg > 0:
        guidance = alpha_cfg * (s_ref - r.feature("empty_score", "R D", grad=through_y and cfg == "inner"))
    s_star = s_ref + guidance if cfg == "inner" else s_ref
    y, w = s_psi - s_star, sigma.square()
    if weight == "normalised":
        alpha, x_0 = r.note("signal", "R", within=(1e-4, 1.0)), r.feature("clean", "R D")
        f_ref = (r.feature("noisy", "R D") + w[:, None] * s_star.detach()) / alpha[:, None]
        w = w.square() / (alpha.square() * (x_0 - f_ref).abs().mean(1).clamp(min=1e-5))
    direction = derivative(y.detach() if stop_grad_y else y, distance, c)
    pull = y.detach() * r.feature("noisy", "R D", grad=True) if distance == "kl" else -direction * (s_psi - conditional)
    loss = Loss(regulariser=over_responses(w * pull.sum(1)), metrics={"log_y": y.detach().norm(dim=1).add(1e-12).log()})
    if guided and cfg == "outer":
        x_t = r.feature("noisy", "R D", grad=True)
        loss.terms["guidance"] = over_responses(-w * (guidance.detach() * x_t).sum(1))
    if alpha_rew:
        reward = r.score("reward", grad=True).sum()
        loss.terms["reward"], loss.metrics["reward"] = over_responses(-alpha_rew * reward), reward.detach()
    return loss


def derivative(y: Tensor, distance: str, c: float) -> Tensor:
    """d'(y) [R, D]: of sqrt(||y||^2 + c^2) - c, or of ||y||^2; the norm is over all elements of a sample."""
    return 2 * y if distance == "l2" else y / torch.sqrt(y.square().sum(1, keepdim=True) + c * c)
