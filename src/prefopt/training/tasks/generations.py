"""Ways in which an image model makes what it learns from, by the name that a method asks for (`Responses.generated`)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEYS_OF_REFERENCE = frozenset({"kind", "path", "mixup_alpha", "sync_steps"})
KEYS_OF_ROUNDS = frozenset({"rounds", "prompts_per_round", "batch_size", "reward"})


@dataclass(frozen=True)
class Generation:
    """One way: what prepares its training ("module:function"), and which keys of shared sections it reads."""

    task: str
    rollout: frozenset[str]
    reference: frozenset[str] = KEYS_OF_REFERENCE
    denoising: frozenset[str] = frozenset({"resolution", "ema_decay"})
    held_out: bool = False  # does it look at held-out prompts?

    def load(self) -> Any:
        """(configuration, method) -> Task."""
        module, _, name = self.task.partition(":")
        return getattr(importlib.import_module(f"{__package__}.{module}"), name)


GENERATIONS: Mapping[str, Generation] = {
    "one_step": Generation(
        "one_step:one_step_task",
        rollout=frozenset({"reward"}),
        reference=frozenset({"path"}),
        denoising=frozenset({"resolution"}),
        held_out=True,
    ),
    "trajectories": Generation("transitions:transition_task", KEYS_OF_ROUNDS),
    "pools": Generation("transitions:transition_task", KEYS_OF_ROUNDS),
}


def generation_of(needs: Mapping[str, Any]) -> Generation | None:
    """The way that a method asks for; None where it learns from the data's own responses."""
    return next((GENERATIONS[k.removeprefix("generation:")] for k in needs if k.startswith("generation:")), None)
