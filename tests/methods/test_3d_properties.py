"""Flex-DPO and SFT-DPO (2406.07327) by hand, with the closed forms and the exact tabular steps of the card."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ragged import Ragged, ragged
from torch import Tensor

from prefopt import PrefoptError, get_method
from prefopt.scoring.tabular import Table, TabularScorer, fit, pairs_of

USUAL = {"beta_chosen": 0.1, "beta_rejected": 0.08, "sft_gamma": 0.0, "sft_norm": "sum"}


def total(x: list[Tensor]) -> Tensor:
    out = torch.zeros((), dtype=torch.float64)
    for v in x:
        out = out + v
    return out


def parts(b: Ragged, row: int) -> tuple[Tensor, Tensor, int]:
    """log pi(y), the log-ratio, the length."""
    p, q = b.tokens("policy", row), b.tokens("reference", row)
    return total(p), total(p) - total(q).detach(), len(p)


def by_hand(b: Ragged, beta_chosen: float, beta_rejected: float, sft_gamma: float, sft_norm: str) -> Tensor:
    losses = []
    for w, l in b.pairs:
        (lp_w, R_w, n), (_, R_l, _) = parts(b, w), parts(b, l)
        u = beta_chosen * R_w - beta_rejected * R_l
        losses.append(torch.log1p(torch.exp(-u)) - sft_gamma * lp_w / (n if sft_norm == "mean" else 1))
    return total(losses) / len(losses)


CASES: list[dict[str, Any]] = [
    {},
    {"beta_chosen": 0.5, "beta_rejected": 0.05},
    {"beta_rejected": 0.1, "sft_gamma": 0.05},
    {"sft_gamma": 0.4, "sft_norm": "mean"},
]


@pytest.mark.parametrize("hyper", CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_are_those_of_the_card(hyper: dict[str, Any], seed: int) -> None:
    b = ragged(seed)
    set_to = USUAL | hyper
    loss = get_method("3d-properties", **hyper)(b.responses())
    want = by_hand(b, **set_to)
    torch.testing.assert_close(loss.scalar, want, rtol=1e-12, atol=1e-12)
    got, expected = (torch.autograd.grad(x, b.policy)[0] for x in (loss.scalar, want))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)
    for side, beta in ((0, "beta_chosen"), (1, "beta_rejected")):
        rewards = torch.stack([set_to[beta] * parts(b, pair[side])[1] for pair in b.pairs])
        torch.testing.assert_close(loss.rewards[side], rewards)
    gaps = torch.stack([parts(b, w)[1] - parts(b, l)[1] for w, l in b.pairs])
    torch.testing.assert_close(loss.metrics["log_ratio/margin"], gaps)


@pytest.mark.parametrize("norm", ["sum", "mean"])
def test_sequence_gradients_are_the_closed_forms(norm: str) -> None:
    """dL_b/dlog pi(y_w) = -beta+ q - gamma_b, dL_b/dlog pi(y_l) = beta- q; every token of a response has the same."""
    b = ragged(3)
    plus, minus, gamma = 0.3, 0.2, 0.05
    m = get_method("3d-properties", beta_chosen=plus, beta_rejected=minus, sft_gamma=gamma, sft_norm=norm)
    got = torch.autograd.grad(m(b.responses()).scalar, b.policy)[0]
    want = torch.zeros_like(got)
    for w, l in b.pairs:
        (_, R_w, n), (_, R_l, _) = parts(b, w), parts(b, l)
        q = 1 / (1 + math.exp((plus * R_w - minus * R_l).item()))
        want[w] -= b.mask[w].double() * (plus * q + gamma / (n if norm == "mean" else 1)) / len(b.pairs)
        want[l] += b.mask[l].double() * minus * q / len(b.pairs)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


def test_equal_betas_without_sft_are_dpo() -> None:
    b = ragged(4)
    same = get_method("3d-properties", beta_chosen=0.3, beta_rejected=0.3)(b.responses()).scalar
    dpo = get_method("dpo", beta=0.3)(b.responses()).scalar
    torch.testing.assert_close(same, dpo, rtol=1e-14, atol=0)


def test_two_betas_feel_a_common_shift_and_still_start_at_log_2() -> None:
    b = ragged(5)
    m = get_method("3d-properties")
    shifted = b.responses(reference=b.scores["reference"] - 1.0)
    assert abs(m(shifted).scalar - m(b.responses()).scalar) > 1e-3
    start = b.responses(reference=b.policy.detach())
    assert m(start).scalar.item() == pytest.approx(math.log(2), abs=1e-15)


def test_other_names_and_what_is_refused() -> None:
    for key, value in {"beta_chosen": 0.0, "beta_rejected": -0.1, "sft_gamma": -1.0, "sft_norm": "max"}.items():
        with pytest.raises(PrefoptError, match=f"3d-properties.{key} = "):
            get_method("3d-properties", **{key: value})
    with pytest.raises(PrefoptError, match="sft_norm = 'mean' has no effect"):
        get_method("3d-properties", sft_norm="mean")
    assert get_method("flex-dpo") == get_method("3d-properties")
    b = ragged(6)
    flag = "beta_rejected_above_beta_chosen"
    for rejected, expected in ((0.08, 0.0), (0.1, 0.0), (0.2, 1.0)):
        loss = get_method("3d-properties", beta_rejected=rejected)(b.responses())
        assert loss.health[flag].item() == expected


REFERENCE = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.3, 0.4, 0.2]], dtype=torch.float64)
W, L = (0, 1), (1, 3)


@pytest.mark.parametrize(("plus", "minus", "gamma"), [(0.1, 0.1, 0.0), (0.5, 0.1, 0.0), (0.3, 0.3, 0.05)])
def test_steps_of_a_free_table_are_the_update_rule_of_the_card(plus: float, minus: float, gamma: float) -> None:
    """z <- z - lr dL/dz with dL/dz = [-(beta+ q + gamma)(e_w - p) + beta- q (e_l - p)] / prompts, from log ref."""
    lr, seen = 2.0, []
    z = REFERENCE.log()
    expected = []
    for _ in range(26):
        p, losses = torch.softmax(z, -1), []
        move = torch.zeros_like(z)
        for i, (w, l) in enumerate(zip(W, L, strict=True)):
            u = plus * math.log(p[i, w] / REFERENCE[i, w]) - minus * math.log(p[i, l] / REFERENCE[i, l])
            q = 1 / (1 + math.exp(u))
            losses.append(math.log1p(math.exp(-u)) - gamma * math.log(p[i, w]))
            e_w, e_l = torch.eye(4, dtype=torch.float64)[[w, l]]
            move[i] = (-(plus * q + gamma) * (e_w - p[i]) + minus * q * (e_l - p[i])) / 2
        expected.append(
            [sum(losses) / 2, *(p[i, y] for i, (w, l) in enumerate(zip(W, L, strict=True)) for y in (w, l))]
        )
        z = z - lr * move
    method = get_method("3d-properties", beta_chosen=plus, beta_rejected=minus, sft_gamma=gamma)
    fit(
        method, Table(REFERENCE.log()), TabularScorer(REFERENCE), pairs_of([0, 1], W, L), 25,
        lambda p: torch.optim.SGD(p, lr),
        lambda s: seen.append([s.loss.scalar.item(), *(s.logp[i, y].exp() for i in (0, 1) for y in (W[i], L[i]))]),
    )  # fmt: skip
    start = math.log(2) - gamma * sum(math.log(REFERENCE[i, w]) for i, w in enumerate(W)) / 2
    assert seen[0][0] == pytest.approx(start, abs=1e-15)
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected), rtol=1e-12, atol=1e-14)
