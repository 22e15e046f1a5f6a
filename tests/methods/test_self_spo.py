"""Self-supervised SPO: the degree task by scalars around several methods, gamma 0, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prefopt import PrefoptError, Responses, get_method

F64 = torch.float64
R, T, K, D = 4, 3, 3, 2
VALID = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 0]])
PAIRS = torch.tensor([[0, 1], [2, 3]])


def case(**more: Tensor) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    made = {k: -torch.rand(R, T, generator=g, dtype=F64) for k in ("policy_logps", "reference_logps")}
    made["policy_logps"].requires_grad_()
    made["graded_features"] = torch.randn(R, K, D, generator=g, dtype=F64, requires_grad=True)
    return made | {"graded_valid": VALID, "pairs": PAIRS} | more


def degree_loss(f: Tensor, head: torch.nn.Linear, rows: tuple[int, ...]) -> tuple[Tensor, float]:
    """Mean over answers and valid levels of -log softmax(W f + b)[k], and the share guessed rightly."""
    losses, right = [], []
    for n in rows:
        for k in range(K):
            if VALID[n, k]:
                z = [sum(head.weight[j, d] * f[n, k, d] for d in range(D)) + head.bias[j] for j in range(K)]
                losses.append(torch.log(sum(torch.exp(x) for x in z)) - z[k])
                right.append(max(range(K), key=lambda j: z[j].item()) == k)
    return sum(losses) / len(losses), sum(right) / len(right)


@pytest.mark.parametrize(("sides", "rows"), [("both", (0, 1, 2, 3)), ("chosen", (0, 2)), ("rejected", (1, 3))])
@pytest.mark.parametrize("base", ["dpo", "ipo", "simpo", "slic"])
def test_value_and_gradient_are_those_of_the_equations(base: str, sides: str, rows: tuple[int, ...]) -> None:
    c = case()
    m = get_method("self-spo", base=base, gamma=0.3, head_init="normal", sides=sides)
    torch.manual_seed(1)
    r = m.init(Responses.of(**c))
    head = r.modules["degree_head"]
    out = m(r)
    expected, right = degree_loss(c["graded_features"], head, rows)
    theirs = get_method(base)(r).scalar + 0.3 * expected
    torch.testing.assert_close(out.scalar, theirs, rtol=1e-10, atol=1e-12)
    assert out.metrics["degree_accuracy"].mean().item() == pytest.approx(right)
    leaves = [c["policy_logps"], c["graded_features"], *head.parameters()]
    mine, by_hand = (torch.autograd.grad(x, leaves, retain_graph=True) for x in (out.scalar, theirs))
    for x, y in zip(mine, by_hand, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
    assert torch.autograd.grad(m(r).scalar, c["graded_features"])[0].any(), "the policy must learn the degrees"


def test_a_head_of_zeros_begins_at_log_k_and_moves_the_policy_once_it_has_moved() -> None:
    c = case()
    m = get_method("self-spo")
    r = m.init(Responses.of(**c))
    assert m(r).terms["degree"].mean().item() == pytest.approx(0.1 * torch.log(torch.tensor(3.0)).item())
    assert not torch.autograd.grad(m(r).scalar, c["graded_features"])[0].any()
    loss = m(r).scalar
    grads = torch.autograd.grad(loss, list(r.modules["degree_head"].parameters()))
    with torch.no_grad():
        for p, g in zip(r.modules["degree_head"].parameters(), grads, strict=True):
            p -= 0.1 * g
    assert torch.autograd.grad(m(r).scalar, c["graded_features"])[0].any()


def test_gamma_zero_is_the_base_and_asks_for_nothing() -> None:
    m, dpo = get_method("self-spo", gamma=0.0), get_method("dpo")
    assert m.needs() == dpo.needs()
    r = Responses.of(**case())
    state = torch.random.get_rng_state()
    assert torch.equal(m(m.init(r)).scalar, dpo(r).scalar)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_valid_is_a_loss_of_zero() -> None:
    m = get_method("self-spo", head_init="normal")
    r = m.init(Responses.of(**case(graded_valid=torch.zeros(R, K))))
    assert m(r).terms["degree"].mean() == 0
    assert m(r).scalar.isfinite()


def test_ratios_reach_whoever_builds_the_versions() -> None:
    how = get_method("self-spo", levels=4).needs()["features:graded_features"]["how"]
    assert how["ratios"] == (0, 1 / 3, 2 / 3, 1)
    how = get_method("self-spo", ratios=[0, 0.2, 0.9], feature="mean", degrade="hidden", sides="chosen").needs()
    assert how["features:graded_features"]["how"] == {
        "pool": "mean", "degrade": "hidden", "ratios": (0, 0.2, 0.9), "sides": "chosen"
    }  # fmt: skip
    assert get_method("self-spo", head_rate=10).needs()["modules:degree_head"]["rate"] == 10


@pytest.mark.parametrize(
    ("kw", "why"),
    [
        ({"levels": 1}, "at least 2"),
        ({"ratios": [0]}, "self-spo.ratios"),
        ({"ratios": [0, 0.5, 0.5]}, "self-spo.ratios"),
        ({"ratios": [0.1, 0.5, 1]}, "self-spo.ratios"),
        ({"ratios": [0, 0.5, 1.2]}, "self-spo.ratios"),
        ({"ratios": [0, 1]}, "one for each of the 3 levels"),
        ({"gamma": -1}, "must be in"),
        ({"feature": "first"}, "must be one of"),
        ({"sides": "left"}, "must be one of"),
        ({"base": "no-such-method"}, "no method"),
        ({"degrade": "hidden"}, "feature = mean"),
        ({"gamma": 0, "levels": 4}, "no effect"),
    ],
)
def test_refusals(kw: dict, why: str) -> None:
    with pytest.raises(PrefoptError, match=why):
        get_method("self-spo", **kw)
