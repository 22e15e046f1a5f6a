"""Diff-Instruct* (2410.20898) against loops in float64, analytic Gaussians, and the structure of its stop-gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt import PrefoptError, Responses, get_method

R, D = 5, 7
SLUG = "diff-instruct-star"


def numbers(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    made = {k: torch.randn(R, D, generator=g, dtype=torch.float64) for k in SCORES | {"noise", "clean", "noisy"}}
    made |= {"sigma": 0.1 + 0.8 * torch.rand(R, generator=g, dtype=torch.float64)}
    return made | {"signal": (1 - made["sigma"] ** 2).sqrt(), "reward_logps": torch.randn(R, generator=g).double()}


SCORES = {"assistant_score", "reference_score", "empty_score"}
CASES: dict[str, dict[str, Any]] = {
    "huber, inner": {},
    "another c": {"c": 0.7},
    "l2": {"distance": "l2"},
    "l2, of clean images": {"distance": "l2", "weight": "normalised", "alpha_cfg": 2.0},
    "kl": {"distance": "kl"},
    "outer": {"cfg": "outer", "alpha_cfg": 1.5},
    "outer, l2": {"cfg": "outer", "distance": "l2"},
    "no guidance": {"cfg": "none"},
    "guidance 0": {"alpha_cfg": 0.0},
    "no reward": {"alpha_rew": 0.0},
    "cut in y": {"stop_grad_y": True},
}


def by_hand(x: dict[str, Tensor], **given: Any) -> tuple[float, dict[str, list[list[float]]]]:
    """The generator's loss and its gradients, written out element by element."""
    key = {"alpha_rew": 100.0, "alpha_cfg": 7.5, "cfg": "inner", "distance": "huber", "c": 0.05, "weight": "sigma2"}
    key |= {"stop_grad_y": False} | given
    a = 0.0 if key["cfg"] == "none" else key["alpha_cfg"]
    loss, grads = 0.0, {k: [[0.0] * D for _ in range(R)] for k in (*SCORES, "noisy")}
    for i in range(R):
        s, psi, ref, empty = (
            float(x["sigma"][i]),
            *(x[k][i].tolist() for k in ("assistant_score", "reference_score")),
            x["empty_score"][i].tolist(),
        )
        eps, noisy = x["noise"][i].tolist(), x["noisy"][i].tolist()
        inner = a if key["cfg"] == "inner" else 0.0
        star = [ref[j] + inner * (ref[j] - empty[j]) for j in range(D)]
        y = [psi[j] - star[j] for j in range(D)]
        w = s * s
        if key["weight"] == "normalised":
            al = float(x["signal"][i])
            far = sum(abs(float(x["clean"][i, j]) - (noisy[j] + s * s * star[j]) / al) for j in range(D)) / D
            w = s**4 / (al * al * max(far, 1e-5))
        residual = [psi[j] + eps[j] / s for j in range(D)]
        if key["distance"] == "kl":
            loss += w * sum(y[j] * noisy[j] for j in range(D)) / R
            for j in range(D):
                grads["noisy"][i][j] += w * y[j] / R
        else:
            n = math.sqrt(sum(v * v for v in y) + key["c"] ** 2)
            d = [2 * v if key["distance"] == "l2" else v / n for v in y]
            loss -= w * sum(d[j] * residual[j] for j in range(D)) / R
            for j in range(D):
                grads["assistant_score"][i][j] -= w * d[j] / R
                if key["stop_grad_y"]:
                    continue
                if key["distance"] == "l2":
                    back = 2 * residual[j]
                else:  # Jacobian of y / n: (1 - y y^T / n^2) / n
                    back = (residual[j] - y[j] * sum(y[k] * residual[k] for k in range(D)) / n**2) / n
                grads["assistant_score"][i][j] -= w * back / R
                grads["reference_score"][i][j] += w * (1 + inner) * back / R
                grads["empty_score"][i][j] -= w * inner * back / R
        loss -= key["alpha_rew"] * float(x["reward_logps"][i]) / R
        if key["cfg"] == "outer" and a:
            loss -= a * w * sum((ref[j] - empty[j]) * noisy[j] for j in range(D)) / R
            for j in range(D):
                grads["noisy"][i][j] -= a * w * (ref[j] - empty[j]) / R
    return loss, grads


@pytest.mark.parametrize("given", CASES.values(), ids=CASES)
def test_the_generators_loss_and_its_gradients(given: dict[str, Any]) -> None:
    x = {k: v.requires_grad_(k in SCORES | {"noisy", "clean", "reward_logps"}) for k, v in numbers().items()}
    loss = get_method(SLUG, **given)(Responses.of(**x)).scalar
    loss.backward()
    expected, grads = by_hand({k: v.detach() for k, v in x.items()}, **given)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for name, values in grads.items():
        found = x[name].grad if x[name].grad is not None else torch.zeros(R, D)
        torch.testing.assert_close(found.double(), torch.tensor(values, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert x["clean"].grad is None  # the reward alone reaches x_0 but through x_t
    alpha = given.get("alpha_rew", 100.0)
    assert (
        x["reward_logps"].grad is None
        if not alpha
        else torch.allclose(x["reward_logps"].grad, torch.tensor(-alpha / R).double())
    )


def test_the_assistants_loss_is_the_noise_error() -> None:
    """lambda = sigma_t^2: || eps_hat - eps ||^2 with eps_hat = -sigma s_psi; nothing else is asked for."""
    x = numbers(1)
    m = get_method(SLUG)
    x["assistant_score"].requires_grad_()
    loss = m(Responses.of(turn="assistant", **x))
    assert list(loss.terms) == ["assistant"]
    eps_hat = -x["sigma"][:, None] * x["assistant_score"]
    expected = (eps_hat - x["noise"]).square().sum() / R
    assert loss.scalar.item() == pytest.approx(expected.item(), rel=1e-12)
    needs = m.turns()["assistant"]
    assert not any("reference" in k or "empty" in k or "reward" in k for k in needs)
    assert m.needs()["turns:assistant"] == {"steps": 3, "rate": 5.0}


def test_squared_distance_is_the_score_identity_loss_of_clean_images() -> None:
    """2 w alpha^2 / sigma^4 (f_ref - f_psi)^T (f_psi - x_0), f = (x_t + sigma^2 s) / alpha."""
    x = numbers(2)
    alpha, var = x["signal"][:, None], x["sigma"][:, None] ** 2
    x["noisy"] = alpha * x["clean"] + x["sigma"][:, None] * x["noise"]
    f_psi, f_ref = ((x["noisy"] + var * x[k]) / alpha for k in ("assistant_score", "reference_score"))
    inner = ((f_ref - f_psi) * (f_psi - x["clean"])).sum(1)
    plain = get_method(SLUG, distance="l2", cfg="none", alpha_rew=0.0)(Responses.of(**x)).scalar
    assert plain.item() == pytest.approx((2 * var * alpha**2 / var**2)[:, 0].mul(inner).mean().item(), rel=1e-10)
    normal = get_method(SLUG, distance="l2", cfg="none", alpha_rew=0.0, weight="normalised")(Responses.of(**x)).scalar
    norm = (x["clean"] - f_ref).abs().mean(1)
    assert normal.item() == pytest.approx((2 * inner / norm).mean().item(), rel=1e-10)


# ---- Gaussians: x_0 = theta z + mu, reference N(m, v); s_psi exact. D = E_{sg p_t} d(s_p - s_ref), differentiated inside d
THETA, MU, M, V, ALPHA = 0.8, 0.5, -0.4, 1.5, 0.8


def gaussian(draws: int, seed: int, **given: Any) -> tuple[float, float]:
    """Averaged gradients of theta and mu through the method."""
    g = torch.Generator().manual_seed(seed)
    z, eps = torch.randn(2, draws, 1, generator=g, dtype=torch.float64)
    z, eps = torch.cat([z, -z, z, -z]), torch.cat([eps, eps, -eps, -eps])  # less noise
    theta, mu = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (THETA, MU))
    sigma = math.sqrt(1 - ALPHA**2)
    x_t = ALPHA * (theta * z + mu) + sigma * eps
    psi = -(x_t - ALPHA * MU) / (ALPHA**2 * THETA**2 + sigma**2)  # the assistant's parameters do not move with theta
    ref = -(x_t - ALPHA * M) / (ALPHA**2 * V + sigma**2)
    made = {"sigma": torch.full((len(z),), sigma).double(), "noise": eps, "noisy": x_t}
    r = Responses.of(reward_logps=torch.zeros(len(z)).double(), assistant_score=psi, reference_score=ref, **made)
    get_method(SLUG, cfg="none", **given)(r).scalar.backward()
    return theta.grad.item(), mu.grad.item()


def closed_form(distance: str, c: float = 0.05) -> tuple[float, float]:
    """w d/d(theta, mu) of E_{x ~ sg p_t} d(s_p(x) - s_ref(x)), by quadrature on a grid and differences."""
    sigma2 = 1 - ALPHA**2
    x = torch.linspace(-12, 12, 200001, dtype=torch.float64)

    def value(theta: float, mu: float) -> float:
        var0, var = ALPHA**2 * THETA**2 + sigma2, ALPHA**2 * theta**2 + sigma2
        density = torch.exp(-((x - ALPHA * MU) ** 2) / (2 * var0)) / math.sqrt(2 * math.pi * var0)
        y = -(x - ALPHA * mu) / var + (x - ALPHA * M) / (ALPHA**2 * V + sigma2)
        d = y**2 if distance == "l2" else (y**2 + c * c).sqrt() - c
        return torch.trapezoid(density * d, x).item() * sigma2

    h = 1e-4
    return (
        (value(THETA + h, MU) - value(THETA - h, MU)) / (2 * h),
        (value(THETA, MU + h) - value(THETA, MU - h)) / (2 * h),
    )


@pytest.mark.parametrize(("distance", "c"), [("l2", 0.05), ("huber", 0.3)])
def test_the_gradient_is_that_of_the_divergence(distance: str, c: float) -> None:
    given: dict[str, Any] = {"distance": distance} | ({"c": c} if distance == "huber" else {})
    found, expected = gaussian(250_000, 0, **given), closed_form(distance, c)
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("distance", ["l2", "huber"])
def test_cut_in_y_the_scale_gets_half(distance: str) -> None:
    """The bias that the full gradient avoids: the mean is right, the scale half."""
    given: dict[str, Any] = {"distance": distance, "stop_grad_y": True} | ({"c": 0.3} if distance == "huber" else {})
    theta, mu = gaussian(250_000, 0, **given)
    right = closed_form(distance, 0.3)
    assert mu == pytest.approx(right[1], rel=0.03)
    assert theta == pytest.approx(right[0] / 2, rel=0.05)


def test_kl_is_the_gradient_of_the_kl() -> None:
    """Diff-Instruct++'s regulariser: w grad KL(p_t || ref_t)."""
    theta, mu = gaussian(250_000, 0, distance="kl")
    var, ref = ALPHA**2 * THETA**2 + 1 - ALPHA**2, ALPHA**2 * V + 1 - ALPHA**2
    w = 1 - ALPHA**2
    assert mu == pytest.approx(w * ALPHA**2 * (MU - M) / ref, rel=0.02)
    assert theta == pytest.approx(w * ALPHA**2 * THETA * (1 / ref - 1 / var), rel=0.02)


# ---- bad input
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"c": 0.0}, r"c = 0.0: must be in \(0"),
        ({"alpha_rew": -1.0}, "alpha_rew = -1.0: must be in"),
        ({"alpha_cfg": -0.5}, "alpha_cfg = -0.5: must be in"),
        ({"assistant_steps": 0}, "assistant_steps = 0: must be at least 1"),
        ({"t_low": 0.5, "t_high": 0.5}, "t_low = 0.5 must be below"),
        ({"ema": 1.0}, "ema = 1"),
        ({"assistant_betas": [0.9]}, "two numbers"),
        ({"cfg": "none", "alpha_cfg": 3.0}, "alpha_cfg = 3.0 has no effect"),
        ({"distance": "l2", "c": 0.3}, "c = 0.3 has no effect"),
        ({"distance": "kl", "stop_grad_y": True}, "stop_grad_y = True has no effect"),
    ],
)
def test_keys_that_cannot_be_are_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(PrefoptError, match=why):
        get_method(SLUG, **given)


def test_numbers_that_cannot_be_are_refused() -> None:
    x = numbers()
    with pytest.raises(PrefoptError, match="'sigma' goes from 0"):
        get_method(SLUG)(Responses.of(**(x | {"sigma": x["sigma"] * 0})))
    with pytest.raises(PrefoptError, match="needs the feature 'empty_score'"):
        get_method(SLUG)(Responses.of(**{k: v for k, v in x.items() if k != "empty_score"}))
    get_method(SLUG, alpha_cfg=0.0)(Responses.of(**{k: v for k, v in x.items() if k != "empty_score"}))
    with pytest.raises(PrefoptError, match="needs scores 'reward'"):
        get_method(SLUG)(
            Responses.of(policy_logps=torch.zeros(R), **{k: v for k, v in x.items() if k != "reward_logps"})
        )


def test_without_a_reward_nothing_is_scored() -> None:
    """Features alone, as in the warm-up: rows are counted by who belongs to whom."""
    x = {k: v for k, v in numbers().items() if k != "reward_logps"}
    loss = get_method(SLUG, alpha_rew=0.0)(Responses.of(group=torch.arange(R), **x))
    assert set(loss.terms) == {"regulariser"}
