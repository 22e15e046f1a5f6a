"""TDPO (2404.11999) from whole logits, position by position in float64, and what its card states."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt import PrefoptError, Responses, get_method

V, T, ROWS = 7, 5, 6


def material(seed: int) -> dict[str, Any]:
    """Logits of policy (a leaf) and reference, labels, a ragged mask with holes, three pairs."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(ROWS, T, generator=g) < 0.6
    mask[:, 0] |= ~mask.any(1)
    return {
        "policy": (2 * torch.randn(ROWS, T, V, generator=g, dtype=torch.float64)).requires_grad_(),
        "reference": 2 * torch.randn(ROWS, T, V, generator=g, dtype=torch.float64),
        "labels": torch.randint(V, (ROWS, T), generator=g),
        "mask": mask,
        "pairs": [(4, 1), (0, 5), (3, 2)],
    }


def responses(m: dict[str, Any]) -> Responses:
    lp, lq = torch.log_softmax(m["policy"], -1), torch.log_softmax(m["reference"], -1)
    at = m["labels"][..., None]
    return Responses.of(
        policy_logps=lp.gather(2, at)[..., 0],
        reference_logps=lq.gather(2, at)[..., 0],
        token_kl_logps=(lq.exp() * (lq - lp)).sum(-1),
        mask=m["mask"],
        pairs=torch.tensor(m["pairs"]),
    )


def log_probability(logits: Tensor, v: int) -> Tensor:
    return logits[v] - torch.log(sum(torch.exp(logits[u]) for u in range(V)))


def by_hand(m: dict[str, Any], beta: float, alpha: float, variant: str) -> tuple[Tensor, list[tuple[float, float]]]:
    """The card's loss with scalars, and the logged rewards of every pair."""

    def sums(row: int) -> tuple[Tensor, Tensor]:
        R = K = torch.zeros((), dtype=torch.float64)
        for t in range(T):
            if m["mask"][row, t]:
                p, q = m["policy"][row, t], m["reference"][row, t]
                y = int(m["labels"][row, t])
                R = R + log_probability(p, y) - log_probability(q, y)
                for v in range(V):
                    lq = log_probability(q, v)
                    K = K + math.exp(lq) * (lq - log_probability(p, v))
        return R, K

    total, rewards = torch.zeros((), dtype=torch.float64), []
    for w, l in m["pairs"]:
        (R_w, K_w), (R_l, K_l) = sums(w), sums(l)
        pull = K_l - K_w if variant == "tdpo1" else alpha * (K_l - K_w.item())
        h = R_w - R_l - pull
        total = total + torch.log1p(torch.exp(-beta * h))
        rewards.append((beta * (R_w + K_w).item(), beta * (R_l + K_l).item()))
    return total / len(m["pairs"]), rewards


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "hyper", [{}, {"beta": 0.4, "alpha": 1.3}, {"beta": 0.3, "variant": "tdpo1"}, {"alpha": 0.0}], ids=str
)
def test_value_gradient_and_rewards_are_those_of_the_card(hyper: dict[str, Any], seed: int) -> None:
    m = material(seed)
    loss = get_method("tdpo", **hyper)(responses(m))
    want, rewards = by_hand(m, **({"beta": 0.1, "alpha": 0.5, "variant": "tdpo2"} | hyper))
    torch.testing.assert_close(loss.scalar, want, rtol=1e-12, atol=1e-12)
    got, expected = (torch.autograd.grad(x, m["policy"])[0] for x in (loss.scalar, want))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)
    assert not got[~m["mask"]].any()
    found = torch.stack(loss.rewards, 1)
    torch.testing.assert_close(found.detach(), torch.tensor(rewards, dtype=torch.float64), rtol=1e-11, atol=1e-12)


def test_the_kl_of_each_side_is_logged() -> None:
    m = material(2)
    r = responses(m)
    metrics = get_method("tdpo")(r).metrics
    kl = r.score("token_kl").sum()
    for name, rows in (("chosen", [4, 0, 3]), ("rejected", [1, 5, 2])):
        torch.testing.assert_close(metrics[f"seq_kl/{name}"].detach(), kl[rows])
    torch.testing.assert_close(metrics["seq_kl/margin"].detach(), kl[[1, 5, 2]] - kl[[4, 0, 3]])


def test_alpha_of_one_has_the_value_of_tdpo1_and_another_gradient() -> None:
    m = material(3)
    values, gradients = [], []
    for hyper in ({"alpha": 1.0}, {"variant": "tdpo1"}):
        loss = get_method("tdpo", **hyper)(responses(m)).scalar
        values.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, m["policy"])[0])
    torch.testing.assert_close(*values, rtol=1e-14, atol=0)
    chosen, rejected = (m["mask"][[p[i] for p in m["pairs"]]] for i in (0, 1))
    apart = (gradients[0] - gradients[1]).abs()
    assert apart[[p[0] for p in m["pairs"]]][chosen].max() > 1e-3
    assert apart[[p[1] for p in m["pairs"]]][rejected].max() < 1e-15


def test_alpha_of_zero_is_dpo() -> None:
    m = material(4)
    answers = [get_method("tdpo", beta=0.3, alpha=0.0)(responses(m)), get_method("dpo", beta=0.3)(responses(m))]
    assert answers[0].scalar.item() == pytest.approx(answers[1].scalar.item(), abs=1e-14)
    a, b = (torch.autograd.grad(x.scalar, m["policy"])[0] for x in answers)
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize(("variant", "moves"), [("tdpo1", False), ("tdpo2", True)])
def test_of_an_answer_preferred_to_itself_only_tdpo2_learns(variant: str, moves: bool) -> None:
    m = material(5)
    m["pairs"] = [(1, 1), (3, 3)]
    loss = get_method("tdpo", variant=variant)(responses(m)).scalar
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert bool(torch.autograd.grad(loss, m["policy"])[0].abs().max() > 1e-6) == moves


def test_a_larger_alpha_holds_the_rejected_kl_harder() -> None:
    """The gradient of the loss along K(rejected) is beta alpha sigmoid(-beta h), along K(chosen) nothing."""
    m = material(6)
    slopes = []
    for alpha in (0.0, 0.2, 0.5, 1.0):
        r = responses(m)
        kl = r.scores["token_kl"].values.detach().requires_grad_()
        r = r.replace(scores={**r.scores, "token_kl": r.scores["token_kl"].like(kl)})
        loss = get_method("tdpo", alpha=alpha)(r).scalar
        slope = torch.autograd.grad(loss, kl, allow_unused=True)[0]
        slope = torch.zeros_like(kl) if slope is None else slope
        assert not slope[[4, 0, 3]].any()
        slopes.append(slope[[1, 5, 2]].sum().item())
    assert slopes == sorted(slopes)
    assert slopes[0] == 0.0 < slopes[1]


def test_what_it_asks_and_refuses() -> None:
    assert {"scores:policy", "scores:reference", "scores:token_kl", "notes:pairs"} == set(get_method("tdpo").needs())
    assert get_method("tdpo").needs()["scores:token_kl"]["grad"]
    for key, value in {"beta": 0.0, "alpha": -0.1, "variant": "tdpo3"}.items():
        with pytest.raises(PrefoptError, match=f"tdpo.{key} = "):
            get_method("tdpo", **{key: value})
    with pytest.raises(PrefoptError, match="alpha = 0.7 has no effect"):
        get_method("tdpo", variant="tdpo1", alpha=0.7)
    m = material(7)
    r = responses(m)
    without = {k: v for k, v in r.scores.items() if k != "token_kl"}
    with pytest.raises(PrefoptError, match="tdpo: needs scores 'token_kl'"):
        get_method("tdpo")(r.replace(scores=without))
