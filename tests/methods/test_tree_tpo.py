"""Tree TPO: step rewards and list losses by scalars, DPO as a special case, the defects of the official code."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from prefopt import PrefoptError, Responses, get_method

F64 = torch.float64
GROUPS = [[0, 1, 2], [3, 4]]
STEPS = torch.tensor([[1, 1, 2, 3, 3], [1, 2, 2, 2, 0], [1, 1, 1, 0, 0], [1, 2, 3, 4, 4], [1, 1, 2, 0, 0]])
VALUE = torch.tensor([1.0, 0.3, 0.3, 1.0, 0.45], dtype=F64)
R, T, H = 5, 5, 3


def case(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    made = {k: -2 * torch.rand(R, T, generator=g, dtype=F64) for k in ("policy_logps", "reference_logps")}
    made["policy_logps"].requires_grad_()
    made["hidden"] = torch.randn(R, T, H, generator=g, dtype=F64)
    made["hidden"][STEPS == 0] = torch.nan
    return made | {
        "mask": (STEPS > 0).double(),
        "step_index": STEPS,
        "value": VALUE,
        "group": torch.tensor([0] * 3 + [1] * 2),
    }


def step_rewards(c: dict[str, Tensor], adaptive: bool, mean: bool, beta: float) -> list[Tensor]:
    """s_n of every response; the anchor is the first of its list."""

    def embedding(n: int, k: int) -> list[Tensor] | None:
        at = [t for t in range(T) if STEPS[n, t] == k]
        return [sum(c["hidden"][n, t, h] for t in at) / len(at) for h in range(H)] if at else None

    def weight(n: int, anchor: int, k: int) -> Tensor:
        if not adaptive:
            return torch.ones((), dtype=F64)
        a, b = embedding(n, k), embedding(anchor, k)
        if a is None or b is None:
            return torch.zeros((), dtype=F64)
        norm = lambda x: torch.sqrt(sum(v * v for v in x))
        return 1 + sum(x * y for x, y in zip(a, b)) / (norm(a) * norm(b))

    rewards = []
    for group in GROUPS:
        for n in group:
            total = weights = torch.zeros((), dtype=F64)
            for k in range(1, int(STEPS[n].max()) + 1):
                at = [t for t in range(T) if STEPS[n, t] == k]
                d = sum(c["policy_logps"][n, t] - c["reference_logps"][n, t] for t in at)
                w = weight(n, group[0], k)
                total, weights = total + w * (d / len(at) if mean else d), weights + w
            rewards.append(beta * (total / weights if mean and weights > 0 else total))
    return rewards


def list_loss(s: list[Tensor], kind: str) -> Tensor:
    lists = []
    for group in GROUPS:
        n, loss = len(group), torch.zeros((), dtype=F64)
        order = sorted(group, key=lambda i: (-s[i].item(), i))
        rank = {i: order.index(i) + 1 for i in group}
        for i, j in itertools.product(group, group):
            d, v_i, v_j = s[i] - s[j], VALUE[i].item(), VALUE[j].item()
            if kind == "official_pairwise":
                sign = (v_i > v_j) - (v_i < v_j)
                loss = loss + torch.log1p(torch.exp(-d * sign)) / (n * (n - 1))
            elif v_i > v_j:
                lam = abs(2**v_i - 2**v_j) * abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
                loss = loss + (lam if kind == "lambda" else 1.0) * torch.log1p(torch.exp(-d))
        lists.append(loss)
    return sum(lists) / len(lists)


@pytest.mark.parametrize("kind", ["lambda", "pairwise", "official_pairwise"])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "weighted_mean"])
def test_value_gradient_and_rewards_are_those_of_the_equations(kind: str, adaptive: bool, reduce: str) -> None:
    c = case()
    m = get_method("tree-tpo", list_loss=kind, adaptive_step_reward=adaptive, step_reduce=reduce, beta=0.8)
    out = m(Responses.of(**c))
    s = step_rewards(c, adaptive, reduce == "weighted_mean", 0.8)
    expected = list_loss(s, kind)
    torch.testing.assert_close(out.rewards, torch.stack(s), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.scalar, expected, rtol=1e-10, atol=1e-12)
    mine, theirs = (torch.autograd.grad(x, c["policy_logps"])[0] for x in (out.scalar, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_two_answers_of_one_step_are_dpo() -> None:
    c = {k: v[:2] for k, v in case().items()}
    c |= {"step_index": (STEPS[:2] > 0).long(), "value": torch.tensor([1.0, 0.0])}
    m = get_method("tree-tpo", list_loss="pairwise", adaptive_step_reward=False, beta=0.3)
    dpo = get_method("dpo", beta=0.3)
    tree, pair = m(Responses.of(**c)), dpo(Responses.of(**c, pairs="halves"))
    torch.testing.assert_close(tree.scalar, pair.scalar)


def test_no_gradient_through_cosines_and_shared_first_steps_weigh_two() -> None:
    c = case()
    c["hidden"] = torch.where(STEPS[..., None] > 0, c["hidden"], 0.0).requires_grad_()
    c["hidden"].data[1, 0] = c["hidden"].data[0, :2].mean(0)  # the same first step as the anchor's
    m = get_method("tree-tpo")
    out = m(Responses.of(**c))
    assert torch.autograd.grad(out.scalar, c["hidden"], allow_unused=True)[0] is None
    weights = out.metrics["step_weights"].values
    torch.testing.assert_close(weights[0, :3], torch.full((3,), 2.0, dtype=F64))  # the anchor itself
    assert weights[1, 0].item() == pytest.approx(2)
    assert weights[4, :2].gt(0).all()
    assert not weights[4, 2:].any()  # steps that it does not have


def test_steps_that_the_anchor_lacks_and_states_of_zero_are_no_nan() -> None:
    c = case()
    c["step_index"] = torch.where(STEPS > 0, STEPS, 0).clone()
    c["step_index"][0] = torch.where(STEPS[0] > 0, 1, 0)  # the anchor has one step only
    c["hidden"] = torch.zeros(R, T, H, dtype=F64)
    out = get_method("tree-tpo", step_reduce="weighted_mean")(Responses.of(**c))
    out.scalar.backward()
    assert out.scalar.isfinite()
    assert torch.nan_to_num(c["policy_logps"].grad, nan=7.0).abs().max() < 7


def test_a_tied_list_teaches_nothing_and_counts() -> None:
    c = case()
    c["value"] = torch.tensor([1.0, 0.3, 0.2, 0.5, 0.5], dtype=F64)
    whole = get_method("tree-tpo")(Responses.of(**c))
    first = get_method("tree-tpo")(Responses.of(**{k: v[:3] for k, v in c.items()}))
    torch.testing.assert_close(whole.scalar, first.scalar / 2)
    tied = get_method("tree-tpo")(Responses.of(**{k: v[3:] for k, v in c.items()}))
    assert tied.scalar == 0
    assert not torch.autograd.grad(tied.scalar, c["policy_logps"])[0].any()


@pytest.mark.parametrize("kind", ["lambda", "pairwise", "official_pairwise"])
def test_ranking_gets_better_by_training(kind: str) -> None:
    """The official wrapper -log sigmoid(beta L) learns the reverse."""
    c = case(seed=2)
    m = get_method("tree-tpo", list_loss=kind)
    optimizer = torch.optim.SGD([c["policy_logps"]], lr=0.5)
    with torch.no_grad():  # the worst order
        c["policy_logps"][:] = c["reference_logps"] - VALUE[:, None]
    found = []
    for _ in range(60):
        out = m(Responses.of(**c))
        found.append(out.metrics["ranking_accuracy"].mean().item())
        optimizer.zero_grad()
        out.scalar.backward()
        optimizer.step()
    assert found[0] == 0
    assert found[-1] == 1


def test_refusals() -> None:
    def refused(why: str, **changed: Tensor) -> None:
        with pytest.raises(PrefoptError, match=why):
            get_method("tree-tpo")(Responses.of(**(case() | changed)))

    refused("'value' goes from 0 to 100, expected -1 to 1", value=torch.tensor([100.0, 0, 0, 1, 0]))
    refused("count from 1", step_index=STEPS + (STEPS > 0))
    refused("count from 1", step_index=torch.where(STEPS == 2, 1, torch.where(STEPS == 1, 2, STEPS)))
    c = case()
    del c["hidden"]
    with pytest.raises(PrefoptError, match="needs the feature 'hidden'"):
        get_method("tree-tpo")(Responses.of(**c))
    get_method("tree-tpo", adaptive_step_reward=False)(Responses.of(**c))
    big = case() | {"value": torch.tensor([100.0, 0, 0, 1, 0])}
    get_method("tree-tpo", list_loss="pairwise")(Responses.of(**big))  # any labels rank
    for kw in ({"beta": 0}, {"step_reduce": "max"}, {"list_loss": "ndcg"}):
        with pytest.raises(PrefoptError):
            get_method("tree-tpo", **kw)
