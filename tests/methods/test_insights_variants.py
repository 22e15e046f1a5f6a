"""The baselines that every comparison uses: what their card says beside the equations of test_equations.py."""

from __future__ import annotations

import math

import pytest
import torch
from ragged import ragged

from prefopt import PrefoptError, Responses, get_method


def margin(x: float, name: str, **hyper) -> torch.Tensor:
    """The loss of one pair whose log-ratios differ by x."""
    policy = torch.tensor([x, 0.0], dtype=torch.float64)
    return get_method(name, **hyper)(Responses.of(policy, torch.zeros(2, dtype=torch.float64), pairs="halves")).scalar


def test_robust_can_be_negative_and_conservative_never():
    assert margin(50.0, "dpo", beta=1.0, loss_type="robust", label_smoothing=0.3) < 0
    assert margin(50.0, "dpo", beta=1.0, label_smoothing=0.3) > 0


@pytest.mark.parametrize("eps", [0.05, 0.3, 0.49])
def test_robust_is_unbiased_under_its_noise(eps):
    """(1 - eps) loss(m) + eps loss(-m) is the clean loss."""
    loss = {s: margin(s * 1.3, "dpo", beta=1.0, loss_type="robust", label_smoothing=eps) for s in (1, -1)}
    torch.testing.assert_close((1 - eps) * loss[1] + eps * loss[-1], margin(1.3, "dpo", beta=1.0))


def test_ipo_is_least_at_its_target():
    for normalise in ("mean", "sum"):
        assert margin(1 / (2 * 0.25), "ipo", beta=0.25, normalise=normalise).item() == pytest.approx(0.0, abs=1e-20)


def test_slics_hinge_is_on_raw_sums_and_its_margin_may_be_zero():
    assert margin(3.0, "slic", delta=5.0, reg=0.0).item() == pytest.approx(2.0)
    assert margin(3.0, "slic", delta=0.0, reg=0.1).item() == pytest.approx(-0.3)


def test_orpo_counts_infinite_odds_and_stays_finite():
    policy = torch.tensor([[0.0], [-1.0]], dtype=torch.float64)
    loss = get_method("orpo", nll_scope="completion")(Responses.of(policy, pairs="halves"))
    assert loss.scalar.isfinite()
    assert int(loss.health["infinite_odds"]) == 1


def test_kto_at_z0_zero_weighs_both_kinds_alike():
    b = ragged(2)
    same = b.extras["mismatched"]
    same.scores["policy"] = same.scores["reference"]
    b.scores["policy"] = b.scores["reference"].clone().requires_grad_()
    loss = get_method("kto", desirable_weight=1.2, undesirable_weight=0.6)(b.responses())
    good = b.notes["label"]
    torch.testing.assert_close(loss.terms["value"].values, torch.where(good, 0.6, 0.3).double())


@pytest.mark.parametrize(
    ("name", "hyper", "says"),
    [
        ("dpo", {"label_smoothing": 0.5}, r"must be in \[0, 0.5\)"),
        ("dpo", {"label_smoothing": -0.1}, r"must be in \[0, 0.5\)"),
        ("dpo", {"loss_type": "hinge", "label_smoothing": 0.1}, "has no effect"),
        ("ipo", {"normalise": "average"}, "must be one of mean, sum"),
        ("slic", {"delta": -1.0}, r"must be in \[0, inf\)"),
        ("kto", {"undesirable_weight": 0.0}, r"must be in \(0, inf\)"),
        ("orpo", {"nll_scope": "prompt"}, "must be one of full, completion"),
        ("cpo", {"cpo_alpha": -1.0}, r"must be in \[0, inf\)"),
        ("cpo", {"beta": 0.0}, r"must be in \(0, inf\)"),
    ],
)
def test_bad_settings_are_refused(name, hyper, says):
    with pytest.raises(PrefoptError, match=says):
        get_method(name, **hyper)


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto"])
def test_a_missing_reference_is_named(name):
    r = Responses.of(torch.zeros(2, 3), pairs="halves", label=torch.tensor([True, False]))
    with pytest.raises(PrefoptError, match="Give `reference_logps`"):
        get_method(name)(r)


def test_far_margins_stay_finite_in_half_precision():
    for name, hyper in (("dpo", {}), ("dpo", {"label_smoothing": 0.1}), ("ipo", {}), ("cpo", {}), ("slic", {})):
        policy = torch.tensor([[1e4], [-1e4], [-1e4], [1e4]], dtype=torch.bfloat16).requires_grad_()
        loss = get_method(name, **hyper)(Responses.of(policy, torch.zeros_like(policy), pairs="halves")).scalar
        loss.backward()
        assert math.isfinite(loss.item())
        assert policy.grad.isfinite().all()
