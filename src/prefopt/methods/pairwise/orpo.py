from typing import Literal

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, compare, over_tokens
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry, log_odds


@method("orpo", paper="2403.07691", beta="log odds ratio (the paper's lambda)", tags=("free",), surveyed=True)
def orpo(r: Responses, *, beta: Positive = 0.1, nll_scope: Literal["full", "completion"] = "full") -> Loss:
    """Odds Ratio Preference Optimization (eqs. 6-7): NLL - beta log sigmoid(log odds_w - log odds_l).

    Odds are of the mean-token probability. nll_scope: `full` also predicts the prompt (official code, TRL).
    """
    w, l = r.pairs()
    odds_ratio = log_odds(w.policy.mean()) - log_odds(l.policy.mean())
    nll = over_tokens(-w.policy)
    if nll_scope == "full":
        nll = nll + over_tokens(-r.extra("prompt").policy)
    rewards = (beta * w.policy.mean(), beta * l.policy.mean())
    return Loss(preference=beta * compare(odds_ratio, bradley_terry), nll=nll, rewards=rewards)
