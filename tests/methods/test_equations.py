"""Every method against its paper's equation, computed one response and one token at a time in float64.

Nothing here uses the package's maths: the equations are those of the papers, written out with scalars.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from by_hand import average, log_sigmoid, ratios, total
from ragged import NAN, Ragged, ragged
from torch import Tensor

from prefopt import Responses, get_method
from prefopt.methods import load_all
from prefopt.objectives.method import METHODS
from prefopt.training.engine import Meter, measures

load_all()


def sigmoid(u: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-u))


def ratio(b: Ragged, row: int, reduce: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    return reduce(ratios(b, row))


def dpo(b: Ragged, beta: float = 0.1, label_smoothing: float = 0.0, loss_type: str = "sigmoid") -> Tensor:
    losses = []
    for w, l in b.pairs:
        m, e = beta * (ratio(b, w, total) - ratio(b, l, total)), label_smoothing
        conservative = -(1 - e) * log_sigmoid(m) - e * log_sigmoid(-m)
        robust = (-(1 - e) * log_sigmoid(m) + e * log_sigmoid(-m)) / (1 - 2 * e)
        hinge = torch.maximum(torch.zeros_like(m), 1 - m)
        losses.append({"sigmoid": conservative, "robust": robust, "hinge": hinge}[loss_type])
    return average(losses)


def ipo(b: Ragged, beta: float = 0.1, normalise: str = "mean") -> Tensor:
    reduce = total if normalise == "sum" else average
    return average([(ratio(b, w, reduce) - ratio(b, l, reduce) - 1 / (2 * beta)) ** 2 for w, l in b.pairs])


def slic(b: Ragged, delta: float = 1.0, reg: float = 0.1) -> Tensor:
    losses = []
    for w, l in b.pairs:
        s_w, s_l = total(b.tokens("policy", w)), total(b.tokens("policy", l))
        losses.append(torch.maximum(torch.zeros_like(s_w), delta - s_w + s_l) - reg * s_w)
    return average(losses)


def token_nll(b: Ragged, rows: Sequence[int]) -> list[Tensor]:
    return [-p for row in rows for p in b.tokens("policy", row)]


def cpo(b: Ragged, beta: float = 0.1, cpo_alpha: float = 1.0, nll: str = "token") -> Tensor:
    chosen = [w for w, _ in b.pairs]
    s = [(total(b.tokens("policy", w)), total(b.tokens("policy", l))) for w, l in b.pairs]
    preference = average([-log_sigmoid(beta * (s_w - s_l)) for s_w, s_l in s])
    imitation = average(token_nll(b, chosen)) if nll == "token" else average([-s_w for s_w, _ in s])
    return preference + cpo_alpha * imitation


def orpo(b: Ragged, beta: float = 0.1, nll_scope: str = "full") -> Tensor:
    def log_odds(row: int) -> Tensor:
        p = torch.exp(average(b.tokens("policy", row)))
        return torch.log(p / (1 - p))

    preference = average([-beta * log_sigmoid(log_odds(w) - log_odds(l)) for w, l in b.pairs])
    tokens = token_nll(b, [w for w, _ in b.pairs])
    if nll_scope == "full":
        tokens += token_nll(b.extras["prompt"], range(len(b.pairs)))
    return preference + average(tokens)


def simpo(
    b: Ragged,
    beta: float = 2.0,
    gamma_beta_ratio: float = 0.5,
    label_smoothing: float = 0.0,
    loss_type: str = "sigmoid",
    sft_weight: float = 0.0,
) -> Tensor:
    losses = []
    for w, l in b.pairs:
        u = beta * (average(b.tokens("policy", w)) - average(b.tokens("policy", l)) - gamma_beta_ratio)
        smooth = -(1 - label_smoothing) * log_sigmoid(u) - label_smoothing * log_sigmoid(-u)
        losses.append(smooth if loss_type == "sigmoid" else torch.maximum(torch.zeros_like(u), 1 - u))
    return average(losses) + sft_weight * average(token_nll(b, [w for w, _ in b.pairs]))


def kto(b: Ragged, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Tensor:
    m = b.extras["mismatched"]
    z0 = max(0.0, average([ratio(m, i, total) for i in range(len(m.mask))]).item())
    losses = []
    for i, good in enumerate(b.notes["label"].tolist()):
        h = ratio(b, i, total)
        up, down = 1 - sigmoid(beta * (h - z0)), 1 - sigmoid(beta * (z0 - h))
        losses.append(desirable_weight * up if good else undesirable_weight * down)
    return average(losses)


def sft(b: Ragged) -> Tensor:
    return average(token_nll(b, [w for w, _ in b.pairs] if b.pairs else range(len(b.mask))))


def bt_reward(b: Ragged, use_margin: bool = False, center_coefficient: float = 0.0) -> Tensor:
    losses = []
    for i, (w, l) in enumerate(b.pairs):
        r_w, r_l = total(b.tokens("reward", w)), total(b.tokens("reward", l))
        m = b.notes["margin"][i] if use_margin else 0.0
        losses.append(-log_sigmoid(r_w - r_l - m) + center_coefficient * (r_w + r_l) ** 2)
    return average(losses)


def diffusion_dpo(b: Ragged, beta: float = 5000.0, half_factor: float = 0.5, loss_type: str = "sigmoid") -> Tensor:
    losses = []
    for w, l in b.pairs:  # errors are minus scores; each position is one element here
        error = {(n, i): -average(b.tokens(n, i)) for n in ("policy", "reference") for i in (w, l)}
        margin = (error["reference", w] - error["reference", l]).detach() - (error["policy", w] - error["policy", l])
        hinge = torch.maximum(torch.zeros_like(margin), 1 - beta * margin)
        losses.append(-log_sigmoid(half_factor * beta * margin) if loss_type == "sigmoid" else hinge)
    return average(losses)


CASES: list[tuple[Callable[..., Tensor], dict[str, Any]]] = [
    (dpo, {}),
    (dpo, {"beta": 0.7}),
    (dpo, {"beta": 0.3, "label_smoothing": 0.2}),
    (dpo, {"beta": 0.3, "label_smoothing": 0.2, "loss_type": "robust"}),
    (dpo, {"beta": 0.2, "loss_type": "hinge"}),
    (ipo, {}),
    (ipo, {"beta": 0.5}),
    (ipo, {"beta": 0.05, "normalise": "sum"}),
    (slic, {}),
    (slic, {"delta": 5.0, "reg": 0.0}),
    (slic, {"delta": 0.5, "reg": 2.0}),
    (cpo, {}),
    (cpo, {"beta": 0.4, "cpo_alpha": 0.0}),
    (cpo, {"beta": 0.4, "cpo_alpha": 0.3, "nll": "sequence"}),
    (orpo, {}),
    (orpo, {"beta": 1.3, "nll_scope": "completion"}),
    (simpo, {}),
    (simpo, {"beta": 2.5, "gamma_beta_ratio": 0.0, "sft_weight": 0.4}),
    (simpo, {"beta": 1.5, "gamma_beta_ratio": 1.2, "label_smoothing": 0.1}),
    (simpo, {"beta": 1.5, "loss_type": "hinge"}),
    (kto, {}),
    (kto, {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.25}),
    (sft, {}),
    (bt_reward, {}),
    (bt_reward, {"use_margin": True}),
    (bt_reward, {"center_coefficient": 0.01, "use_margin": True}),
    (diffusion_dpo, {"beta": 2.0}),
    (diffusion_dpo, {"beta": 0.7, "half_factor": 1.0}),
    (diffusion_dpo, {"beta": 0.9, "loss_type": "hinge"}),
]
IDS = [f"{f.__name__}-{'-'.join(f'{k}={v}' for k, v in h.items()) or 'default'}" for f, h in CASES]


def named(f: Callable[..., Tensor]) -> str:
    return f.__name__.replace("_", "-")


@pytest.mark.parametrize(("by_hand", "hyper"), CASES, ids=IDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_and_gradient_are_those_of_the_equation(by_hand, hyper, seed):
    b = ragged(seed)
    leaves = [b.scores["policy"], b.scores["reward"], b.extras["prompt"].policy]

    def gradients(loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]

    mine, want = get_method(named(by_hand), **hyper)(b.responses()).scalar, by_hand(b, **hyper)
    torch.testing.assert_close(mine, want, rtol=1e-12, atol=1e-12)
    for got, expected in zip(gradients(mine), gradients(want), strict=True):
        assert got.isfinite().all()  # NaN under the mask reaches no gradient
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
        assert got.dtype == torch.float64


def test_every_registered_method_of_these_families_has_its_equation_here():
    written = {named(f) for f, _ in CASES}
    assert written <= set(METHODS)


@pytest.mark.parametrize("seed", [3, 4])
def test_sft_on_demonstrations_imitates_every_row(seed):
    b = ragged(seed, pairs=False)
    torch.testing.assert_close(get_method("sft")(b.responses()).scalar, sft(b), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("by_hand", "hyper"), CASES, ids=IDS)
def test_gradcheck(by_hand, hyper):
    b = ragged(11, junk=7.0)
    m = get_method(named(by_hand), **hyper)
    name = "reward" if "scores:reward" in m.needs() else "policy"
    assert torch.autograd.gradcheck(
        lambda x: m(b.responses(**{name: x})).scalar, b.scores[name].detach().requires_grad_()
    )


def test_simpo_gradient_is_the_closed_form_of_its_card():
    b = ragged(5)
    beta, rho = 2.0, 0.5
    m = get_method("simpo")
    got = torch.autograd.grad(m(b.responses()).scalar, b.policy)[0]
    want = torch.zeros_like(got)
    for w, l in b.pairs:
        a_w, a_l = average(b.tokens("policy", w)), average(b.tokens("policy", l))
        slope = beta / len(b.pairs) / (1 + math.exp(beta * (a_w - a_l - rho).item()))
        want[w] -= slope * b.mask[w].double() / b.mask[w].sum()
        want[l] += slope * b.mask[l].double() / b.mask[l].sum()
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_diffusion_dpo_gradient_is_the_closed_form_of_its_card():
    g = torch.Generator().manual_seed(0)
    prediction = torch.randn(4, 3, 2, 2, generator=g, dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 3, 2, 2, generator=g, dtype=torch.float64)
    reference = torch.rand(4, generator=g, dtype=torch.float64)
    beta, n = 3.0, 12
    error = (prediction - target).square().mean((1, 2, 3))
    r = Responses.of(policy_errors=error, reference_errors=reference, pairs="halves")
    loss = get_method("diffusion-dpo", beta=beta)(r).scalar
    got = torch.autograd.grad(loss, prediction)[0]
    margin = (reference[:2] - reference[2:]) - (error[:2] - error[2:]).detach()
    slope = 0.5 * beta * torch.sigmoid(-0.5 * beta * margin) / 2
    sign = torch.cat([slope, -slope])[:, None, None, None]
    torch.testing.assert_close(got, sign * 2 * (prediction - target).detach() / n, rtol=1e-12, atol=1e-14)


def test_diffusion_dpo_reads_summed_errors_with_their_element_counts():
    """A scorer gives summed squared errors and how many elements they sum: the mean is taken here."""
    g = torch.Generator().manual_seed(1)
    pol, ref = (torch.rand(6, 3, generator=g, dtype=torch.float64) * 100 for _ in range(2))
    m = get_method("diffusion-dpo", beta=20.0)
    summed = Responses.of(policy_errors=pol, reference_errors=ref, mask=torch.full((6, 3), 64.0), pairs="halves")
    means = Responses.of(policy_errors=pol.sum(1) / 192, reference_errors=ref.sum(1) / 192, pairs="halves")
    torch.testing.assert_close(m(summed).scalar, m(means).scalar, rtol=1e-12, atol=0)


def test_rewards_and_metrics_carry_what_people_know():
    b = ragged(6)
    r = b.responses()
    meter = Meter()
    meter.add(measures(r, get_method("dpo", beta=0.3)(r)))
    found = meter.flush()
    h_w, h_l = (torch.stack([0.3 * ratio(b, p[i], total) for p in b.pairs]).detach() for i in (0, 1))
    want = {
        "rewards/chosen": h_w.mean(),
        "rewards/rejected": h_l.mean(),
        "rewards/margins": (h_w - h_l).mean(),
        "rewards/accuracies": (h_w > h_l).double().mean(),
        "logps/chosen": torch.stack([total(b.tokens("policy", w)) for w, _ in b.pairs]).mean(),
        "logps/rejected": torch.stack([total(b.tokens("policy", l)) for _, l in b.pairs]).mean(),
        "lengths/chosen": torch.tensor([float(b.mask[w].sum()) for w, _ in b.pairs]).mean(),
        "lengths/rejected": torch.tensor([float(b.mask[l].sum()) for _, l in b.pairs]).mean(),
    }
    assert found.keys() == want.keys()
    for k, v in want.items():
        assert found[k] == pytest.approx(v.item(), rel=1e-5, abs=1e-6), k


REWARDS: list[tuple[str, dict[str, Any], Callable[[Ragged, int], Tensor]]] = [
    ("dpo", {"beta": 0.3}, lambda b, i: 0.3 * ratio(b, i, total)),
    ("ipo", {"beta": 0.3}, lambda b, i: 0.3 * ratio(b, i, average)),
    ("ipo", {"beta": 0.3, "normalise": "sum"}, lambda b, i: 0.3 * ratio(b, i, total)),
    ("slic", {"delta": 2.0}, lambda b, i: total(b.tokens("policy", i))),
    ("cpo", {"beta": 0.3}, lambda b, i: 0.3 * total(b.tokens("policy", i))),
    ("orpo", {"beta": 0.3}, lambda b, i: 0.3 * average(b.tokens("policy", i))),
    ("simpo", {"beta": 3.0, "gamma_beta_ratio": 0.9}, lambda b, i: 3 * average(b.tokens("policy", i))),
    ("bt-reward", {"use_margin": True}, lambda b, i: total(b.tokens("reward", i))),
    ("diffusion-dpo", {"beta": 3.0}, lambda b, i: 1.5 * ratio(b, i, average)),
]


@pytest.mark.parametrize(("name", "hyper", "reward"), REWARDS, ids=[f"{n}-{h}" for n, h, _ in REWARDS])
def test_rewards_of_both_sides_without_any_margin(name, hyper, reward):
    b = ragged(7)
    w, l = get_method(name, **hyper)(b.responses()).rewards
    torch.testing.assert_close(w, torch.stack([reward(b, i) for i, _ in b.pairs]))
    torch.testing.assert_close(l, torch.stack([reward(b, i) for _, i in b.pairs]))


def test_kto_logs_beta_times_log_ratio_and_its_kl():
    b = ragged(8)
    loss = get_method("kto", beta=0.5)(b.responses())
    torch.testing.assert_close(loss.rewards, torch.stack([0.5 * ratio(b, i, total) for i in range(len(b.mask))]))
    m = b.extras["mismatched"]
    mean = average([ratio(m, i, total) for i in range(len(m.mask))]).item()
    assert loss.metrics["kl"].item() == pytest.approx(max(0.0, mean))


def test_kto_z0_is_clamped_after_the_mean_and_carries_no_gradient():
    b = ragged(9)
    m = b.extras["mismatched"]
    for shift in (0.5, -5.0):
        m.scores["policy"] = torch.where(m.mask, m.scores["reference"] + shift, NAN).requires_grad_()
        loss = get_method("kto")(b.responses())
        want = max(0.0, shift * m.mask.sum(1).double().mean().item())
        assert loss.metrics["kl"].item() == pytest.approx(want, abs=1e-12)
        assert torch.autograd.grad(loss.scalar, m.scores["policy"], allow_unused=True)[0] is None
