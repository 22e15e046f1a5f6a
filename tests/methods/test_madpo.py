"""MADPO (2510.05342) with scalars, its identities, and its optimum found by minimising."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ragged import ragged

from prefopt import PrefoptError, Responses, get_method

DEFAULTS = {"c_min": 0.5, "c_max": 2.0, "lam": 1.0, "tau": math.log(999)}


def target(a: float, c_min: float, c_max: float, lam: float, tau: float) -> float:
    return c_min + (c_max - c_min) / (1 + (c_max - 1) / (1 - c_min) * math.exp(lam * (a - tau)))


def weight(h: float, **hyper: float) -> float:
    k = DEFAULTS | hyper
    if h <= -k["tau"]:
        return 1.0
    return (1 / (1 + math.exp(-target(abs(h), **k) * h))) / (1 / (1 + math.exp(-h)))


def material(seed: int, scale: float = 3.0) -> tuple[Any, Responses]:
    b = ragged(seed, extras=False)
    g = torch.Generator().manual_seed(seed)
    b.notes["reward_score"] = scale * torch.randn(len(b.mask), generator=g, dtype=torch.float64)
    b.scores.pop("reward")
    return b, b.responses()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("hyper", [{}, {"c_min": 0.2, "c_max": 4.0, "lam": 2.0, "tau": 2.0}, {"tau": 1.0}], ids=str)
def test_value_and_gradient_are_those_of_the_card(hyper: dict[str, float], seed: int) -> None:
    b, r = material(seed)
    want = torch.zeros((), dtype=torch.float64)
    for w, l in b.pairs:
        u = sum(p - q.item() for p, q in zip(b.tokens("policy", w), b.tokens("reference", w), strict=True))
        u = u - sum(p - q.item() for p, q in zip(b.tokens("policy", l), b.tokens("reference", l), strict=True))
        h = (b.notes["reward_score"][w] - b.notes["reward_score"][l]).item()
        want = want + weight(h, **hyper) * torch.log1p(torch.exp(-0.1 * u))
    want = want / len(b.pairs)
    loss = get_method("madpo", **hyper)(r).scalar
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(x, b.policy)[0][b.mask] for x in (loss, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def weights_of(h: torch.Tensor, **hyper: Any) -> torch.Tensor:
    n = len(h)
    logps = -torch.ones(2 * n, 1, dtype=torch.float64)
    r = Responses.of(
        policy_logps=logps, reference_logps=logps, pairs="halves", reward_score=torch.cat([h, torch.zeros_like(h)])
    )
    return get_method("madpo", **hyper)(r).metrics["weights"]


def test_the_shape_of_the_weight() -> None:
    tau = DEFAULTS["tau"]
    at = weights_of(torch.tensor([0.0, tau, -tau, -tau - 1e-9, -50.0, 50.0, -4.4], dtype=torch.float64))
    torch.testing.assert_close(at[:5], torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-9)
    assert at[5] < 1
    assert at[5] == pytest.approx(1, abs=1e-9)
    assert at[6] == pytest.approx(0.03, abs=0.01)
    line = weights_of(torch.linspace(0.01, tau - 0.01, 500, dtype=torch.float64))
    assert (line > 1).all()
    assert line.max() == pytest.approx(1.21, abs=0.01)
    assert (weights_of(torch.linspace(-tau + 0.01, -0.01, 500, dtype=torch.float64)) < 1).all()
    assert (weights_of(torch.linspace(tau + 0.01, 15, 100, dtype=torch.float64)) < 1).all()


def test_huge_margins_are_finite() -> None:
    h = torch.tensor([-1e4, 1e4, -300.0, 300.0])
    for tau in (6.9, 500.0):
        found = weights_of(h, tau=tau)
        assert torch.isfinite(found).all()
    assert weights_of(torch.tensor([float("nan")])).isnan().all(), "a score that is no number must be seen"


@pytest.mark.parametrize("hyper", [{}, {"c_max": 4.0, "c_min": 0.25}], ids=str)
def test_the_optimum_is_the_target_margin(hyper: dict[str, float]) -> None:
    """Both labels with probabilities sigmoid(+-h): the weighted loss is least at beta h_theta = c(|h|) h, DPO's at h."""
    h = torch.linspace(-6.8, 6.8, 41, dtype=torch.float64)
    n, beta = len(h), 0.1
    p = torch.sigmoid(h)

    rows = torch.arange(2 * n).view(2, n).T
    both = torch.cat([rows, rows.flip(1)])
    share = torch.cat([p, 1 - p])
    zero = torch.zeros(n, dtype=torch.float64)

    def minimised(name: str, **k: Any) -> torch.Tensor:
        """Every h_theta by itself: bisection of the sign of its gradient, which rises (the loss is convex)."""
        method = get_method(name, **k)
        low, high = torch.full_like(h, -20 / beta), torch.full_like(h, 20 / beta)
        for _ in range(50):
            x = ((low + high) / 2).requires_grad_()
            r = Responses.of(
                policy_logps=torch.cat([x, zero]), reference_logps=torch.zeros(2 * n, dtype=torch.float64), pairs=both,
                reward_score=torch.cat([h, zero]),
            )  # fmt: skip
            (slope,) = torch.autograd.grad((method(r).per("pairs") * share).sum(), x)
            low, high = torch.where(slope < 0, x.detach(), low), torch.where(slope < 0, high, x.detach())
        return beta * low

    k = DEFAULTS | hyper
    want = torch.tensor([target(abs(v), **k) * v for v in h.tolist()], dtype=torch.float64)
    torch.testing.assert_close(minimised("madpo", **hyper), want, rtol=0, atol=1e-6)
    torch.testing.assert_close(minimised("dpo"), h, rtol=0, atol=1e-6)


@pytest.mark.parametrize("base", [{"name": "simpo"}, {"name": "ipo", "beta": 0.3}])
def test_around_other_losses(base: dict[str, Any]) -> None:
    _, r = material(4)
    wrapped, bare = get_method("madpo", base=base)(r), get_method(**base)(r)
    torch.testing.assert_close(wrapped.per("pairs"), wrapped.metrics["weights"] * bare.per("pairs"))


def test_margins_of_the_data() -> None:
    _, r = material(5)
    h = r.pairs()[0].note("reward_score", "R") - r.pairs()[1].note("reward_score", "R")
    given = r.replace(notes={"pairs": r.notes["pairs"], "margin": h})
    torch.testing.assert_close(get_method("madpo", use_margin=True)(given).scalar, get_method("madpo")(r).scalar)
    with pytest.raises(PrefoptError, match="reward_score"):
        get_method("madpo")(given)


@pytest.mark.parametrize("hyper", [{"c_min": 0.0}, {"c_min": 1.0}, {"c_max": 1.0}, {"lam": 0.0}, {"tau": 0.0}], ids=str)
def test_bad_hyperparameters(hyper: dict[str, float]) -> None:
    with pytest.raises(PrefoptError, match=f"madpo.{next(iter(hyper))} = "):
        get_method("madpo", **hyper)
