"""What a run will cost, before it starts: the numbers of `--dry-run`. Formulas: docs/architecture.md, Cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .task import Task


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes, work in FLOPs of the whole run on all devices."""

    examples: int
    tokens: int
    steps: int
    examples_per_step: int
    parameters: int
    trainable: int
    memory: int
    flops: float
    checkpoint: int

    def lines(self) -> dict[str, str]:
        return {
            "examples": f"{self.examples:,}",
            "tokens a pass (prompts once)": f"{self.tokens:,}",
            "optimiser steps": f"{self.steps:,} of {self.examples_per_step} examples",
            "trainable parameters": f"{self.trainable:,} of {self.parameters:,} ({self.trainable / self.parameters:.2%})",
            "memory, weights and optimiser": f"about {self.memory / 2**20:,.0f} MiB a device, activations not counted",
            "work": f"about {self.flops / 1e12:,.3f} TFLOP",
            "a checkpoint on disk": f"about {self.checkpoint / 2**20:,.0f} MiB",
        }


def estimate(task: Task, args: Any, examples_per_step: int, reference_copy: bool) -> Estimate:
    """Forward 2N a token, backward 4N (2N where frozen weights need no gradient); embeddings do no work."""
    n = len(task.train)
    per_epoch = -(-n // examples_per_step)
    steps = args.max_steps if args.max_steps > 0 else int(-(-per_epoch * args.num_train_epochs // 1))
    tokens = int(task.train.tokens.sum())
    total, trainable, weights = _sizes(task.model)
    working = total - _embedding_size(task.model)
    passes = steps * examples_per_step / max(n, 1)
    backward = 4 if trainable > 0.5 * total else 2
    checkpointed = 2 if args.gradient_checkpointing else 0
    flops = (2 + backward + checkpointed) * working * tokens * passes
    flops += 2 * working * tokens if task.record.get("reference") else 0
    memory = weights + trainable * 4 * 3 + (weights if reference_copy else 0)
    checkpoint = trainable * 4 * 3
    return Estimate(n, tokens, steps, examples_per_step, total, trainable, memory, flops, checkpoint)


def _sizes(model: nn.Module) -> tuple[int, int, int]:
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return total, trainable, sum(p.numel() * p.element_size() for p in parameters)


def _embedding_size(model: nn.Module) -> int:
    network: Any = model
    table = network.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    head = network.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tied = head is not None and table is not None and head.weight is table.weight
    return 0 if table is None or tied else table.weight.numel()
