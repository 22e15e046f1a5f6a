"""What a run will cost, before it starts: the numbers of `--dry-run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..scoring.base import Needs
from .sampler import Drawn
from .task import Task

MEASURED = 4  # examples whose forward is counted


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes, work in FLOPs of the whole run on all devices (0: not counted)."""

    examples: int
    amount: int  # what a pass computes, in `unit`
    unit: str
    steps: int
    examples_per_step: int
    parameters: int
    trainable: int
    memory: int
    checkpoint: int
    flops: float = 0.0

    def lines(self) -> dict[str, str]:
        share = self.trainable / self.parameters
        return {
            "examples": f"{self.examples:,}",
            f"{self.unit} a pass" + (", prompts once" if self.unit == "tokens" else ""): f"{self.amount:,}",
            "optimiser steps": f"{self.steps:,} of {self.examples_per_step} examples",
            "trainable parameters": f"{self.trainable:,} of {self.parameters:,} ({share:.2%})",
            "memory, weights and optimiser": f"about {self.memory / 2**20:,.0f} MiB a device, activations not counted",
            "work": f"about {self.flops / 1e12:,.3f} TFLOP",
            "a checkpoint on disk": f"about {self.checkpoint / 2**20:,.0f} MiB",
        }


def estimate(task: Task, args: Any, examples_per_step: int, needs: Needs | None = None) -> Estimate:
    """`needs` of the method: count the work too, by a forward of a few examples."""
    n = len(task.train)
    per_epoch = -(-n // examples_per_step)
    steps = args.max_steps if args.max_steps > 0 else int(-(-per_epoch * args.num_train_epochs // 1))
    parameters = list(task.model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    beside = [p for network in task.networks.values() for p in network.parameters()]
    trainable = sum(p.numel() for p in (*parameters, *beside) if p.requires_grad)
    copied = task.record.get("reference", {}).get("kind") == "frozen"
    held = weights * (2 if copied else 1) + sum(p.numel() * p.element_size() for p in beside)
    moving = sum(m.bytes for m in task.moving.values())
    return Estimate(
        examples=n,
        amount=int(task.train.tokens.sum()),
        unit=task.unit,
        steps=steps,
        examples_per_step=examples_per_step,
        parameters=sum(p.numel() for p in (*parameters, *beside)),
        trainable=trainable,
        memory=held + trainable * 4 * 3,  # gradient and Adam's two moments in float32
        checkpoint=trainable * 4 * 3 + moving,
        flops=0.0 if needs is None else _work(task, args, steps * examples_per_step, needs),
    )


def _work(task: Task, args: Any, drawn: int, needs: Needs) -> float:
    """Backward costs twice the forward, once where most weights are frozen; the reference one forward an example."""
    costs = task.train.tokens
    middle = np.argsort(costs)[len(costs) // 2 : len(costs) // 2 + MEASURED]
    draws = Drawn(task.train, "extras:mismatched" in needs)
    batch = task.scorer.collate([draws.draw(int(i)) for i in middle])
    asked = {k: spec for k, spec in needs.items() if k.startswith("scores:") and spec.get("grad")}
    asked = dict(needs) if task.networks else asked  # the dearest turn, for all of them
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.scorer.score(task.model, batch.to(_device(task.model)), asked)
    forward = counter.get_total_flops() / costs[middle].sum() * costs.mean()
    frozen = sum(p.numel() for p in task.model.parameters() if not p.requires_grad)
    backward = 1 if frozen > 0.5 * sum(p.numel() for p in task.model.parameters()) else 2
    again = 1 if args.gradient_checkpointing else 0
    reference = 1 if "scores:reference" in needs else 0
    kept = task.record.get("reference", {}).get("kind") == "store"
    return forward * (drawn * (1 + backward + again) + reference * (min(drawn, len(costs)) if kept else drawn))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
