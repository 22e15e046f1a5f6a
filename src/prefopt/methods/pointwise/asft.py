from torch.nn.functional import logsigmoid

from ...objectives.hyper import NonNegative, Positive
from ...objectives.loss import Loss, over_pairs, over_responses
from ...objectives.method import method, require
from ...objectives.responses import Responses
from ...objectives.words import log_odds


@method("asft", paper="2409.10571", tags=("free", "likelihood_collapse"))
def asft(r: Responses, *, lam: NonNegative = 1.0, sft_weight: NonNegative = 1.0, tau: Positive = 1.0) -> Loss:
    """-sft_weight a_w - lam (log sigmoid(tau o_w) + log sigmoid(-tau o_l)), o = a - log(1 - exp(a)), a = log pi(y)/|y|.

    Every response is judged alone by the log-odds o of its geometric-mean token probability (2502.01237, section 2.4);
    with tau = 1 this is -log p_w - log(1 - p_l) beside the SFT term. Pairs, or unpaired rows with a label: then each
    term is a mean over the responses of its kind. sft_weight 0 is for a second stage after SFT.
    """
    require(lam + sft_weight > 0, "lam and sft_weight are both 0: nothing is left to learn")
    require(not r.given("length"), "its odds are those of a token: the average is a part of it")
    good, bad = r.sides()
    over = over_pairs if r.paired("label") else over_responses
    a_w, a_l = good.policy.mean(), bad.policy.mean()
    o_w, o_l = log_odds(a_w), log_odds(a_l)
    chosen, rejected, sft = -logsigmoid(tau * o_w), -logsigmoid(-tau * o_l), -a_w
    seen = {"align/chosen": chosen, "align/rejected": rejected, "sft": sft}
    return Loss(
        align_chosen=lam * over(chosen),
        align_rejected=lam * over(rejected),
        sft=sft_weight * over(sft),
        rewards=(o_w, o_l),
        metrics=seen | {"average_logps/chosen": a_w, "average_logps/rejected": a_l},
        health={"infinite_odds": (a_w >= 0).sum() + (a_l >= 0).sum()},
    )
