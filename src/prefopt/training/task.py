"""What a modality hands to the one trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor, nn

from ..scoring.base import Scorer

if TYPE_CHECKING:
    from .rounds import Rounds


class Examples(Protocol):
    """Prepared training data."""

    @property
    def tokens(self) -> np.ndarray:
        """[n] the cost of each example (text: tokens of its tree; images: responses)."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


class Follower(Protocol):
    """What changes with the policy, after each optimiser step, and is in checkpoints (`scoring/moving.py`)."""

    @property
    def bytes(self) -> int: ...
    def after(self, step: int, policy: nn.Module) -> None: ...
    def state(self, policy: nn.Module) -> Mapping[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class Task:
    """A model to train, data to train it on, the scorer between them, and how to save the result."""

    model: nn.Module
    train: Examples
    eval: Examples | None
    scorer: Scorer
    # a final folder in the plain library's format: (model, folder, whole weights if the model is sharded)
    save: Callable[[nn.Module, Path, dict[str, Any] | None], None]
    record: dict[str, Any] = field(default_factory=dict)  # counts, drops, fingerprints, identity of the reference
    rounds: Rounds | None = None  # `train`, where the policy makes it while it trains
    unit: str = "tokens"  # what `Examples.tokens` counts
    processing_class: Any = None  # tokenizer, written beside checkpoints
    # long work before the first step, for the examples that it will see: (indices of `train`) -> None
    prepare: Callable[[np.ndarray], None] = lambda seen: None
    # what follows the policy: "reference", "teacher", "mean"
    moving: Mapping[str, Follower] = field(default_factory=dict)
    networks: dict[str, nn.Module] = field(default_factory=dict)  # trained beside the model, each in turns of its own
    # token ids that the model as it is now says to the prompts of examples, each: (examples, number, most tokens, seed)
    answer: Callable[[Sequence[Any], int, int, int], list[list[list[int]]]] | None = None
