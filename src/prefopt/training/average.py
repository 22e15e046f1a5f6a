"""The running mean of what is trained, saved instead of the last weights (diffusers' EMAModel)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class Average:
    """mean <- d mean + (1 - d) weights after every optimiser step, d = min(decay, (1 + n)/(10 + n)) in step n.

    Of an adapter its own matrices are averaged, so that the mean is an adapter again. It stands beside what else follows
    the policy (`scoring/moving.py`): in checkpoints, and restored from them.
    """

    def __init__(self, policy: nn.Module, decay: float):
        self.mean = EMAModel(_trained(policy), decay=decay)

    def after(self, step: int, policy: nn.Module) -> None:
        weights = _trained(policy)
        if weights[0].device != self.mean.shadow_params[0].device:
            self.mean.to(weights[0].device)
        self.mean.step(weights)

    def state(self, policy: nn.Module) -> dict[str, Tensor]:
        kept = {f"mean.{i}": x for i, x in enumerate(self.mean.shadow_params)}
        return kept | {"steps": torch.tensor(self.mean.optimization_step)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.mean.optimization_step = int(state["steps"])
        for i, place in enumerate(self.mean.shadow_params):
            place.copy_(state[f"mean.{i}"])

    def into(self, policy: nn.Module) -> None:
        """The mean in the place of the policy's weights."""
        self.mean.copy_to(_trained(policy))

    @property
    def bytes(self) -> int:
        """What it takes in memory and in a checkpoint."""
        return sum(x.numel() * x.element_size() for x in self.mean.shadow_params)


def _trained(policy: nn.Module) -> list[nn.Parameter]:
    return [p for p in policy.parameters() if p.requires_grad]
