"""D2PO, R-DPO, SamPO, DPOP, NPO, SimNPO and TIS-DPO: a few lines each, computed one token at a time in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ragged import Ragged, ragged
from torch import Tensor

from prefopt import PrefoptError, Responses, get_method


def ratios(b: Ragged, row: int) -> list[Tensor]:
    return [p - q.detach() for p, q in zip(b.tokens("policy", row), b.tokens("reference", row), strict=True)]


def total(x: list[Tensor]) -> Tensor:
    out = torch.zeros((), dtype=torch.float64)
    for v in x:
        out = out + v
    return out


def minus_log_sigmoid(u: Tensor) -> Tensor:
    return torch.log1p(torch.exp(-u))


def over_pairs(b: Ragged, logit: Callable[[int, int], Tensor]) -> Tensor:
    return total([minus_log_sigmoid(logit(w, l)) for w, l in b.pairs]) / len(b.pairs)


def d2po(b: Ragged, beta: float = 0.1, gamma: float = 0.98) -> Tensor:
    def reward(row: int) -> Tensor:
        return beta * total([gamma**t * h for t, h in enumerate(ratios(b, row))])

    return over_pairs(b, lambda w, l: reward(w) - reward(l))


def r_dpo(b: Ragged, beta: float = 0.1, alpha: float = 0.01) -> Tensor:
    def logit(w: int, l: int) -> Tensor:
        h_w, h_l = ratios(b, w), ratios(b, l)
        return beta * (total(h_w) - total(h_l)) + alpha * (len(h_w) - len(h_l))

    return over_pairs(b, logit)


def sampo(b: Ragged, beta: float = 0.1, tokens: str = "expected") -> Tensor:
    def logit(w: int, l: int) -> Tensor:
        h_w, h_l = ratios(b, w), ratios(b, l)
        m = min(len(h_w), len(h_l))
        return beta * m * (total(h_w) / len(h_w) - total(h_l) / len(h_l))

    return over_pairs(b, logit)


def dpop(b: Ragged, beta: float = 0.3, lam: float = 50.0) -> Tensor:
    def logit(w: int, l: int) -> Tensor:
        h_w, h_l = total(ratios(b, w)), total(ratios(b, l))
        return beta * (h_w - h_l - lam * torch.maximum(torch.zeros_like(h_w), -h_w))

    return over_pairs(b, logit)


def npo(b: Ragged, beta: float = 0.1) -> Tensor:
    values = [2 / beta * torch.log1p(torch.exp(beta * total(ratios(b, l)))) for _, l in b.pairs]
    return total(values) / len(values)


def simnpo(b: Ragged, beta: float = 2.5, gamma: float = 0.0) -> Tensor:
    values = []
    for _, l in b.pairs:
        p = b.tokens("policy", l)
        values.append(2 / beta * minus_log_sigmoid(-beta / len(p) * total(p) - gamma))
    return total(values) / len(values)


CASES: list[tuple[Callable[..., Tensor], dict[str, Any]]] = [
    (d2po, {}),
    (d2po, {"beta": 0.4, "gamma": 0.5}),
    (r_dpo, {}),
    (r_dpo, {"beta": 0.4, "alpha": 0.6}),
    (sampo, {"tokens": "expected"}),
    (sampo, {"beta": 0.4, "tokens": "expected"}),
    (dpop, {}),
    (dpop, {"beta": 0.1, "lam": 2.0}),
    (npo, {}),
    (npo, {"beta": 0.7}),
    (simnpo, {}),
    (simnpo, {"beta": 0.5, "gamma": 1.0}),
]


@pytest.mark.parametrize(("by_hand", "hyper"), CASES, ids=[f"{f.__name__}-{h}" for f, h in CASES])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_and_gradient_are_those_of_the_equation(by_hand, hyper, seed):
    b = ragged(seed)
    mine = get_method(by_hand.__name__.replace("_", "-"), **hyper)(b.responses()).scalar
    want = by_hand(b, **hyper)
    torch.testing.assert_close(mine, want, rtol=1e-12, atol=1e-12)
    got, expected = (torch.autograd.grad(x, b.policy)[0] for x in (mine, want))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "off"),
    [("d2po", {"gamma": 1.0}), ("r-dpo", {"alpha": 0.0}), ("dpop", {"lam": 0.0, "beta": 0.1})],
)
def test_switched_off_it_is_dpo(name, off):
    b = ragged(3)
    mine, dpo = (get_method(n, **h)(b.responses()) for n, h in ((name, off), ("dpo", {})))
    torch.testing.assert_close(mine.scalar, dpo.scalar, rtol=1e-13, atol=0)
    for a, e in zip(mine.rewards, dpo.rewards, strict=True):
        torch.testing.assert_close(a, e)


def test_sampo_draws_as_many_tokens_on_both_sides_and_all_of_the_shorter():
    b = ragged(4)
    loss = get_method("sampo", beta=1.0)(b.responses())
    slope = torch.autograd.grad(loss.rewards[0].sum(), b.policy, retain_graph=True)[0]
    other = torch.autograd.grad(loss.rewards[1].sum(), b.policy)[0]
    once = [pair for pair in b.pairs if all(sum(row in p for p in b.pairs) == 1 for row in pair)]
    assert once
    for w, l in once:
        m = min(int(b.mask[w].sum()), int(b.mask[l].sum()))
        for row, grad in ((w, slope), (l, other)):
            assert set(grad[row].tolist()) <= {0.0, 1.0}
            assert int(grad[row].sum()) == m
            assert not grad[row][~b.mask[row]].any()


def test_sampo_draws_differently_for_other_lengths_and_equally_again():
    def drawn(short: int) -> list[float]:
        mask = torch.ones(2, 40)
        mask[1, short:] = 0
        p = torch.zeros(2, 40, dtype=torch.float64, requires_grad=True)
        r = Responses.of(policy_logps=p, reference_logps=torch.zeros(2, 40), mask=mask, pairs="halves")
        return torch.autograd.grad(get_method("sampo", beta=1.0)(r).rewards[0].sum(), p)[0][0].tolist()

    assert drawn(20) == drawn(20)
    assert drawn(20) != drawn(21)
    places = [i for i, x in enumerate(drawn(20)) if x]
    assert len(places) == 20
    assert 10 < sum(places) / 20 < 30  # spread over the answer, not its beginning
    assert places != list(range(places[0], places[0] + 20))


def test_npo_forgets_rows_labelled_false():
    b = ragged(5, pairs=False)
    b.notes["label"][:2] = torch.tensor([True, False])
    rows = [i for i, good in enumerate(b.notes["label"].tolist()) if not good]
    want = total([2 / 0.1 * torch.log1p(torch.exp(0.1 * total(ratios(b, i)))) for i in rows]) / len(rows)
    torch.testing.assert_close(get_method("npo")(b.responses()).scalar, want, rtol=1e-12, atol=0)


def test_a_small_beta_of_npo_is_gradient_ascent():
    b = ragged(6)
    got = torch.autograd.grad(get_method("npo", beta=1e-7)(b.responses()).scalar, b.policy)[0]
    want = torch.zeros_like(got)
    for _, l in b.pairs:
        want[l] += b.mask[l].double() / len(b.pairs)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-8)


def test_npo_starts_at_two_over_beta_log_two():
    b = ragged(7)
    loss = get_method("npo", beta=0.2)(b.responses(reference=b.policy.detach())).scalar
    assert loss.item() == pytest.approx(2 / 0.2 * math.log(2), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("d2po", "gamma", 1.2),
        ("r-dpo", "alpha", -0.1),
        ("dpop", "lam", -1.0),
        ("sampo", "tokens", "all"),
        ("npo", "beta", 0),
    ],
)
def test_values_that_mean_nothing_are_refused(name, key, value):
    with pytest.raises(PrefoptError, match=f"{name}.{key} = "):
        get_method(name, **{key: value})


@pytest.mark.parametrize("hyper", [{}, {"beta": 0.4, "mu": 0.5, "low": -1.0, "high": 0.2}, {"mu": 0.0}], ids=str)
def test_tis_dpo_weighs_tokens_by_two_other_models(hyper):
    set_to = {"beta": 0.1, "mu": 1.0, "low": -0.5, "high": 1.5} | hyper
    b = ragged(8)
    for seed, name in ((21, "positive"), (22, "negative")):
        other = -3 * torch.rand(b.mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        b.scores[name] = torch.where(b.mask, other, torch.nan)

    def reward(row: int, sign: int) -> Tensor:
        h = ratios(b, row)
        gap = [p - n for p, n in zip(b.tokens("positive", row), b.tokens("negative", row), strict=True)]
        weights = [math.exp(sign * set_to["mu"] * min(max(g.item(), set_to["low"]), set_to["high"])) for g in gap]
        return set_to["beta"] * total([w * x for w, x in zip(weights, h, strict=True)])

    want = over_pairs(b, lambda w, l: reward(w, 1) - reward(l, -1))
    mine = get_method("tis-dpo", **hyper)(b.responses()).scalar
    torch.testing.assert_close(mine, want, rtol=1e-12, atol=1e-12)
    got, expected = (torch.autograd.grad(x, b.policy)[0] for x in (mine, want))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)


def test_tis_dpo_wants_a_range():
    with pytest.raises(PrefoptError, match="low = 2.0 must be below high"):
        get_method("tis-dpo", low=2.0)
