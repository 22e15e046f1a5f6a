from ...objectives.hyper import Fraction, Positive
from ...objectives.loss import Loss
from ...objectives.method import method
from ...objectives.responses import Responses
from .diffusion_dpo import diffusion_dpo


@method("ppd", paper="2501.06655", beta="mean squared error over elements, times half_factor", tags=("heterogeneity",))
def ppd(
    r: Responses,
    *,
    beta: Positive = 5000.0,
    half_factor: Positive = 0.5,
    user_dropout: Fraction = 0.1,
    lam: Positive = 1.0,
) -> Loss:
    """PPD: Diffusion-DPO under the embedding u of the user who chose, through attention of its own beside the text's.

    Z = attention(Q, K, V) + lam attention(Q, u W_k', u W_v'); only W_k' and W_v' are trained, and the reference is the
    same network without a user. One network so holds the tastes of many, also of those who would cancel each other.
    With probability user_dropout a pair is learnt without its user. The default beta is that of Diffusion-DPO's code.
    """
    return diffusion_dpo.fn(r.conditioned("user", dropout=user_dropout, lam=lam), beta=beta, half_factor=half_factor)
