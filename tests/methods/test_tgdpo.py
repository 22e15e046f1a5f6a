"""TGDPO (2506.14574) token by token with scalars, and what its card states."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ragged import ragged
from torch import Tensor

from prefopt import PrefoptError, Responses, get_method


def material(seed: int) -> tuple[Any, Responses]:
    b = ragged(seed, extras=False)
    b.scores["token_reward"] = b.scores.pop("reward").detach()
    b.notes.clear()
    return b, b.responses()


def by_hand(b: Any, beta: float = 0.1, alpha: float = 0.5, reward_beta: float | None = None,
            floor: float | None = None, gamma_sft: float = 0.0) -> Tensor:  # fmt: skip
    total = torch.zeros((), dtype=torch.float64)
    for w, l in b.pairs:
        h = torch.zeros((), dtype=torch.float64)
        for row, sign in ((w, 1.0), (l, -1.0)):
            tokens = zip(*(b.tokens(n, row) for n in ("policy", "reference", "token_reward")), strict=True)
            for p, q, m in tokens:
                f = 1 + sign * alpha * (reward_beta or beta) * (m.item() - q.item())
                f = max(f, floor) if floor is not None else f
                h = h + sign * beta * f * (p - q.item())
        nll = -sum(b.tokens("policy", w)) / len(b.tokens("policy", w))
        total = total + torch.log1p(torch.exp(-h)) + gamma_sft * nll
    return total / len(b.pairs)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "hyper",
    [
        {},
        {"beta": 0.7, "alpha": 2.0},
        {"reward_beta": 1.5, "alpha": 1.0},
        {"reward_beta": 2.0, "alpha": 1.0, "floor": 0.6},
        {"gamma_sft": 0.3},
    ],
    ids=str,
)
def test_value_and_gradient_are_those_of_the_card(hyper: dict[str, Any], seed: int) -> None:
    b, r = material(seed)
    loss, want = get_method("tgdpo", **hyper)(r).scalar, by_hand(b, **hyper)
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(x, b.policy)[0][b.mask] for x in (loss, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_without_guidance_it_is_dpo(seed: int) -> None:
    b, r = material(seed)
    dpo = get_method("dpo")(r).scalar
    torch.testing.assert_close(get_method("tgdpo", alpha=0.0)(r).scalar, dpo, rtol=1e-14, atol=0)
    same = b.responses(token_reward=b.scores["reference"])
    torch.testing.assert_close(get_method("tgdpo", alpha=2.0)(same).scalar, dpo, rtol=1e-14, atol=0)


def test_the_margin_is_dpos_and_a_part_without_label() -> None:
    b, r = material(3)
    hyper = {"beta": 0.4, "alpha": 1.2}
    loss = get_method("tgdpo", **hyper)(r)
    free = []
    for w, l in b.pairs:
        total = 0.0
        for row in (w, l):
            for p, q, m in zip(*(b.tokens(n, row) for n in ("policy", "reference", "token_reward")), strict=True):
                total += 0.4 * 1.2 * 0.4 * (m.item() - q.item()) * (p.item() - q.item())
        free.append(total)
    torch.testing.assert_close(loss.metrics["margin/label_free"], torch.tensor(free, dtype=torch.float64))
    swapped = get_method("tgdpo", **hyper)(r.swapped()).metrics
    torch.testing.assert_close(swapped["margin/label_free"], loss.metrics["margin/label_free"])
    torch.testing.assert_close(swapped["margin/dpo"], -loss.metrics["margin/dpo"])
    rewards = get_method("dpo", beta=0.4)(r).rewards
    for ours, dpo in zip(loss.rewards, rewards, strict=True):  # what is logged is the plain reward
        torch.testing.assert_close(ours, dpo)


def test_equal_answers_do_not_give_log_two_unless_the_policy_is_the_reference() -> None:
    g = torch.Generator().manual_seed(0)
    y, q, m = (-torch.rand(1, 4, generator=g, dtype=torch.float64) for _ in range(3))

    def loss(policy: Tensor) -> float:
        both = {k: torch.cat([v, v]) for k, v in {"policy": policy, "reference": q, "token_reward": m}.items()}
        r = Responses.of(**{f"{k}_logps": v for k, v in both.items()}, pairs="halves")
        return get_method("tgdpo", beta=1.0)(r).scalar.item()

    assert loss(q) == pytest.approx(math.log(2), abs=1e-15)
    assert abs(loss(y) - math.log(2)) > 1e-4


def test_it_warns_of_strengths_that_push_chosen_tokens_down_and_of_a_margin_without_label() -> None:
    q = torch.full((2, 3), -1.0, dtype=torch.float64)
    m = torch.tensor([[-9.0, -1.0, -1.0], [-1.0, -1.0, -1.0]], dtype=torch.float64)
    p = torch.tensor([[-1.5, -1.0, -1.0], [-1.5, -1.0, -1.0]], dtype=torch.float64)
    r = Responses.of(policy_logps=p, reference_logps=q, token_reward_logps=m, pairs="halves")
    health = get_method("tgdpo", beta=1.0, alpha=0.5)(r).health
    assert health["non_positive_strengths"] == 1  # 1 + 0.5 (-8)
    assert health["label_free_part_dominates"]  # both sides equal: DPO's margin is 0
    calm = get_method("tgdpo", beta=0.1, alpha=0.5)(
        r.replace(scores=r.scores | {"token_reward": r.scores["reference"]})
    )
    assert not any(v for v in calm.health.values())
    floored = get_method("tgdpo", beta=1.0, alpha=0.5, floor=0.1)(r)
    assert floored.health["non_positive_strengths"] == 0


@pytest.mark.parametrize("hyper", [{"beta": 0.0}, {"alpha": -0.1}, {"reward_beta": 0.0}, {"floor": -1.0}], ids=str)
def test_bad_hyperparameters(hyper: dict[str, float]) -> None:
    with pytest.raises(PrefoptError, match=f"tgdpo.{next(iter(hyper))} = "):
        get_method("tgdpo", **hyper)


def test_scores_of_unequal_length_and_missing_ones_are_refused() -> None:
    b, r = material(0)
    for name in ("token_reward", "reference"):
        without = r.replace(scores={k: v for k, v in r.scores.items() if k != name})
        with pytest.raises(PrefoptError, match=name):
            get_method("tgdpo")(without)
    longer = Responses.of(token_reward_logps=-torch.ones(len(b.mask), 9)).scores
    with pytest.raises(PrefoptError, match="do not stand at the same"):
        get_method("tgdpo")(r.replace(scores=r.scores | longer))
