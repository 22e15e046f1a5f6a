"""Which examples make a step, and how it is dealt: the same step however it is computed, nothing twice or never."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from prefopt import PrefoptError
from prefopt.scoring.base import Draw
from prefopt.training.sampler import Drawn, Slot, StepLoader, StepSampler, deal, micro_batches

SIZES = [
    (1, 4, 2, 1),
    (7, 3, 1, 2),
    (16, 16, 16, 1),
    (17, 8, 4, 2),
    (23, 6, 3, 4),
    (40, 10, 2, 3),
    (5, 8, 4, 4),
    (100, 1, 1, 1),
]


def costs(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 500, n)


def micro_steps(n: int, per_step: int, micro: int, world: int, epoch: int = 0, **more) -> list[list[list[list[Slot]]]]:
    """Optimiser step -> process -> micro-batch -> slots."""
    parts = []
    for rank in range(world):
        sampler = StepSampler(costs(n), per_step, micro, rank, world, **more)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        parts.append([batches[i : i + micro] for i in range(0, len(batches), micro)])
    return [list(step) for step in zip(*parts, strict=True)]


def content(step: list[list[list[Slot]]]) -> list[int]:
    return sorted(s.index for process in step for batch in process for s in batch if not s.filler)


@pytest.mark.parametrize(("n", "per_step", "micro", "world"), SIZES)
def test_every_example_exactly_once_an_epoch(n, per_step, micro, world):
    for epoch in (0, 1):
        steps = micro_steps(n, per_step, micro, world, epoch)
        assert sorted(i for s in steps for i in content(s)) == list(range(n))
        assert all(len(content(s)) == per_step for s in steps[:-1])
        assert all(slot.epoch == epoch for s in steps for p in s for b in p for slot in b)


@pytest.mark.parametrize("n", [1, 9, 24, 37])
def test_a_step_holds_the_same_examples_however_it_is_cut(n):
    want = [content(s) for s in micro_steps(n, 8, 1, 1)]
    for micro, world in [(8, 1), (3, 1), (1, 2), (4, 2), (1, 8), (2, 3)]:
        assert [content(s) for s in micro_steps(n, 8, micro, world)] == want
    assert [content(s) for s in micro_steps(n, 8, 1, 1, epoch=1)] != want or n == 1
    assert [content(s) for s in micro_steps(n, 8, 1, 1, seed=1)] != want or n == 1


def test_without_shuffling_the_order_is_that_of_the_data():
    steps = micro_steps(10, 4, 1, 1, shuffle=False)
    assert [content(s) for s in steps] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(("n", "per_step", "micro", "world"), SIZES)
def test_fillers_only_where_examples_run_out(n, per_step, micro, world):
    for step in micro_steps(n, per_step, micro, world):
        size = len(content(step))
        batches = [b for process in step for b in process]
        fillers = [b for b in batches if any(s.filler for s in b)]
        assert all(len(b) == 1 for b in fillers)  # as cheap as can be
        assert all(b for b in batches)
        assert len(fillers) == max(0, micro * world - size)
        assert all(0 <= s.index < n for b in fillers for s in b)


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 40])
@pytest.mark.parametrize("seed", range(4))
def test_deal_is_sorted_whole_and_never_empty(n, parts, seed):
    c = costs(60, seed)
    c[:3] = 100_000  # some outweigh everything else
    step = np.random.default_rng(seed).permutation(60)[:n]
    dealt = deal(step, c, parts)
    assert len(dealt) == parts
    assert Counter(np.concatenate(dealt).tolist()) == Counter(step.tolist())
    assert sum(len(p) == 0 for p in dealt) == max(0, parts - n)
    joined = c[np.concatenate(dealt)]
    assert (np.diff(joined) >= 0).all()  # alike lengths side by side


def test_slices_of_a_step_cost_about_the_same():
    c = costs(4000)
    for parts in (2, 4, 8, 16):
        weights = [c[p].sum() for p in deal(np.arange(4000), c, parts)]
        assert max(weights) - min(weights) <= 2 * c.max()
    step = np.arange(64)
    for parts in (2, 4, 8):
        weights = np.array([c[p].sum() for p in deal(step, c, parts)])
        assert weights.max() <= weights.mean() + c[:64].max()


def test_processes_wait_little_for_each_other():
    """At each micro-batch the slices of all processes are neighbours in length."""
    c = costs(128)
    for step in micro_steps(128, 128, 8, 2):
        ours, theirs = (np.array([c[[s.index for s in b]].mean() for b in process]) for process in step)
        alone = np.abs(ours[:, None] - theirs[None]).mean()
        assert np.abs(ours - theirs).mean() < alone / 3


@pytest.mark.parametrize("budget", [500, 900, 2000, 10**9])
@pytest.mark.parametrize("world", [1, 2])
def test_micro_batches_keeps_the_budget_and_is_the_fewest(budget, world):
    c = costs(90)

    def heaviest(micro: int) -> int:
        sampler = StepSampler(c, 16, seed=3)
        steps = [s for epoch in range(2) for s in sampler.steps(epoch)]
        return max(int(c[p].sum()) for s in steps for p in deal(s, c, micro * world) if len(p) > 1 or micro == 0)

    micro = micro_batches(c, 16, budget, world, seed=3, epochs=2)
    if micro * world < 16:
        assert heaviest(micro) <= budget
    if micro > 1:
        assert heaviest(micro - 1) > budget


def test_a_budget_below_one_example_still_trains_one_at_a_time():
    assert micro_batches(costs(20), 8, 1, 1, seed=0, epochs=1) == 8
    assert micro_batches(costs(20), 8, 1, 3, seed=0, epochs=1) == 3


def test_one_example_beyond_the_budget_only_has_to_be_alone():
    c = np.array([10] * 15 + [1000])
    micro = micro_batches(c, 16, 200, 1, seed=0, epochs=1)
    assert micro == 2  # the long one, and all others together
    assert sorted(len(p) for p in deal(np.arange(16), c, micro)) == [1, 15]


class Data:
    def __init__(self, n: int):
        self.tokens = costs(n)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> str:
        return f"example {i}"


@pytest.mark.parametrize("n", [2, 3, 10, 101])
@pytest.mark.parametrize("seed", range(5))
def test_partners_are_a_derangement_fixed_by_the_seed(n, seed):
    drawn = Drawn(Data(n), partners=True, seed=seed)
    partners = [drawn.draw(i, epoch=e).partner for e in (0, 3) for i in range(n)]
    assert partners[:n] == partners[n:]  # whatever the epoch
    assert sorted(partners[:n]) == sorted(f"example {i}" for i in range(n))
    assert all(p != f"example {i}" for i, p in enumerate(partners[:n]))
    again = Drawn(Data(n), partners=True, seed=seed)
    assert [again.draw(i).partner for i in range(n)] == partners[:n]


def test_partners_follow_the_seed_and_need_two():
    many = [tuple(Drawn(Data(50), True, seed).draw(i).partner for i in range(50)) for seed in range(3)]
    assert len(set(many)) == 3
    with pytest.raises(PrefoptError, match="only 1 usable row"):
        Drawn(Data(1), partners=True)
    assert Drawn(Data(1)).draw(0) == Draw("example 0", 0, None)


class Batched(Data):
    def __getitems__(self, indices):
        return [self[int(i)] for i in indices]


@pytest.mark.parametrize("kind", [Data, Batched])
@pytest.mark.parametrize("partners", [True, False])
def test_a_batch_looked_up_together_is_the_examples_looked_up_alone(kind, partners):
    drawn = Drawn(kind(9), partners, seed=2)
    slots = [Slot(7, 1), Slot(0, 1), Slot(7, 2, filler=True)]
    assert drawn.__getitems__(slots) == [drawn[slot] for slot in slots]


@dataclass
class Texts:
    texts: list[str]
    notes: dict = field(default_factory=dict)
    filler: bool = False


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_says_which_batches_are_fillers(workers):
    data = Data(5)
    found = []
    for rank in range(2):
        sampler = StepSampler(data.tokens, 4, 2, rank, 2, seed=1)
        loader = StepLoader(Drawn(data), sampler, _texts, workers)
        loader.set_epoch(2)
        state = torch.get_rng_state()
        found.append(list(loader))
        assert torch.equal(torch.get_rng_state(), state)  # iterating leaves the run's random state alone
        assert len(loader) == len(sampler) == len(found[-1])
    batches = [b for part in found for b in part]
    assert sorted(t for b in batches if not b.filler for t in b.texts) == [f"example {i} in 2" for i in range(5)]
    assert sum(b.filler for b in batches) == 3  # the second step has one example for four places


def _texts(draws: list[Draw]) -> Texts:
    return Texts([f"{d.example} in {d.epoch}" for d in draws])
