"""A reference that follows the policy within one run (TR-DPO, 2404.09656): ref <- a theta + (1 - a) ref."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import PrefoptError
from .entry import core


@dataclass(frozen=True)
class Moving:
    """`reference` (a module of its own) takes a step of `alpha` towards the policy after every `every`-th optimiser step.

    alpha 1 is the paper's hard update; below 1 the soft one. What is mixed are weights, and of an adapter the weights
    that it makes of its base: a mixture of A's and B's would be another model. Raises PrefoptError where the policy
    trains something that the reference does not have.
    """

    reference: nn.Module
    alpha: float
    every: int

    @property
    def bytes(self) -> int:
        """What it takes in memory and in a checkpoint."""
        return sum(p.numel() * p.element_size() for p in self.reference.parameters())

    def after(self, step: int, policy: nn.Module) -> None:
        """`step`: optimiser steps made since the start of the run."""
        if step % self.every:
            return
        with torch.no_grad():
            places = dict(core(self.reference).named_parameters())
            for name, theta in trained(policy):
                self._mix(places[name], theta)

    def _mix(self, place: Tensor, theta: Tensor) -> None:
        theta = theta.to(place.device, place.dtype)
        place.copy_(theta) if self.alpha == 1 else place.lerp_(theta, self.alpha)

    def check(self, policy: nn.Module) -> Moving:
        """Itself, where policy and reference fit."""
        places = dict(core(self.reference).named_parameters())
        for name, theta in trained(policy):
            if name not in places or places[name].shape != theta.shape:
                raise PrefoptError(
                    f"the reference has no weight '{name}' {list(theta.shape)} that could follow the policy's: a moving "
                    "reference is of the policy's architecture"
                )
            if self.alpha < 1 and places[name].dtype.itemsize < 4:
                raise PrefoptError(
                    f"reference.mixup_alpha = {self.alpha:g}: the reference is {places[name].dtype}, in which small steps "
                    "round away; load float32 (model.dtype) and compute in half precision with train.bf16"
                )
        return self

    def state(self, policy: nn.Module) -> dict[str, Tensor]:
        """What of the reference moves, for a checkpoint."""
        places = dict(core(self.reference).named_parameters())
        with torch.no_grad():
            return {name: places[name] for name, _ in trained(policy)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        places = dict(core(self.reference).named_parameters())
        with torch.no_grad():
            for name, value in state.items():
                places[name].copy_(value)


def trained(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights that training moves, one at a time, under their names in the plain model; LoRA merged."""
    inner = core(policy)
    layers = {name: m for name, m in inner.named_modules() if hasattr(m, "get_delta_weight")}
    for name, layer in layers.items():
        if any(layer.use_dora.values()):
            raise PrefoptError("a moving reference cannot follow an adapter with model.adapter.use_dora")
        deltas = [layer.get_delta_weight(a) for a in layer.active_adapters if a in layer.lora_A]
        if deltas:
            yield f"{name}.weight", layer.base_layer.weight + sum(deltas)
    for name, p in inner.named_parameters():
        if p.requires_grad and not any(name.startswith(f"{layer}.lora_") for layer in layers):
            yield name.replace(".base_layer.", "."), p
