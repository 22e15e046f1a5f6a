"""Diffusion-DPO (2311.12908) on plain errors with scalars: every loss, the numbers that it states, bad settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from prefopt import PrefoptError, Responses, get_method

P, N = 5, 16  # pairs, elements


def material(seed: int) -> dict[str, torch.Tensor]:
    """Errors summed over N elements [2P], the first half preferred; s of a flow model."""
    g = torch.Generator().manual_seed(seed)
    policy, reference = torch.rand(2, 2 * P, generator=g, dtype=torch.float64) * N * 0.01
    s = torch.rand(P, generator=g, dtype=torch.float64).repeat(2)
    return {"policy": policy.requires_grad_(), "reference": reference, "s": s}


def batch(m: dict[str, torch.Tensor], **notes: Any) -> Responses:
    mask = torch.full((2 * P, 1), float(N), dtype=torch.float64)
    return Responses.of(policy_errors=m["policy"], reference_errors=m["reference"], mask=mask, pairs="halves", **notes)


def by_hand(m: dict[str, torch.Tensor], beta: float, half: float, kind: str, scheduled: bool) -> float:
    total = 0.0
    for w in range(P):
        l = w + P
        e = {(k, i): m[k][i].item() / N for k in ("policy", "reference") for i in (w, l)}
        margin = (e["reference", w] - e["reference", l]) - (e["policy", w] - e["policy", l])
        b = beta * (1 - m["s"][w].item()) ** 2 if scheduled else beta
        if kind == "sigmoid":
            total += math.log1p(math.exp(-half * b * margin))
        elif kind == "hinge":
            total += max(0.0, 1 - b * margin)
        else:
            total += (margin - 1 / (2 * beta)) ** 2
    return total / P


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("kind", "half", "scheduled"),
    [("sigmoid", 0.5, False), ("sigmoid", 1.0, False), ("sigmoid", 0.5, True), ("hinge", 0.5, False),
     ("hinge", 0.5, True), ("ipo", 0.5, False)],
)  # fmt: skip
def test_every_loss_is_the_equation(seed: int, kind: str, half: float, scheduled: bool) -> None:
    m, hyper = material(seed), {"beta": 300.0}
    hyper |= {"half_factor": half} if half != 0.5 else {}
    hyper |= {"loss_type": kind} if kind != "sigmoid" else {}
    hyper |= {"beta_schedule": "(1-s)^2"} if scheduled else {}
    notes = {"flow_signal": 1 - m["s"]} if scheduled else {}
    loss = get_method("diffusion-dpo", **hyper)(batch(m, **notes)).scalar
    assert loss.item() == pytest.approx(by_hand(m, 300.0, half, kind, scheduled), rel=1e-12)
    grad = torch.autograd.grad(loss, m["policy"])[0]
    for i in (0, P + 1):
        step = 1e-6
        values = []
        for sign in (1, -1):
            moved = m["policy"].detach().clone()
            moved[i] += sign * step
            values.append(by_hand(m | {"policy": moved}, 300.0, half, kind, scheduled))
        assert grad[i].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-10)


def test_at_the_start_the_loss_is_log_2_and_the_gradient_is_not_zero() -> None:
    m = material(2)
    m["policy"] = m["reference"].clone().requires_grad_()
    out = get_method("diffusion-dpo", beta=5000.0)(batch(m))
    assert out.scalar.item() == pytest.approx(math.log(2), rel=1e-14)
    grad = torch.autograd.grad(out.scalar, m["policy"])[0]
    slope = 0.5 * 5000.0 * 0.5 / P / N
    torch.testing.assert_close(grad, torch.tensor([slope] * P + [-slope] * P, dtype=torch.float64))


def test_both_raw_errors_are_told() -> None:
    m = material(3)
    told = get_method("diffusion-dpo")(batch(m)).metrics
    gap = (m["policy"] - m["reference"]).detach() / N
    torch.testing.assert_close(told["errors/chosen"], gap[:P])
    torch.testing.assert_close(told["errors/rejected"], gap[P:])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"beta": 0}, r"beta = 0: must be in \(0, inf\)"),
        ({"beta": -1}, "beta = -1"),
        ({"half_factor": 0}, "half_factor = 0"),
        ({"loss_type": "exo"}, "must be one of sigmoid, hinge, ipo"),
        ({"beta_schedule": "linear"}, "must be one of constant"),
        ({"loss_type": "ipo", "beta_schedule": "(1-s)^2"}, "no meaning for ipo"),
        ({"loss_type": "hinge", "half_factor": 1.0}, "half_factor = 1.0 has no effect"),
        ({"loss_type": "ipo", "half_factor": 1.0}, "half_factor = 1.0 has no effect"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(PrefoptError, match=words):
        get_method("diffusion-dpo", **wrong)
