from ...objectives.hyper import Positive
from ...objectives.loss import Loss, prefer
from ...objectives.method import method
from ...objectives.responses import Responses


@method("ln-dpo", paper="2407.15229", beta="mean log-ratio per token", tags=("length_bias",), surveyed=True)
def ln_dpo(r: Responses, *, beta: Positive = 2.0) -> Loss:
    """-log sigmoid(beta (R_w / n_w - R_l / n_l)): each log-ratio is divided by its own response's tokens.

    R(y) = log pi(y)/pi_ref(y) over n(y) tokens, the end token among them. SimPO's normalisation with the reference
    kept. beta is 20 to 30 times DPO's: about DPO's beta times the mean length.
    """
    w, l = r.pairs()
    return prefer(beta * w.log_ratio.mean(), beta * l.log_ratio.mean())
