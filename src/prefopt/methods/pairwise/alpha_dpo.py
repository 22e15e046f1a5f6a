from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, prefer
from ...objectives.method import method, require
from ...objectives.responses import Responses
from ...objectives.scores import ROUNDING


@method("alpha-dpo", paper="2410.10148", beta="mean log-probability", tags=("distinguishability", "length_bias"))
def alpha_dpo(
    r: Responses, *, beta: Positive = 2.5, gamma_beta_ratio: NonNegative = 0.1, alpha: NonNegative = 0.01
) -> Loss:
    """-log sigmoid(beta/|y_w| log pi(y_w) - beta/|y_l| log pi(y_l) - gamma - alpha z), SimPO with a margin of its own a pair.

    z, without gradient: the gap M = mean log-ratio of the chosen - that of the rejected response, less its mean over
    its deviation, both over the whole optimiser step. gamma_beta_ratio: gamma divided by beta. Costs a second forward.
    """
    require(not r.given("link"), "its log-ratio only sets the margin, which is no reward to link")
    w, l = r.pairs()
    M = (w.log_ratio.mean() - l.log_ratio.mean()).detach()
    mean = r.step_mean("gap", M)
    deviation = (r.step_mean("square", M.square()) - mean.square()).clamp(min=ROUNDING[M.dtype] ** 2).sqrt()
    z = (M - mean) / deviation
    margin = beta * gamma_beta_ratio + alpha * z
    return prefer(beta * w.policy.mean(), beta * l.policy.mean(), margin=margin, metrics={"target_margin": margin})
