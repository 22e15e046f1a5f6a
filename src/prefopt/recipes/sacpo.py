"""SACPO (2404.11049): first helpful, then safe, the second step measured from the end of the first."""

from __future__ import annotations

from ..methods.pairwise.dpo import dpo
from ..objectives.method import Method, require
from .stages import text_only
from .steps import Steps, recipe


@recipe(
    "sacpo", "2404.11049", ("pairs by helpfulness", "method.safety_data: pairs by safety"),
    tags=("safety", "multi_objective"), surveyed=True,
)  # fmt: skip
def sacpo(
    steps: Steps,
    *,
    base: Method = dpo(),
    safety: Method = dpo(),
    safety_data: str | None = None,
    safety_first: bool = False,
) -> str:
    """SACPO: -log sigmoid(beta (h_w - h_l)) on helpfulness (data.path), then on safety (safety_data) from there, with the
    first result as pi_ref; so the optimum is pi_ref exp(reward/beta - cost/beta').

    base, safety: the methods of the two steps, each with its own beta: their ratio is the weight of safety. safety_first:
    the other order. The steps are in helpful/ and safe/.
    """
    text_only(steps)
    require(safety_data is not None, "method.safety_data: give the pairs ordered by safety")
    require(
        steps.config.reference.kind != "adapter_off",
        "reference.kind = adapter_off: in the second step the adapter is part of the reference; take auto",
    )
    data = {"path": safety_data, "eval_path": None}
    stages = [("helpful", base, None), ("safe", safety, data)]
    model = steps.config.model.path
    for name, method, read in reversed(stages) if safety_first else stages:
        model = steps.train(name, method, model=model, data=read, reference=model)
    return model
