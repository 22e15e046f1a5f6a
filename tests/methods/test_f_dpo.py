"""f-DPO: table 1 one token at a time, safe far from the reference, and true at the optimum of a finite response space."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import agree, over_pairs, ratios, total
from ragged import ragged
from torch import Tensor

from prefopt import PrefoptError, Responses, get_method
from prefopt.objectives import links

EVERY = [
    {"divergence": "reverse_kl"},
    {"divergence": "forward_kl"},
    {"divergence": "jsd"},
    {"divergence": "alpha_divergence", "alpha": 0.3},
    {"divergence": "alpha_divergence", "alpha": 0.9},
]
IDS = [f"{h['divergence']}{h.get('alpha', '')}" for h in EVERY]


def f_prime(u: Tensor, divergence: str, alpha: float = 0.0) -> Tensor:
    """The derivative of the f of table 1, by its textbook form."""
    if divergence == "reverse_kl":  # u log u
        return torch.log(u) + 1
    if divergence == "forward_kl":  # -log u
        return -1 / u
    if divergence == "jsd":  # u log u - (u + 1) log((u + 1)/2)
        return torch.log(u) + 1 - torch.log((u + 1) / 2) - 1
    return ((1 - alpha) * u**-alpha - (1 - alpha)) / (alpha * (alpha - 1))


@pytest.mark.parametrize("hyper", EVERY, ids=IDS)
@pytest.mark.parametrize("beta", [0.1, 1.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_are_those_of_the_equation(hyper, beta, seed):
    b = ragged(seed)

    def s(row: int) -> Tensor:
        return f_prime(torch.exp(total(ratios(b, row))), **hyper)

    agree(b, get_method("f-dpo", beta=beta, **hyper), over_pairs(b, lambda w, l: beta * (s(w) - s(l))))


@pytest.mark.parametrize("hyper", EVERY, ids=IDS)
def test_the_scores_are_exactly_the_logged_forms(hyper):
    b = ragged(4)
    loss = get_method("f-dpo", beta=0.5, **hyper)(b.responses())
    R = [torch.stack([total(ratios(b, p[i])) for p in b.pairs]) for i in (0, 1)]
    a = hyper.get("alpha", 0.0)
    form = {
        "reverse_kl": lambda x: x,
        "forward_kl": lambda x: -torch.exp(-x),
        "jsd": lambda x: torch.log(2 * x.exp() / (1 + x.exp())),
        "alpha_divergence": lambda x: -torch.exp(-a * x) / a,
    }[hyper["divergence"]]
    for got, x, name in zip(loss.rewards, R, ("chosen", "rejected"), strict=True):
        torch.testing.assert_close(got, 0.5 * form(x))
        torch.testing.assert_close(loss.metrics[f"log_ratio_rewards/{name}"], 0.5 * x)


def test_limits_of_alpha():
    """alpha -> 0 is reverse KL, alpha -> 1 forward KL (up to constants); TRL's alpha is one minus this one."""
    r = ragged(2).responses()
    near = [get_method("f-dpo", divergence="alpha_divergence", alpha=a)(r).scalar for a in (1e-9, 1 - 1e-9)]
    for got, divergence in zip(near, ("reverse_kl", "forward_kl"), strict=True):
        want = get_method("f-dpo", divergence=divergence, alpha=None)(r).scalar
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("hyper", EVERY, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_far_from_the_reference_everything_stays_finite_and_points_the_right_way(hyper, dtype):
    far = [1e4, 87.0, 3.0, -60.0, -1e4]
    chosen, rejected = zip(*[(a, b) for a in far for b in far], strict=True)
    policy = torch.tensor([*chosen, *rejected], dtype=dtype)[:, None].requires_grad_()
    r = Responses.of(policy, torch.zeros_like(policy), pairs="halves")
    loss = get_method("f-dpo", beta=0.1, **hyper)(r)
    each = loss.terms["preference"].values
    assert each.isfinite().all()
    grad = torch.autograd.grad(each.double().sum(), policy)[0][:, 0].double()
    assert grad.isfinite().all()
    n = len(chosen)
    assert (grad[:n] <= 0).all()
    assert (grad[n:] >= 0).all()
    for i, (a, b) in enumerate(zip(chosen, rejected, strict=True)):
        if a == b:
            assert each[i].item() == pytest.approx(math.log(2), rel=1e-3)
        if a == -60.0 and b == 3.0:
            assert grad[i] < 0, "a suppressed chosen response is pulled up"


def test_clamped_rows_are_counted():
    policy = torch.tensor([-100.0, 0.0, 0.0, -100.0])[:, None]
    m = get_method("f-dpo", divergence="forward_kl")
    health = m(Responses.of(policy, torch.zeros(4, 1), pairs="halves")).health
    assert {k: int(v) for k, v in health.items()} == {"clamped_chosen": 1, "clamped_rejected": 1}
    assert not get_method("f-dpo", divergence="jsd")(Responses.of(policy, torch.zeros(4, 1), pairs="halves")).health


@pytest.mark.parametrize("hyper", EVERY, ids=IDS)
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_the_optimum_of_the_population_loss_has_the_reward_of_the_divergence(hyper, beta):
    """A softmax over 6 responses with a known reward r: at the minimum f'(pi/pi_ref) - r/beta is one constant."""
    n, g = 6, torch.Generator().manual_seed(0)
    reference = torch.log_softmax(torch.randn(n, generator=g, dtype=torch.float64), 0)
    reward = torch.randn(n, generator=g, dtype=torch.float64)
    pairs = torch.tensor([(i, j) for i in range(n) for j in range(n) if i != j])
    weight = torch.sigmoid(reward[pairs[:, 0]] - reward[pairs[:, 1]])
    logits = reference.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([logits], max_iter=3000, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  history_size=20, line_search_fn="strong_wolfe")  # fmt: skip
    m = get_method("f-dpo", beta=beta, **hyper)

    def closure() -> Tensor:
        optimiser.zero_grad()
        r = Responses.of(torch.log_softmax(logits, 0), reference, pairs=pairs)
        loss = m(r).weighted(weight).scalar
        loss.backward()
        return loss

    for _ in range(5):
        optimiser.step(closure)
    u = (torch.log_softmax(logits, 0) - reference).exp().detach()
    constant = f_prime(u, **hyper) - reward / beta
    assert (constant.max() - constant.min()).item() < 1e-3


@pytest.mark.parametrize("hyper", EVERY, ids=IDS)
def test_the_divergence_estimate_is_unbiased_and_never_negative(hyper):
    """Summed over the whole space it is sum_y pi_ref f(pi/pi_ref), and each sample's number is at least 0."""
    f = {
        "reverse_kl": lambda u: u * torch.log(u),
        "forward_kl": lambda u: -torch.log(u),
        "jsd": lambda u: u * torch.log(u) - (u + 1) * torch.log((u + 1) / 2),
        "alpha_divergence": lambda u: (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1)),
    }[hyper["divergence"]]
    a = hyper.get("alpha", 0.5)
    g = torch.Generator().manual_seed(1)
    p, q = (torch.softmax(torch.randn(9, generator=g, dtype=torch.float64), 0) for _ in range(2))
    each = links.divergence(torch.log(p / q), hyper["divergence"], a)
    assert (each >= 0).all()
    torch.testing.assert_close((p * each).sum(), (q * f(p / q)).sum())
    assert links.divergence(torch.zeros(3), hyper["divergence"], a).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"divergence": "chi_squared"}, "must be one of reverse_kl, .*chi_squared: .*support"),
        ({"divergence": "total_variation"}, "total_variation: .*no reward"),
        ({"divergence": "alpha_divergence"}, "alpha_divergence needs an alpha"),
        ({"divergence": "alpha_divergence", "alpha": 1.0}, r"f-dpo.alpha = 1.0: must be in \(0, 1\)"),
        ({"divergence": "alpha_divergence", "alpha": 0.0}, r"must be in \(0, 1\)"),
        ({"divergence": "jsd", "alpha": 0.3}, "f-dpo.alpha = 0.3 has no effect"),
        ({"alpha": 0.3}, "has no effect"),
        ({"beta": 0.0}, r"must be in \(0, inf\)"),
        ({"label_smoothing": 0.1}, "no hyperparameter 'label_smoothing'"),
        ({"link": "jsd"}, "its divergence is its link"),
    ],
)
def test_bad_settings_are_refused(hyper, says):
    with pytest.raises(PrefoptError, match=says):
        get_method("f-dpo", **hyper)


def test_it_needs_a_reference():
    with pytest.raises(PrefoptError, match="Give `reference_logps`"):
        get_method("f-dpo", divergence="jsd")(Responses.of(torch.zeros(2, 3), pairs="halves"))


def test_the_default_is_dpo():
    assert get_method("f-dpo").record() == {"name": "f-dpo", "beta": 0.1, "divergence": "reverse_kl", "alpha": None}


@pytest.mark.parametrize(
    ("hyper", "power"),
    [({"divergence": "forward_kl"}, 1.0), ({"divergence": "alpha_divergence", "alpha": 0.25}, 0.25)],
    ids=["forward_kl", "alpha"],
)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 700.0), (torch.float32, 80.0)])
def test_a_side_is_clamped_just_where_its_exponent_passes_the_cap(hyper, power, dtype, most):
    """Each side by itself; up to the cap the reward is exact, and its slope is there."""
    for side, beyond in ((0, True), (1, True), (0, False), (1, False)):
        R = torch.zeros(2, dtype=dtype)
        R[side] = -(most + (1 if beyond else -1)) / power
        R = R.requires_grad_()
        loss = get_method("f-dpo", **hyper)(Responses.of(R, torch.zeros(2, dtype=dtype), pairs="halves"))
        told = {k: int(v) for k, v in loss.health.items()}
        assert told == {"clamped_chosen": int(beyond and side == 0), "clamped_rejected": int(beyond and side == 1)}
        reward = loss.rewards[side][0]
        slope = torch.autograd.grad(reward, R)[0][side]
        assert (slope == 0) == beyond
        if not beyond:
            exact = -0.1 * math.exp(most - 1) / (1 if power == 1.0 else power)
            assert reward.item() == pytest.approx(exact, rel=1e-3 if dtype == torch.float32 else 1e-9)
