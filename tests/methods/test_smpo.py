"""SmPO (2506.02698) and DDIM-InPO (2503.18454) on plain errors, with scalars; inversion itself: tests/scoring."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from prefopt import PrefoptError, Responses, get_method

P, N = 6, 12  # pairs, elements
LOW, HIGH = 0.11543526500463486, 0.28201571106910706


def material(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Errors of policy and reference [2P] (summed over N elements), raw cosine scores [2P], pairs [P, 2]."""
    g = torch.Generator().manual_seed(seed)
    policy, reference = torch.rand(2, 2 * P, generator=g, dtype=torch.float64) * N * 0.02
    scores = LOW + (HIGH - LOW) * torch.rand(2 * P, generator=g, dtype=torch.float64)
    pairs = torch.stack([torch.arange(P) + P, torch.arange(P)], 1)
    return policy.requires_grad_(), reference, scores, pairs


def batch(policy: torch.Tensor, reference: torch.Tensor, pairs: torch.Tensor, **notes: Any) -> Responses:
    mask = torch.full((2 * P, 1), float(N), dtype=torch.float64)
    return Responses.of(policy_errors=policy, reference_errors=reference, mask=mask, pairs=pairs, **notes)


def by_hand(seed: int, beta: float, gamma: float | None, low: float = LOW, high: float = HIGH) -> tuple[float, list]:
    """Loss and its gradient with respect to the summed errors of the policy; gamma None: hard labels."""
    policy, reference, scores, pairs = material(seed)
    total, grad = 0.0, [0.0] * (2 * P)
    for w, l in pairs.tolist():
        margin = (reference[w] - reference[l]).item() / N - (policy[w] - policy[l]).item() / N
        omega = 1.0
        if gamma is not None:
            r_w, r_l = ((scores[i].item() - low) / (high - low) for i in (w, l))
            p = math.exp(r_w) / (math.exp(r_w) + math.exp(r_l))
            alpha = gamma * p
            omega = 2 * alpha - gamma
        logit = 0.5 * beta * omega * margin
        total += math.log1p(math.exp(-logit)) / P
        slope = -1 / (1 + math.exp(logit)) / P * 0.5 * beta * omega / N
        grad[w] -= slope
        grad[l] += slope
    return total, grad


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("beta", "gamma"), [(2000.0, 10.0), (500.0, 1.0), (5000.0, 20.0)])
def test_smpo_is_the_equation(seed: int, beta: float, gamma: float) -> None:
    policy, reference, scores, pairs = material(seed)
    m = get_method("smpo", base={"name": "diffusion-dpo", "beta": beta}, gamma=gamma)
    loss = m(batch(policy, reference, pairs, reward_score=scores)).scalar
    want, grad = by_hand(seed, beta, gamma)
    assert loss.item() == pytest.approx(want, rel=1e-12)
    found = torch.autograd.grad(loss, policy)[0]
    torch.testing.assert_close(found, torch.tensor(grad, dtype=torch.float64), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("beta", "half"), [(2000.0, 0.5), (700.0, 1.0)])
def test_inpo_on_given_errors_is_diffusion_dpo(beta: float, half: float) -> None:
    policy, reference, _, pairs = material(3)
    loss = get_method("inpo", beta=beta, half_factor=half)(batch(policy, reference, pairs)).scalar
    assert loss.item() == pytest.approx(by_hand(3, 2 * half * beta, None)[0], rel=1e-12)


def test_defaults_are_the_published_ones() -> None:
    policy, reference, scores, pairs = material(4)
    found = get_method("smpo")(batch(policy, reference, pairs, reward_score=scores)).scalar.item()
    assert found == pytest.approx(by_hand(4, 2000.0, 10.0)[0], rel=1e-12)
    assert get_method("inpo").needs()["noising:ddim_inversion"]["how"] == {"steps": 10, "eta": 0.1, "exact_tau": False}
    smpo = get_method("smpo").needs()["noising:ddim_inversion"]["how"]
    assert smpo == {"steps": 10, "corrections": 1, "exact_tau": False}


def test_a_certain_preference_is_a_hard_label() -> None:
    """alpha = gamma = 1: omega = 1, which is Diffusion-DPO on the same inputs."""
    policy, reference, _, pairs = material(5)
    scores = torch.zeros(2 * P, dtype=torch.float64)
    scores[pairs[:, 0]] = 1e6
    m = get_method("smpo", gamma=1.0, reward_min=0.0, reward_max=1.0)
    plain = get_method("diffusion-dpo", beta=2000.0)(batch(policy, reference, pairs)).scalar
    assert m(batch(policy, reference, pairs, reward_score=scores)).scalar.item() == pytest.approx(
        plain.item(), rel=1e-12
    )


def test_the_score_alone_says_who_wins() -> None:
    policy, reference, scores, pairs = material(6)
    one = get_method("smpo")(batch(policy, reference, pairs, reward_score=scores)).scalar
    other = get_method("smpo")(batch(policy, reference, pairs.flip(1), reward_score=scores)).scalar
    assert one.item() == pytest.approx(other.item(), rel=1e-12)


def test_equal_scores_teach_nothing() -> None:
    policy, reference, scores, pairs = material(7)
    scores[pairs[:, 0]] = scores[pairs[:, 1]]
    out = get_method("smpo")(batch(policy, reference, pairs, reward_score=scores))
    assert out.scalar.item() == pytest.approx(math.log(2))
    assert float(torch.autograd.grad(out.scalar, policy)[0].abs().max()) == 0


def test_the_range_may_be_that_of_the_data() -> None:
    policy, reference, scores, pairs = material(8)
    m = get_method("smpo", reward_min=None, reward_max=None)
    low, high = float(scores.min()), float(scores.max())
    here = m(batch(policy, reference, pairs, reward_score=scores)).scalar.item()
    assert here == pytest.approx(by_hand(8, 2000.0, 10.0, low, high)[0], rel=1e-12)  # plain numbers: of the batch
    told = m.counted({}, {"reward_score": [-1.0, 3.0]})
    assert (told.hyper["reward_min"], told.hyper["reward_max"]) == (-1.0, 3.0)
    found = told(batch(policy, reference, pairs, reward_score=scores)).scalar.item()
    assert found == pytest.approx(by_hand(8, 2000.0, 10.0, -1.0, 3.0)[0], rel=1e-12)


def test_scores_outside_the_range_are_counted() -> None:
    policy, reference, scores, pairs = material(9)
    scores[0], scores[1] = HIGH + 1, LOW - 1
    out = get_method("smpo")(batch(policy, reference, pairs, reward_score=scores))
    assert out.health["scores_outside_range"].item() == 2


def test_inversion_may_be_left_out() -> None:
    needs = get_method("smpo", latents="noised").needs()
    assert needs["noising:forward"] == {} and "noising:ddim_inversion" not in needs
    with pytest.raises(PrefoptError, match="inversion_steps = 5 has no effect"):
        get_method("smpo", latents="noised", inversion_steps=5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"gamma": 0}, "smpo.gamma = 0"),
        ({"reward_min": 1.0, "reward_max": 1.0}, "must be above reward_min"),
        ({"inversion_steps": 0}, "inversion_steps = 0"),
        ({"corrections": -1}, "corrections = -1"),
        ({"reward_min": "low"}, "smpo.reward_min = 'low'"),
        ({"base": {"name": "diffusion-dpo", "beta": -1}}, "diffusion-dpo.beta = -1"),
        ({"base": "sft"}, "no comparison"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(PrefoptError, match=words):
        get_method("smpo", **wrong)


def test_scores_beyond_the_range_are_told_once() -> None:
    beyond = {"ranges": {"reward_score": [-1.0, 2.0]}}
    (said,) = get_method("smpo").advice(beyond)
    assert "-1 to 2" in said
    assert "null" in said
    assert get_method("smpo").advice({"ranges": {"reward_score": [0.12, 0.28]}}) == []
    assert get_method("smpo", reward_min=None, reward_max=None).advice(beyond) == []
    (said,) = get_method("smpo", reward_min=None, reward_max=1.0).advice(beyond)
    assert "null .. 1." in said
