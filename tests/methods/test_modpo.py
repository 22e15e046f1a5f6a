"""MODPO (2310.03708) with scalars, its special cases, and its exact optimum on a small response space."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ragged import ragged

from prefopt import PrefoptError, Responses, get_method


def material(seed: int, n: int) -> tuple[Any, Responses]:
    b = ragged(seed, extras=False)
    g = torch.Generator().manual_seed(seed)
    b.notes.clear()
    b.scores.pop("reward")
    if n:
        b.notes["margin_rewards"] = 4 * torch.randn(len(b.mask), n, generator=g, dtype=torch.float64)
    return b, b.responses()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "hyper",
    [
        {},
        {"w": (1.0, 0.1), "beta": 0.3},
        {"w": (0.2, 0.5, 0.3)},
        {"w": (0.4, 0.6), "loss_type": "hinge"},
        {"w": (0.7,)},
    ],
    ids=str,
)
def test_value_gradient_and_rewards_are_those_of_the_card(hyper: dict[str, Any], seed: int) -> None:
    w = hyper.get("w", (0.5, 0.5))
    beta, hinge = hyper.get("beta", 0.1), "loss_type" in hyper
    b, r = material(seed, len(w) - 1)

    def R(row: int) -> torch.Tensor:
        lr = sum(p - q.item() for p, q in zip(b.tokens("policy", row), b.tokens("reference", row), strict=True))
        other = sum(w[i] * b.notes["margin_rewards"][row, i - 1].item() for i in range(1, len(w)))
        return (beta * lr - other) / w[0]

    loss = get_method("modpo", **hyper)(r)
    want, rewards = torch.zeros((), dtype=torch.float64), []
    for y_w, y_l in b.pairs:
        z = R(y_w) - R(y_l)
        want = want + (torch.relu(1 - z) if hinge else torch.nn.functional.softplus(-z))
        rewards.append((R(y_w).item(), R(y_l).item()))
    want = want / len(b.pairs)
    torch.testing.assert_close(loss.scalar, want, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(x, b.policy, allow_unused=True)[0] for x in (loss.scalar, want))
    assert torch.allclose(ours[b.mask], theirs[b.mask], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.stack(list(loss.rewards), 1).detach(), torch.tensor(rewards, dtype=torch.float64))


def test_special_cases() -> None:
    _, r = material(0, 1)
    dpo = get_method("dpo")(r).scalar
    torch.testing.assert_close(get_method("modpo", w=(1.0, 0.0))(r).scalar, dpo, rtol=0, atol=1e-14)
    torch.testing.assert_close(get_method("modpo", w=(1.0,))(r).scalar, dpo, rtol=0, atol=1e-14)
    assert "notes:margin_rewards" not in get_method("modpo", w=(1.0,)).needs()
    equal = torch.full((2, 3), -1.0, requires_grad=True)
    same = Responses.of(equal, torch.full((2, 3), -2.0), pairs="halves", margin_rewards=torch.ones(2, 1))
    loss = get_method("modpo")(same).scalar
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert not equal.grad.sum(0).any()


@pytest.mark.parametrize("w1", [0.2, 0.5, 0.8])
def test_the_optimum_is_that_of_the_weighted_rewards(w1: float) -> None:
    """32 responses, population labels of r1, exact r2 as margin: pi* is pi_ref exp((w1 r1 + w2 r2) / beta), and no
    mixture of two DPO losses gets there."""
    g = torch.Generator().manual_seed(1)
    n, beta = 32, 0.5
    r1 = torch.randn(n, generator=g, dtype=torch.float64)
    r2 = -0.7 * r1 + 0.7 * torch.randn(n, generator=g, dtype=torch.float64)
    ref = torch.log_softmax(torch.randn(n, generator=g, dtype=torch.float64), 0)
    star = torch.log_softmax(ref + (w1 * r1 + (1 - w1) * r2) / beta, 0)
    index = torch.arange(n)
    pairs = torch.cartesian_prod(index, index)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]

    def converged(losses: list[tuple[float, dict[str, Any], torch.Tensor]]) -> torch.Tensor:
        x = ref.clone().requires_grad_()
        optimiser = torch.optim.LBFGS([x], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-14)

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            r = Responses.of(torch.log_softmax(x, 0), ref, pairs=pairs, margin_rewards=r2[:, None])
            total = torch.zeros((), dtype=torch.float64)
            for share, method, reward in losses:
                label = torch.sigmoid(reward[pairs[:, 0]] - reward[pairs[:, 1]])
                total = total + share * (get_method(**method)(r).per("pairs") * label).mean()
            total.backward()
            return total

        optimiser.step(closure)
        return torch.log_softmax(x.detach(), 0)

    def kl(a: torch.Tensor) -> float:
        return (a.exp() * (a - star)).sum().item()

    def objective(a: torch.Tensor) -> float:
        return (a.exp() * (w1 * r1 + (1 - w1) * r2 - beta * (a - ref))).sum().item()

    modpo = converged([(1.0, {"name": "modpo", "beta": beta, "w": (w1, 1 - w1)}, r1)])
    dpo = {"name": "dpo", "beta": beta}
    mixed = converged([(w1, dpo, r1), (1 - w1, dpo, r2)])
    assert kl(modpo) < 1e-4
    assert objective(modpo) == pytest.approx(objective(star), rel=1e-3)
    assert kl(mixed) > 10 * kl(modpo) + 1e-3
    assert objective(mixed) < objective(modpo)


def test_bad_input() -> None:
    _, r = material(0, 2)
    for w, words in (((), "w is empty"), ((0.0, 1.0), r"w\[0\] = 0"), ((-1.0, 1.0), r"w\[0\] = -1")):
        with pytest.raises(PrefoptError, match=words):
            get_method("modpo", w=w)
    with pytest.raises(PrefoptError, match="must be in"):
        get_method("modpo", w=(math.nan, 1.0))
    with pytest.raises(PrefoptError, match=r"margin_rewards' has shape \[7, 2\], expected \[R 1\]"):
        get_method("modpo")(r)
    with pytest.raises(PrefoptError, match="sigmoid, hinge"):
        get_method("modpo", loss_type="huber")
    assert get_method("modpo", w=(0.5, -0.2, 0.1))(r).health["negative_weights"] == 1
    assert not get_method("modpo", w=(0.5, 0.2, 0.1))(r).health
