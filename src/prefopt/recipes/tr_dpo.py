"""TR-DPO (2404.09656): DPO whose reference follows the policy."""

from __future__ import annotations

from ..methods.pairwise.dpo import dpo
from ..objectives.hyper import Fraction
from ..objectives.method import Method, require
from .steps import Steps, recipe


@recipe("tr-dpo", "2404.09656", ("pairs",), tags=("dynamic",), surveyed=True)
def tr_dpo(steps: Steps, *, base: Method = dpo(), alpha: Fraction = 0.6, tau: int = 1) -> str:
    """TR-DPO: -log sigmoid(beta (h_w - h_l)), h = log pi(y)/pi_ref(y), and pi_ref <- alpha pi + (1 - alpha) pi_ref (weights)
    after every tau-th optimiser step.

    alpha 1 is the hard update (the paper: tau 256 to 1024), below it the soft one (alpha 0.5 to 0.6, tau 1).
    base: any method with a reference. The same as `base` with reference.mixup_alpha and reference.sync_steps, which any
    run may have; the run is in run/.
    """
    require(alpha > 0, "method.alpha = 0: the reference would stay; train the base method")
    require(tau >= 1, f"method.tau = {tau}: must be at least 1")
    measured = {"scores:reference", "scores:token_kl"} & set(base.needs())
    require(bool(measured), f"method.base = {base.name}: it uses no reference model, so there is none to move")
    require(
        not steps.config.reference.moves,
        "reference.mixup_alpha and reference.sync_steps are method.alpha and method.tau here: set those",
    )
    return steps.train("run", base, reference={"mixup_alpha": alpha, "sync_steps": tau})
