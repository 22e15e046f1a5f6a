"""What the `reference` section says about a reference that moves, for every modality."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ...config import ReferenceConfig, RunConfig
from ...errors import PrefoptError
from ...scoring.moving import Moving

if TYPE_CHECKING:
    from ..average import Average

FIXED = {
    "store": "it holds log-probabilities of one model",
    "adapter_off": "the policy without its adapter never changes",
}


def kind_of_reference(config: ReferenceConfig) -> str:
    """`reference.kind`, with auto settled where the reference moves. PrefoptError for kinds that cannot."""
    if not config.moves:
        return config.kind
    if config.kind in FIXED:
        key = "mixup_alpha" if config.mixup_alpha is not None else "sync_steps"
        raise PrefoptError(
            f"reference.kind = {config.kind} cannot move, as reference.{key} wants: {FIXED[config.kind]}; take frozen, or auto"
        )
    return "frozen"


def following(config: ReferenceConfig, reference: nn.Module | None, policy: nn.Module) -> dict[str, Moving]:
    """The rule by which `reference` follows `policy`, as a task's `moving`; none where it stays, or there is none."""
    if reference is None or not config.moves:
        return {}
    return {"reference": Moving(reference, config.mixup_alpha or 1.0, config.sync_steps or 1).check(policy)}


def averaged(config: RunConfig, policy: nn.Module) -> dict[str, Average]:
    """The running mean of the policy, as a task's `moving`; none where the last weights are saved."""
    decay = config.denoising.ema_decay
    if decay is None:
        return {}
    from ..average import Average

    return {"mean": Average(policy, decay)}
