from typing import Annotated, Literal

from torch import Tensor

from ...objectives.hyper import Inside, Never, Positive
from ...objectives.links import NO_LINK, alpha_divergence, cap, forward_kl, jsd, reverse_kl
from ...objectives.loss import Loss, prefer
from ...objectives.method import method, require
from ...objectives.responses import Responses

Divergence = Annotated[Literal["reverse_kl", "forward_kl", "jsd", "alpha_divergence"], Never(NO_LINK)]


@method("f-dpo", paper="2309.16240", beta="f'(ratio) of the whole response", tags=("diversity",), surveyed=True)
def f_dpo(
    r: Responses, *, beta: Positive = 0.1, divergence: Divergence = "reverse_kl", alpha: Inside | None = None
) -> Loss:
    """-log sigmoid(beta (s_w - s_l)), s = f'(u), u = pi(y)/pi_ref(y): DPO under another penalty D_f(pi || pi_ref).

    reverse_kl: s = log u (DPO); forward_kl: -1/u; jsd: log(2u/(1 + u)); alpha_divergence: -u^-alpha / alpha, alpha in
    (0, 1), from reverse KL (0) to forward KL (1). TRL's alpha is 1 - alpha. Rewards are beta s; DPO's beta log u is
    logged beside them. Betas are not comparable across divergences: forward KL and a large alpha need smaller ones.
    """
    require(alpha is not None or divergence != "alpha_divergence", "alpha_divergence needs an alpha in (0, 1)")
    require(not r.given("link"), "its divergence is its link: set divergence, or put link on dpo")
    w, l = r.pairs()
    R_w, R_l = w.log_ratio.sum(), l.log_ratio.sum()

    def s(R: Tensor) -> Tensor:
        if divergence == "alpha_divergence":
            return alpha_divergence(R, alpha or 0.0)
        return {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "jsd": jsd}[divergence](R)

    power = {"forward_kl": 1.0, "alpha_divergence": alpha or 0.0}.get(divergence, 0.0)
    lost = {f"clamped_{side}": (-power * R > cap(R)).sum() for side, R in (("chosen", R_w), ("rejected", R_l))}
    both = {"log_ratio_rewards/chosen": beta * R_w, "log_ratio_rewards/rejected": beta * R_l}
    return prefer(beta * s(R_w), beta * s(R_l), metrics=both).replace(health=lost if power else {})
