from typing import Literal

from ...objectives.hyper import Positive
from ...objectives.loss import Loss, compare, over_tokens
from ...objectives.method import method, require
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry, log_odds


@method("orpo", paper="2403.07691", beta="log odds ratio (the paper's lambda)", tags=("free",), surveyed=True)
def orpo(r: Responses, *, beta: Positive = 0.1, nll_scope: Literal["full", "completion"] = "full") -> Loss:
    """Odds Ratio Preference Optimization (eqs. 6-7): NLL - beta log sigmoid(log odds_w - log odds_l).

    Odds are of the mean-token probability. nll_scope: `full` also predicts the prompt (official code, TRL).
    """
    require(not r.given("length"), "its odds are those of a token: the average is a part of it")
    w, l = r.pairs()
    a_w, a_l = w.policy.mean(), l.policy.mean()
    odds_ratio = log_odds(a_w) - log_odds(a_l)
    nll = over_tokens(-w.policy)
    if nll_scope == "full":
        nll = nll + over_tokens(-r.extra("prompt").policy)
    certain = {"infinite_odds": (a_w >= 0).sum() + (a_l >= 0).sum()}
    preference = beta * compare(odds_ratio, bradley_terry)
    return Loss(preference=preference, nll=nll, rewards=(beta * a_w, beta * a_l), health=certain)
