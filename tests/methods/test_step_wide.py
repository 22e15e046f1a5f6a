"""Methods that look at a whole optimiser step: beta-DPO's mean margin, and DRO's value of a prompt."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import agree, average, log_sigmoid, ratios, total
from ragged import Ragged, ragged
from test_survey_losses import GROUPS, noted
from torch import Tensor

from prefopt import Responses, get_method


def gaps(b: Ragged) -> list[Tensor]:
    return [total(ratios(b, w)) - total(ratios(b, l)) for w, l in b.pairs]


def beta_dpo(
    b: Ragged, beta: float, alpha: float, mean: float, M_0: float = 0.0, variance: float | None = None
) -> Tensor:
    """variance: of the running margins, where pairs are weighed by their distance from M_0."""
    h = gaps(b)
    M = [beta * x.item() for x in h]
    near = [1.0 if variance is None else math.exp(-((m - M_0) ** 2) / (2 * variance)) for m in M]
    share = [n * len(h) / sum(near) for n in near]
    if variance is not None:
        mean = sum(n * m for n, m in zip(near, M, strict=True)) / sum(near)
    step_beta = max(beta * (1 + alpha * (mean - M_0)), 1e-3)
    return average([-s * log_sigmoid(step_beta * x) for s, x in zip(share, h, strict=True)])


def mean_margin(b: Ragged, beta: float) -> float:
    return beta * average(gaps(b)).item()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("beta", "alpha"), [(0.1, 0.6), (0.4, 2.0)])
def test_beta_follows_the_mean_margin_of_the_step(seed, beta, alpha):
    b = ragged(seed)
    agree(b, get_method("beta-dpo", beta=beta, alpha=alpha), beta_dpo(b, beta, alpha, mean_margin(b, beta)))


def test_beta_dpo_measures_against_the_running_mean_and_weighs_by_it():
    b = ragged(2)
    r = b.responses().replace(states={"margin": torch.tensor([0.3, 0.5], dtype=torch.float64)})
    plain = get_method("beta-dpo", beta=0.4)(r)
    torch.testing.assert_close(plain.scalar, beta_dpo(b, 0.4, 0.6, mean_margin(b, 0.4), 0.3), rtol=1e-12, atol=0)
    filtered = get_method("beta-dpo", beta=0.4, filtered=True)(r)
    torch.testing.assert_close(filtered.scalar, beta_dpo(b, 0.4, 0.6, 0.0, 0.3, 0.5 - 0.3**2), rtol=1e-12, atol=0)
    u = plain.updates["margin"]
    M = torch.stack([0.4 * x.detach() for x in gaps(b)])
    want = 0.9 * torch.tensor([0.3, 0.5], dtype=torch.float64) + 0.1 * torch.stack([M.mean(), (M * M).mean()])
    torch.testing.assert_close(u.advance(r.states["margin"], u.sum, u.count), want, rtol=1e-12, atol=0)


def test_beta_stays_positive():
    b = ragged(3)
    r = b.responses().replace(states={"margin": torch.tensor([1e4, 1e8], dtype=torch.float64)})
    assert get_method("beta-dpo")(r).metrics["beta"].item() == pytest.approx(1e-3)


def test_a_mean_of_the_whole_step_is_taken_from_outside_where_there_is_one():
    b = ragged(4)
    r = b.responses().replace(statistics={"margin": torch.tensor(2.5, dtype=torch.float64)})
    torch.testing.assert_close(get_method("beta-dpo")(r).scalar, beta_dpo(b, 0.1, 0.6, 2.5), rtol=1e-12, atol=0)


def test_quantiles_of_the_whole_step_are_taken_from_outside_where_they_are():
    """A pair in the middle of its own step: matched with the reference's median, not with its own."""
    b = ragged(5)
    one = b.responses().replace(notes={"pairs": torch.tensor(b.pairs[:1])})
    w, l = b.pairs[0]
    u = total(b.tokens("policy", w)) - total(b.tokens("policy", l))
    every = {"policy": u.detach() + torch.tensor([-1.0, 0.0, 1.0]), "reference": torch.tensor([-7.0, 0.25, 9.0])}
    loss = get_method("aot", beta=0.5)(one.replace(statistics={k: x.double() for k, x in every.items()}))
    torch.testing.assert_close(loss.scalar, -log_sigmoid(0.5 * (u - 0.25)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_dro_leaves_each_prompt_its_own_value(beta):
    b = noted(6)
    s, losses = b.notes["score"], []
    for rows in GROUPS:
        rest = {i: s[i] - beta * total(ratios(b, i)) for i in rows}
        value = average(list(rest.values()))
        losses += [(rest[i] - value) ** 2 / 2 for i in rows]
    agree(b, get_method("dro", beta=beta), average(losses))


def test_dro_counts_prompts_with_one_response():
    zero = torch.zeros(3, dtype=torch.float64)
    r = Responses.of(zero - 1, zero, score=torch.tensor([1.0, 2.0, 5.0]).double(), group=torch.tensor([0, 0, 1]))
    loss = get_method("dro")(r)
    assert loss.health["alone"] == 1
    assert loss.scalar.item() == pytest.approx((0.25 / 2 + 0.25 / 2 + 0) / 3)
