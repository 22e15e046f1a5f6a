from typing import Literal

import torch

from ...objectives.hyper import NonNegative, Positive, Smoothing
from ...objectives.loss import Loss, compare, over_tokens
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import comparison, squared


@method("triple-tpo", paper="2405.16681", beta="sum (tpo-l, ipo: mean) of log-probabilities", tags=("listwise", "free"))
def triple_tpo(
    r: Responses,
    *,
    beta: Positive = 0.01,
    alpha: NonNegative = 1.0,
    gamma: NonNegative = 0.0,
    label_smoothing: Smoothing = 0.0,
    loss_type: Literal["sigmoid", "tpo-l", "hinge", "ipo"] = "sigmoid",
) -> Loss:
    """Triple Preference Optimization: imitate the gold response, contrast the second best with a bad one.

    -log sigmoid(beta (S_w - S_l)) - alpha mean_t log pi(y_gold,t), no reference model; S is the log-probability, with
    tpo-l and ipo its mean over tokens. The gold term is one mean over all gold tokens of the step, the contrast a sum
    over a response's tokens: hence the small beta. alpha 0 asks for no gold.
    gamma: the margin of tpo-l, not multiplied by beta (official 0.5 to 10). With beta 0.01 a mean log-probability moves
    the logit by less than 0.1, so that gamma hardly matters there.
    """
    w, l = r.pairs()
    S_w, S_l = (y.policy.mean() if loss_type in ("tpo-l", "ipo") else y.policy.sum() for y in (w, l))
    d = S_w - S_l
    if loss_type == "ipo":
        preference = compare(d, squared(1 / (2 * beta)))
    elif loss_type == "tpo-l":
        preference = compare(beta * d - gamma, comparison("sigmoid", label_smoothing))
    else:
        preference = compare(beta * d, comparison(loss_type, label_smoothing))
    rewards = (beta * S_w, beta * S_l)
    if not alpha:
        return Loss(preference=preference, rewards=rewards, metrics={"nll": torch.zeros(())})
    nll = over_tokens(-r.extra("gold").policy)
    return Loss(preference=preference, nll=alpha * nll, rewards=rewards, metrics={"nll": nll})
