"""What rounding leaves undecided must not decide: ranks of rewards that are 0 where policy is reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prefopt import Method, Responses, get_method

LISTS, K, T = 3, 4, 6
METHODS = {
    "lipo": get_method("lipo"),
    "tree-tpo": get_method("tree-tpo"),
    "tree-tpo, means": get_method("tree-tpo", step_reduce="weighted_mean"),
    "tree-tpo, plain": get_method("tree-tpo", adaptive_step_reward=False),
}


def batch(policy: Tensor, reference: Tensor) -> Responses:
    g = torch.Generator().manual_seed(1)
    rows = LISTS * K
    score = torch.rand(rows, generator=g)
    return Responses.of(
        policy,
        reference,
        group=torch.arange(rows) // K,
        score=score,
        value=score,
        step_index=torch.tensor([1, 1, 2, 2, 3, 3]).expand(rows, T),
        hidden=torch.randn(rows, T, 5, generator=g),
    )


def answers(m: Method, policy: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    policy = policy.clone().requires_grad_()
    loss = m(batch(policy, reference)).scalar
    return loss.detach(), torch.autograd.grad(loss, policy)[0]


@pytest.mark.parametrize("m", METHODS.values(), ids=METHODS)
def test_the_first_loss_does_not_hang_on_who_computed_the_reference(m: Method) -> None:
    """A store, a copy and an adapter switched off differ by rounding, in float32 up to about 1e-5 a token."""
    g = torch.Generator().manual_seed(0)
    logps = -3 * torch.rand(LISTS * K, T, generator=g)
    loss, gradient = answers(m, logps, logps)
    assert gradient.abs().max() > 1e-4  # equals rank by their rows, so that the first step teaches
    for seed in range(5):
        noise = 1e-5 * torch.randn(logps.shape, generator=torch.Generator().manual_seed(seed))
        other, slope = answers(m, logps, logps + noise)
        torch.testing.assert_close(other, loss, rtol=1e-4, atol=0)
        torch.testing.assert_close(slope, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("m", METHODS.values(), ids=METHODS)
def test_what_is_larger_than_rounding_does_rank(m: Method) -> None:
    """Ranks move the weights: turning the order of two responses round by a visible gap changes the loss by more."""
    g = torch.Generator().manual_seed(0)
    logps = -3 * torch.rand(LISTS * K, T, generator=g)
    up, down = torch.zeros_like(logps), torch.zeros_like(logps)
    up[3], down[0] = 0.01, 0.01
    changed = [answers(m, logps + x, logps)[1] for x in (up, down)]
    assert (changed[0] - changed[1]).abs().max() > 1e-4


def test_ranks_are_told_apart_in_steps() -> None:
    r = Responses.of(torch.zeros(6, 1), group=torch.tensor([0, 0, 0, 1, 1, 1]))
    value = torch.tensor([-1e-6, 1e-6, 0.3, 0.2, 0.2001, 0.4])
    assert r.rank(value).tolist() == [3, 2, 1, 3, 2, 1]
    assert r.rank(value, torch.full((6,), 1e-2)).tolist() == [2, 3, 1, 2, 3, 1]
    coarse = torch.tensor([1e-2, 1e-2, 1.0, 1e-5, 1e-5, 1e-5])  # a list's is the largest of its rows
    assert r.rank(value, coarse).tolist() == [1, 2, 3, 3, 2, 1]
