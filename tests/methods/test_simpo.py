"""SimPO: what its card says beside the equation (which test_equations.py and test_trl.py hold)."""

from __future__ import annotations

import pytest
import torch
from ragged import ragged

from prefopt import PrefoptError, Responses, get_method
from prefopt.training.engine import measures


def test_the_margin_is_gamma_over_beta_inside_the_bracket():
    """u = beta (a_w - a_l) - gamma with gamma = beta * ratio, not beta (a_w - a_l - gamma)."""
    r = Responses.of(torch.tensor([[-1.0, -2.0], [-3.0, -2.5]], dtype=torch.float64), pairs="halves")
    u = get_method("simpo", beta=2.5, gamma_beta_ratio=0.4)(r).terms["preference"].logit
    torch.testing.assert_close(u, torch.tensor([2.5 * (-1.5 + 2.75) - 1.0], dtype=torch.float64))


def test_rewards_have_no_margin_and_order_as_the_average_log_probability():
    b = ragged(1)
    r = b.responses()
    found = measures(r, get_method("simpo", beta=3.0, gamma_beta_ratio=5.0)(r))
    average = torch.stack([torch.stack([torch.stack(b.tokens("policy", i)).mean() for i in p]) for p in b.pairs])
    torch.testing.assert_close(found["rewards/chosen"], 3 * average[:, 0])
    assert torch.equal(found["rewards/accuracies"], (average[:, 0] > average[:, 1]).float())
    tie = Responses.of(torch.full((2, 2), -1.0), pairs="halves")
    assert measures(tie, get_method("simpo")(tie))["rewards/accuracies"].item() == 0


def test_the_length_is_of_scored_tokens_only():
    policy = torch.tensor([[-1.0, -2.0, -9.0], [-4.0, -9.0, -9.0]], dtype=torch.float64)
    r = Responses.of(policy, mask=torch.tensor([[1, 1, 0], [1, 0, 0]]), pairs="halves")
    w, l = get_method("simpo", beta=1.0)(r).rewards
    assert (w.item(), l.item()) == (-1.5, -4.0)


def test_it_asks_for_the_policy_alone():
    assert set(get_method("simpo").needs()) == {"scores:policy", "notes:pairs"}


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"beta": 0.0}, r"must be in \(0, inf\)"),
        ({"gamma_beta_ratio": float("nan")}, r"must be in \[0, inf\)"),
        ({"gamma_beta_ratio": -0.1}, r"must be in \[0, inf\)"),
        ({"label_smoothing": 0.5}, r"must be in \[0, 0.5\)"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing = 0.1 has no effect"),
        ({"loss_type": "sigmiod"}, "must be one of sigmoid, hinge"),
        ({"sft_weight": -1.0}, r"must be in \[0, inf\)"),
        ({"gamma": 1.0}, "no hyperparameter 'gamma'; it has beta, gamma_beta_ratio"),
    ],
)
def test_bad_settings_are_refused(hyper, says):
    with pytest.raises(PrefoptError, match=says):
        get_method("simpo", **hyper)
