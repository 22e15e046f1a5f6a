"""Methods that must be each other for some of their settings (the survey's identities), to 1e-9."""

from __future__ import annotations

import math

import pytest
import torch

from prefopt import Responses, annotated, get_method, swap
from prefopt.objectives.method import family
from prefopt.objectives.words import hinge, log1mexp, log_odds, smoothed, soft

R, T = 10, 7


@pytest.fixture
def r() -> Responses:
    g = torch.Generator().manual_seed(0)
    policy, reference = (-2 * torch.rand(R, T, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(R, T, generator=g) < 0.7
    mask[:, 0] = True
    extras = {"prompt": Responses.of(policy_logps=policy[: R // 2].flip(1))}
    return Responses.of(policy.requires_grad_(), reference, mask, pairs="halves", extras=extras)


def made(name: str, **hyper):
    """Without the refusal of keys that have no effect: that they have none is what is shown here."""
    return family(name)(check=False, **hyper)


def same(r: Responses, a, b, factor: float = 1.0) -> None:
    x, y = a(r).scalar, factor * b(r).scalar
    torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)
    leaf = [s.values for s in r.scores.values() if s.values.requires_grad]
    for g, h in zip(torch.autograd.grad(x, leaf), torch.autograd.grad(y, leaf), strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-9)


def test_conservative_and_robust_with_zero_are_dpo(r):
    for loss_type in ("sigmoid", "robust"):
        same(r, made("dpo", loss_type=loss_type, label_smoothing=0.0), get_method("dpo"))


def test_totals_are_as_good_as_tokens(r):
    totals = Responses.of(r.policy.sum(), r.reference.sum(), pairs="halves")
    for m in (get_method("dpo"), get_method("dpo", loss_type="hinge"), get_method("ipo", normalise="sum")):
        torch.testing.assert_close(m(r).scalar, m(totals).scalar, rtol=1e-12, atol=0)


def test_diffusion_dpo_is_dpo_where_all_counts_are_equal():
    g = torch.Generator().manual_seed(1)
    policy, reference = (torch.rand(R, 3, generator=g, dtype=torch.float64) for _ in range(2))
    r = Responses.of(
        policy_errors=policy.requires_grad_(), reference_errors=reference, mask=torch.full((R, 3), 16.0), pairs="halves"
    )
    same(r, get_method("diffusion-dpo", beta=96.0), get_method("dpo", beta=96.0 * 0.5 / 48))
    same(r, get_method("diffusion-dpo", beta=96.0, loss_type="hinge"), get_method("dpo", beta=2.0, loss_type="hinge"))


def test_ipo_is_a_squared_dpo_logit(r):
    squared = swap(get_method("dpo"), compare=lambda u: (u / 0.1 - 1 / (2 * 0.3)).square())
    same(r, get_method("ipo", normalise="sum", beta=0.3), squared)


def test_the_swapped_comparison_is_the_loss_of_that_name(r):
    same(r, swap(get_method("dpo"), compare=hinge), get_method("dpo", loss_type="hinge"))
    same(r, swap(get_method("simpo"), compare=smoothed(0.1)), get_method("simpo", label_smoothing=0.1))


def test_a_link_stands_between_ratio_and_beta(r):
    forward_kl = swap(get_method("dpo", beta=0.3), link=lambda h: 1 - torch.exp(-h))
    h = r.log_ratio.sum()
    z = 0.3 * (torch.exp(-h[R // 2 :]) - torch.exp(-h[: R // 2]))
    torch.testing.assert_close(forward_kl(r).scalar, torch.nn.functional.softplus(-z).mean())


def test_a_weight_on_a_comparison_outlives_its_exchange(r):
    a, b = (swap(get_method("orpo", beta=x), compare=hinge)(r).terms["preference"].mean() for x in (0.5, 1.0))
    torch.testing.assert_close(2 * a, b)


def test_cpo_without_imitation_is_dpo_with_a_flat_reference(r):
    flat = Responses.of(r.policy.values, torch.zeros(R, T, dtype=torch.float64), r.policy.count, pairs="halves")
    same(flat, get_method("cpo", cpo_alpha=0.0), get_method("dpo"))


def test_simpo_without_margin_is_cpo_on_totals_of_one_token():
    g = torch.Generator().manual_seed(2)
    one = Responses.of((-2 * torch.rand(R, 1, generator=g, dtype=torch.float64)).requires_grad_(), pairs="halves")
    same(one, get_method("simpo", beta=0.1, gamma_beta_ratio=0.0), get_method("cpo", cpo_alpha=0.0))


def test_simpo_with_sft_weight_adds_sft(r):
    m = get_method("simpo", sft_weight=0.3)
    torch.testing.assert_close(m(r).scalar, get_method("simpo")(r).scalar + 0.3 * get_method("sft")(r).scalar)


def test_slic_without_imitation_is_a_hinge(r):
    flat = Responses.of(r.policy.values, torch.zeros(R, T, dtype=torch.float64), r.policy.count, pairs="halves")
    same(flat, get_method("slic", reg=0.0), made("dpo", beta=1.0, loss_type="hinge"))


def test_bt_reward_is_dpo_on_its_rewards(r):
    scored = Responses.of(reward_logps=(0.1 * r.log_ratio.sum()).detach().requires_grad_(), pairs="halves")
    torch.testing.assert_close(get_method("bt-reward")(scored).scalar, get_method("dpo")(r).scalar, rtol=1e-9, atol=0)


def test_kto_at_the_reference_is_one_half_and_centred(r):
    at_start = r.replace(
        scores={"policy": r.policy, "reference": r.policy.detach()},
        notes={"label": torch.arange(R) % 2 == 0},
        extras={"mismatched": Responses(scores={"policy": r.reference, "reference": r.reference})},
    )
    assert get_method("kto")(at_start).scalar.item() == pytest.approx(0.5)


def test_at_the_start_every_log_ratio_loss_is_log_two(r):
    start = Responses.of(r.policy.values, r.policy.values.detach(), r.policy.count, pairs="halves")
    for name in ("dpo", "diffusion-dpo"):
        loss = get_method(name)(start).scalar
        assert loss.item() == pytest.approx(math.log(2))
        assert torch.autograd.grad(loss, r.policy.values, retain_graph=True)[0].abs().max() > 0


def test_a_soft_label_of_one_or_one_half(r):
    """p = 1 changes nothing; p = 1 - eps is label smoothing; p = 1/2 teaches an even split."""

    def softened(p: float) -> torch.Tensor:
        notes = dict(r.notes) | {"label_probability": torch.full((R // 2,), p, dtype=torch.float64)}
        return annotated(get_method("dpo"), ["label_probability"])(r.replace(notes=notes)).scalar

    torch.testing.assert_close(softened(1.0), get_method("dpo")(r).scalar)
    torch.testing.assert_close(softened(0.8), get_method("dpo", label_smoothing=0.2)(r).scalar)
    u = torch.tensor([1.5, -0.3], dtype=torch.float64)
    torch.testing.assert_close(soft(smoothed(0.0), torch.tensor(0.5))(u), soft(smoothed(0.0), torch.tensor(0.5))(-u))


def test_an_annotated_margin_is_simpos_margin(r):
    notes = dict(r.notes) | {"margin": torch.full((R // 2,), 1.4, dtype=torch.float64)}
    with_column = annotated(get_method("simpo", gamma_beta_ratio=0.0), ["margin"])(r.replace(notes=notes))
    torch.testing.assert_close(with_column.scalar, get_method("simpo", gamma_beta_ratio=0.7)(r).scalar)


def test_log1mexp_and_log_odds_on_both_branches():
    a = torch.tensor([-1e-12, -1e-6, -0.1, -math.log(2), -1.0, -20.0, -800.0], dtype=torch.float64)
    exact = [math.log(-math.expm1(x)) if x > -0.7 else math.log1p(-math.exp(x)) for x in a.tolist()]
    torch.testing.assert_close(log1mexp(a), torch.tensor(exact, dtype=torch.float64), rtol=1e-14, atol=0)
    p = torch.tensor([0.001, 0.3, 0.9, 0.999999], dtype=torch.float64)
    torch.testing.assert_close(log_odds(p.log()), torch.log(p / (1 - p)), rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(
        log_odds, torch.tensor([-3.0, -0.69, -0.7, -0.01], dtype=torch.float64).requires_grad_()
    )
    for dtype in (torch.float32, torch.float64):
        edge = torch.tensor([0.0, 1e-7, -1e-30], dtype=dtype, requires_grad=True)
        y = log_odds(edge)
        assert y.isfinite().all()
        assert torch.autograd.grad(y.sum(), edge)[0].isfinite().all()
