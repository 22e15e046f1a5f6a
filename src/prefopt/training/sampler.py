"""Which examples make an optimiser step, and how a step is dealt into micro-batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments

from ..errors import PrefoptError
from ..scoring.base import Batch, Draw
from .task import Examples


def data_seed(args: TrainingArguments) -> int:
    """By which data are drawn: train.data_seed, or else train.seed."""
    return args.seed if args.data_seed is None else args.data_seed


@dataclass(frozen=True)
class Slot:
    """A place in a micro-batch. `filler`: the example is there only to keep processes in step."""

    index: int
    epoch: int
    filler: bool = False


class StepSampler(Sampler[list[Slot]]):
    """Deals every optimiser step of `per_step` examples into `world * micro` micro-batches of this process's share.

    A step is cut, sorted by length, into slices of about equal cost: so little is padded, processes wait little for
    each other, and what a step contains does not depend on how it is computed. The last step of an epoch may be
    smaller; micro-batches that get nothing hold a filler of weight zero.
    """

    def __init__(
        self,
        costs: np.ndarray,
        per_step: int,
        micro: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        shuffle: bool = True,
    ):
        self.costs, self.per_step, self.micro, self.rank, self.world = costs, per_step, micro, rank, world
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.costs) // self.per_step) * self.micro

    def steps(self, epoch: int) -> Iterator[np.ndarray]:
        """The examples of every step of an epoch, the same on every process."""
        n = len(self.costs)
        order = np.random.default_rng((self.seed, epoch)).permutation(n) if self.shuffle else np.arange(n)
        yield from (order[i : i + self.per_step] for i in range(0, n, self.per_step))

    def __iter__(self) -> Iterator[list[Slot]]:
        for step in self.steps(self.epoch):
            share = deal(step, self.costs, self.world * self.micro)[self.rank :: self.world]
            for part in share:
                if len(part):
                    yield [Slot(int(i), self.epoch) for i in part]
                else:
                    yield [Slot(int(step[0]), self.epoch, filler=True)]


class Visit(StepSampler):
    """Some examples, once each and in order, dealt like steps of `per_step`."""

    def __init__(self, costs: np.ndarray, indices: np.ndarray, per_step: int, rank: int = 0, world: int = 1):
        super().__init__(costs, per_step, rank=rank, world=world, shuffle=False)
        self.indices = indices

    def __len__(self) -> int:
        return -(-len(self.indices) // self.per_step)

    def steps(self, epoch: int) -> Iterator[np.ndarray]:
        yield from (self.indices[i : i + self.per_step] for i in range(0, len(self.indices), self.per_step))


def deal(step: np.ndarray, costs: np.ndarray, parts: int) -> list[np.ndarray]:
    """`step` sorted by cost and cut into `parts` slices of about equal total cost (none empty if there are enough)."""
    order = step[np.argsort(costs[step], kind="stable")]
    if len(order) <= parts:
        return [order[i : i + 1] for i in range(parts)]
    ends = np.cumsum(costs[order])
    middle = (ends - costs[order] / 2) / ends[-1]
    cuts = np.searchsorted(middle, np.arange(1, parts) / parts)
    # at least one example a slice: few long ones may fill several; from below, sorted costs cannot (i + 1 of n weigh at
    # most (i + 1)/n of the total)
    return np.split(order, np.minimum(cuts, len(order) - parts + np.arange(1, parts)))


def micro_batches(costs: np.ndarray, per_step: int, budget: int, world: int, seed: int, epochs: int) -> int:
    """The fewest micro-batches a step for which no micro-batch of these epochs exceeds `budget` (cost of one example
    excepted)."""
    sampler = StepSampler(costs, per_step, seed=seed)
    steps = [s for epoch in range(epochs) for s in sampler.steps(epoch)]
    for micro in range(1, -(-per_step // world) + 1):
        heaviest = max(costs[p].sum() if len(p) > 1 else 0 for s in steps for p in deal(s, costs, world * micro))
        if heaviest <= budget:
            return micro
    return -(-per_step // world)


class Drawn(Dataset[tuple[Draw, bool]]):
    """A data set that answers slots, or plain numbers.

    Partners are fixed by the seed, not by the step: so mismatched completions are the same whatever the batching, and
    their reference log-probs can be stored like all others.
    """

    def __init__(self, examples: Examples, partners: bool = False, seed: int = 0):
        if partners and len(examples) < 2:
            raise PrefoptError(
                "this method compares each row with the completion of another row: the data has only "
                f"{len(examples)} usable row(s), at least 2 are needed"
            )
        self.examples, self.partner = examples, None
        if partners:
            order = np.random.default_rng((seed, 1)).permutation(len(examples))
            self.partner = np.empty_like(order)
            self.partner[order] = np.roll(order, -1)

    def __len__(self) -> int:
        return len(self.examples)

    def draw(self, index: int, epoch: int = 0) -> Draw:
        partner = None if self.partner is None else self.examples[int(self.partner[index])]
        return Draw(self.examples[index], epoch, partner)

    def __getitem__(self, slot: Slot) -> tuple[Draw, bool]:
        return self.draw(slot.index, slot.epoch), slot.filler

    def __getitems__(self, slots: Sequence[Slot]) -> list[tuple[Draw, bool]]:
        """A whole batch, examples and partners looked up together."""
        found = self._several([s.index for s in slots])
        partners = (
            [None] * len(slots) if self.partner is None else self._several(self.partner[[s.index for s in slots]])
        )
        return [(Draw(e, s.epoch, p), s.filler) for e, s, p in zip(found, slots, partners, strict=True)]

    def _several(self, indices: Sequence[int] | np.ndarray) -> list[Any]:
        if hasattr(self.examples, "__getitems__"):
            return self.examples.__getitems__(indices)
        return [self.examples[int(i)] for i in indices]


class Part:
    """Some of the draws of a data set: those that a run of a few steps will see."""

    def __init__(self, drawn: Drawn, indices: np.ndarray):
        self.drawn, self.indices = drawn, indices
        self.examples = self
        self.tokens = drawn.examples.tokens[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def draw(self, index: int, epoch: int = 0) -> Draw:
        return self.drawn.draw(int(self.indices[index]), epoch)


def seen(sampler: StepSampler, max_steps: int) -> np.ndarray:
    """The examples that the first `max_steps` steps draw; all of them where it is not positive."""
    everything = np.arange(len(sampler.costs))
    if max_steps <= 0 or max_steps * sampler.per_step >= len(everything):
        return everything
    steps = (step for epoch in itertools.count() for step in sampler.steps(epoch))
    return np.unique(np.concatenate(list(itertools.islice(steps, max_steps))))


class StepLoader(DataLoader[Batch]):
    """Batches of a StepSampler; `set_epoch` is how transformers.Trainer announces an epoch."""

    def __init__(
        self,
        examples: Drawn,
        sampler: StepSampler,
        collate: Callable[[Sequence[Draw]], Batch],
        workers: int = 0,
    ):
        def batch(items: list[tuple[Draw, bool]]) -> Batch:
            made = collate([draw for draw, _ in items])
            return replace(made, filler=True) if items[0][1] else made  # type: ignore[type-var]

        super().__init__(
            examples,  # type: ignore[arg-type]  # it answers slots, the collator makes the batch
            batch_sampler=sampler,
            collate_fn=batch,
            num_workers=workers,
            generator=torch.Generator(),  # its own: iterating must not advance the run's random state
        )
        self.sampler_of_steps = sampler

    def set_epoch(self, epoch: int) -> None:
        self.sampler_of_steps.set_epoch(epoch)
