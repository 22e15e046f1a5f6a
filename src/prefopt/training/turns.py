"""Networks that are trained beside the policy, each in optimiser steps of its own: whose turn a step is.

A round is `steps` updates of each network, in the order in which the method asks for them, then one of the policy. Each
is an optimiser step of the one trainer like any other: it draws its own batch, is accumulated, summed over processes and
clipped by itself, counts in `max_steps`, moves the one learning-rate schedule on, and may be followed by a checkpoint. So
the number of a step tells whose turn it is, and a run goes on in the middle of a round as anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import PrefoptError


@dataclass(frozen=True)
class Turns:
    """Updates of each network in a round; the policy's one update, "", comes last."""

    steps: Mapping[str, int]

    @classmethod
    def of(cls, needs: Mapping[str, Mapping[str, Any]]) -> Turns:
        """Read from what a method asks (`Method.needs()`)."""
        return cls({key.removeprefix("turns:"): spec["steps"] for key, spec in needs.items() if "turns:" in key})

    @property
    def round(self) -> int:
        """Optimiser steps from one update of the policy to the next."""
        return sum(self.steps.values()) + 1

    def at(self, step: int) -> str:
        """Whose turn optimiser step `step` (from 0 on) is."""
        place = step % self.round
        for name, steps in self.steps.items():
            if place < steps:
                return name
            place -= steps
        return ""


def groups(networks: nn.ModuleDict, needs: Mapping[str, Mapping[str, Any]], args: Any) -> Iterator[dict[str, Any]]:
    """A group of the optimiser for each network."""
    for name, network in networks.items():
        spec = needs[f"turns:{name}"]
        group: dict[str, Any] = {"params": list(network.parameters()), "weight_decay": args.weight_decay}
        if spec.get("rate", 1.0) != 1:
            group["lr"] = args.learning_rate * spec["rate"]
        if spec.get("betas"):
            group["betas"] = tuple(spec["betas"])
        yield group


def refuse_shared(networks: Mapping[str, nn.Module], policy: nn.Module) -> None:
    """PrefoptError where a weight belongs to two: the turn of one would move the other."""
    owners: dict[int, str] = {id(p): "the policy" for p in policy.parameters()}
    for name, network in networks.items():
        for p in network.parameters():
            if (other := owners.setdefault(id(p), name)) != name:
                raise PrefoptError(f"the networks '{name}' and {other} share weights: each must have its own")


def act(networks: nn.ModuleDict, turn: str) -> None:
    """Only the network whose turn it is collects gradients."""
    for name, network in networks.items():
        network.requires_grad_(name == turn)
