"""What the one trainer expects of a modality: a batch, and a scorer that answers a method's questions about it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..objectives.scores import Scores

Kind = TypeVar("Kind")

Needs = Mapping[str, Mapping[str, Any]]  # Method.needs(): "kind:name" -> how it is asked
Scored = Mapping[str, Mapping[str, Scores | Tensor]]
"""Row set ("responses", "prompt", ...) -> name -> scores; of the responses also features, which are plain tensors (zero
where nothing is scored)."""
PREDICTED = "predicted"
"""The way of noising that shows what a frozen pipeline predicts of a picture: preference models have it."""
Shapes = Mapping[str, tuple[str | int, ...]]
"""Feature -> its axes: "R" and "T" of the batch, else a size that the model tells."""


def asked_of(needs: Needs, grad: bool) -> dict[str, set[str]]:
    """Row set -> score names wanted of it, for the pass with gradient or for the one without."""

    def names(of: Mapping[str, Any]) -> set[str]:
        return {key.removeprefix("scores:") for key in of if key.startswith("scores:")}

    asked = {"responses": names(needs)} if grad else {}
    for key, spec in needs.items():
        if key.startswith("extras:") and bool(spec.get("grad")) == grad:
            asked[key.removeprefix("extras:")] = names(spec.get("asked", {"scores:policy": {}}))
    return {name: scores for name, scores in asked.items() if scores}


class Draw(NamedTuple):
    """One example as drawn by the sampler. `epoch` seeds whatever is random about it (noise, dropout).

    `partner` is another example of the data set, for methods that ask for mismatched completions (KTO): fixed by the
    seed, so that batching, accumulation and processes do not change it.
    """

    example: Any
    epoch: int = 0
    partner: Any = None


class Batch(Protocol):
    """A collated micro-batch. Its tensors are made on the CPU; `.to` is the only transfer to the device."""

    @property
    def notes(self) -> Mapping[str, Tensor]: ...
    @property
    def size(self) -> int:
        """What it costs: tokens without padding; for images, images."""
        ...

    @property
    def filler(self) -> bool:
        """Weightless: keeps processes in step where an epoch does not divide."""
        ...

    def to(self, device: torch.device | str) -> Batch: ...
    def counts(self) -> Mapping[str, Tensor]:
        """Row set -> count [R, T] of its scores, known before any forward."""
        ...


def moved(batch: Any, device: torch.device | str, stays: Collection[str] = ()) -> Any:
    """A batch (a dataclass) on the device: its tensors, those in its dictionaries, and the batches in it; the fields
    `stays` are left where they were made."""

    def there(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: there(y) for name, y in x.items()}
        if isinstance(x, Tensor):
            return x.to(device, non_blocking=True)
        return x.to(device) if hasattr(x, "to") else x

    return replace(batch, **{f.name: there(getattr(batch, f.name)) for f in fields(batch) if f.name not in stays})


def generator_of(seed: int, draw: Draw) -> torch.Generator:
    """The random numbers of one draw, on the CPU: the same whatever the batch, the process and the device."""
    return seeded(seed, draw.epoch, draw.example.index)


def seeded(*key: int) -> torch.Generator:
    """Random numbers, on the CPU, that depend on all of the key."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


class Scorer(Protocol):
    """Answers a method's questions about a batch."""

    def offers(self) -> set[str]:
        """Needs that it can meet: "scores:policy", "scores:reference", "features:hidden", "extras:prompt", ..."""
        ...

    def shapes(self, needs: Needs) -> Shapes:
        """Of the features that `needs` asks for: known without any forward."""
        ...

    @property
    def collate(self) -> Callable[[Sequence[Draw]], Any]:
        """Draws -> Batch. Deterministic given the draws: the same numbers whatever the batching and the process."""
        ...

    def score(self, model: nn.Module, batch: Any, needs: Needs, grad: bool = True) -> Scored:
        """Scores (and features) of every row set that `needs` asks for.

        grad=True: the extras and scores that carry gradient ("responses" among them). grad=False: only the extras
        asked without gradient (KTO's mismatched completions), for the pass over the whole step before the first
        backward.
        """
        ...


def only(kind: type[Kind], found: Mapping[str, Any]) -> dict[str, Kind]:
    """What is of one kind among the answers about a row set: its scores, or its features."""
    return {name: x for name, x in found.items() if isinstance(x, kind)}


def within(costs: Iterable[int], budget: int) -> list[list[int]]:
    """Indices of `costs` in consecutive batches of at most `budget` each; what costs more has one of its own."""
    batches: list[list[int]] = []
    room = 0
    for i, cost in enumerate(costs):
        if cost > room or not batches:
            batches.append([])
            room = budget
        batches[-1].append(i)
        room -= cost
    return batches
