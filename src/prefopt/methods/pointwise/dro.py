from ...objectives.hyper import Positive
from ...objectives.loss import Loss, over_responses
from ...objectives.method import method
from ...objectives.responses import Responses


@method("dro", paper="2405.19107", beta="sum of log-ratios (the paper's tau)", tags=("pointwise",), surveyed=True)
def dro(r: Responses, *, beta: Positive = 1.0) -> Loss:
    """Direct reward optimisation (eq. 6): 1/2 (score - V(x) - beta h)^2 of every response, no pairs.

    V(x) is its own minimiser, the mean of score - beta h over the prompt's responses in the data, instead of the paper's
    second network: it needs at least two scored responses a prompt (health: alone, prompts that teach nothing).
    """
    score = r.note("score", "R")
    reward = beta * r.log_ratio.sum()
    rest = score - reward
    same = r.same_group().to(rest.dtype)
    value = same @ rest / same.sum(-1)
    alone = (same.sum(-1) == 1).sum()
    loss = over_responses((rest - value).square() / 2)
    return Loss(residual=loss, rewards=reward, metrics={"value": value.detach()}, health={"alone": alone})
