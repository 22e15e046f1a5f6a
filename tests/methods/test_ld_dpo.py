"""LD-DPO (eq. 11) one token at a time; LN-DPO likewise: two rules for length."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import agree, average, over_pairs, ratios, total
from ragged import Ragged, ragged
from torch import Tensor

from prefopt import PrefoptError, Responses, get_method
from prefopt.objectives.method import family


def weights(b: Ragged, row: int, partner: int, alpha: float, cut: bool) -> list[float]:
    n, m = len(b.tokens("policy", row)), len(b.tokens("policy", partner))
    return [1.0 if t < min(n, m) or not cut else alpha for t in range(n)]


def reward(b: Ragged, row: int, partner: int, alpha: float, reference: str, cut: bool = True) -> Tensor:
    w = weights(b, row, partner, alpha, cut)
    logp = total([k * p for k, p in zip(w, b.tokens("policy", row), strict=True)])
    w = w if reference == "both" else [1.0] * len(w)
    return logp - total([k * q.detach() for k, q in zip(w, b.tokens("reference", row), strict=True)])


@pytest.mark.parametrize("reference", ["policy_only", "both"])
@pytest.mark.parametrize("side", ["both", "chosen", "rejected"])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_and_gradient_are_those_of_the_equation(reference, side, alpha, seed):
    b = ragged(seed)
    assert any(len(b.tokens("policy", w)) != len(b.tokens("policy", l)) for w, l in b.pairs)

    def logit(w: int, l: int) -> Tensor:
        r_w = reward(b, w, l, alpha, reference, side != "rejected")
        return 0.3 * (r_w - reward(b, l, w, alpha, reference, side != "chosen"))

    m = get_method("ld-dpo", beta=0.3, ld_alpha=alpha, reference=reference, side=side)
    agree(b, m, over_pairs(b, logit))
    got = m(b.responses())
    for i, name in enumerate(("chosen", "rejected")):
        plain = torch.stack([0.3 * total(ratios(b, p[i])) for p in b.pairs])
        torch.testing.assert_close(got.metrics[f"log_ratio_rewards/{name}"], plain)


def test_it_is_equation_12_too():
    """alpha times the whole sum plus (1 - alpha) times the sum of the public part."""
    b = ragged(3)
    w, l = b.pairs[0]
    n = min(len(b.tokens("policy", w)), len(b.tokens("policy", l)))
    for row in (w, l):
        x = b.tokens("policy", row)
        by_12 = 0.4 * total(x) + 0.6 * total(x[:n])
        mine = total([k * p for k, p in zip(weights(b, row, l if row == w else w, 0.4, True), x, strict=True)])
        torch.testing.assert_close(by_12, mine)


def test_at_the_start_both_is_log_two_and_policy_only_an_offset_for_length():
    policy = torch.full((4, 5), -1.0, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    r = Responses.of(policy, policy, mask, pairs="halves")
    both = get_method("ld-dpo", reference="both")(r)
    assert both.scalar.item() == pytest.approx(math.log(2), abs=1e-12)
    margin = get_method("ld-dpo", beta=0.1, ld_alpha=0.5)(r).terms["preference"].logit
    torch.testing.assert_close(margin, torch.tensor([0.1 * 0.5 * 2, -0.1 * 0.5 * 2], dtype=torch.float64))


def test_a_stored_sum_of_the_reference_is_enough_for_policy_only_alone():
    b = ragged(5)
    r = b.responses()
    totals = r.replace(scores={"policy": r.policy, "reference": Responses.of(r.reference.sum()).score("policy")})
    torch.testing.assert_close(get_method("ld-dpo")(totals).scalar, get_method("ld-dpo")(r).scalar)
    with pytest.raises(PrefoptError, match="do not stand at the same"):
        get_method("ld-dpo", reference="both")(totals)


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"ld_alpha": 1.1}, r"must be in \[0, 1\]"),
        ({"ld_alpha": math.nan}, r"must be in \[0, 1\]"),
        ({"beta": 0.0}, r"must be in \(0, inf\)"),
        ({"length": "mean"}, "has a length rule of its own"),
        ({"token_weight": {"name": "decay", "gamma": 0.9}}, "policy and reference apart"),
        ({"ld_alpha": 1.0, "side": "chosen"}, "ld-dpo.side = 'chosen' has no effect"),
        ({"ld_alpha": 1.0, "reference": "both"}, "ld-dpo.reference = 'both' has no effect"),
    ],
)
def test_bad_settings_are_refused(hyper, says):
    with pytest.raises(PrefoptError, match=says):
        get_method("ld-dpo", **hyper)


def test_no_signal_is_counted_where_the_tail_is_all_that_differs():
    """alpha = 0 and one response that begins with the other: both sides are the same number."""
    same = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -2.0, -0.5], [-1.0, -2.0, 0.0], [-1.5, -2.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]])
    r = Responses.of(same, torch.zeros_like(same), mask, pairs="halves")
    assert get_method("ld-dpo", ld_alpha=0.0)(r).health["no_signal"].item() == 1
    assert "no_signal" not in get_method("ld-dpo", ld_alpha=0.5)(r).health


@pytest.mark.parametrize("beta", [2.0, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_ln_dpo_divides_each_ratio_by_its_own_length(beta, seed):
    b = ragged(seed)
    m = get_method("ln-dpo", beta=beta)
    agree(b, m, over_pairs(b, lambda w, l: beta * (average(ratios(b, w)) - average(ratios(b, l)))))
    w, l = m(b.responses()).rewards
    torch.testing.assert_close(w, torch.stack([beta * average(ratios(b, i)) for i, _ in b.pairs]))
    torch.testing.assert_close(l, torch.stack([beta * average(ratios(b, i)) for _, i in b.pairs]))


def test_ln_dpo_refuses_a_second_length_rule_that_changes_nothing():
    with pytest.raises(PrefoptError, match="ln-dpo.length = mean has no effect"):
        get_method("ln-dpo", length="mean")
    with pytest.raises(PrefoptError, match="no hyperparameter 'ld_alpha'"):
        get_method("ln-dpo", ld_alpha=0.5)


def test_defaults_are_the_papers():
    """alpha 0.5 of the policy only (eq. 11); beta 2 for a mean per token; both stand under length bias in the survey."""
    assert get_method("ld-dpo").record() == {
        "name": "ld-dpo", "beta": 0.1, "ld_alpha": 0.5, "reference": "policy_only", "side": "both",
    }  # fmt: skip
    assert get_method("ln-dpo").record() == {"name": "ln-dpo", "beta": 2.0}
    for name in ("ld-dpo", "ln-dpo"):
        assert (family(name).tags, family(name).surveyed) == (("length_bias",), True)


@pytest.mark.parametrize("side", ["both", "chosen", "rejected"])
def test_no_signal_is_counted_only_where_both_sides_lose_their_tails(side):
    """With one side whole, its tail still teaches."""
    x = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -2.0, -9.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    r = Responses.of(x, 0.5 * x, mask=mask, pairs="halves")
    health = get_method("ld-dpo", ld_alpha=0.0, side=side)(r).health
    assert health == ({"no_signal": 1} if side == "both" else {})
    assert not get_method("ld-dpo", ld_alpha=0.3, side=side)(r).health
