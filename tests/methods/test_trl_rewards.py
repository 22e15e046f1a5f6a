"""TRL's divergences, length rules and their combinations with comparisons: the same numbers from parts put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_trl import PAIRS, Table, agree, logps, stand_in, tokens

from prefopt import Responses, get_method

DPOTrainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer


def case(seed: int, dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[Any, torch.Tensor, Responses, Any]:
    """TRL's loss, the leaf, the same batch here, and TRL's trainer."""
    ids, completion, attention = tokens(seed, 2 * PAIRS)
    policy, reference = (logps(seed + i, completion).to(dtype) for i in (1, 2))
    policy.requires_grad_()
    usual = {"ld_alpha": None, "f_divergence_type": "reverse_kl", "label_smoothing": 0.0, "loss_types": ["sigmoid"]}
    me = stand_in(ref_model=Table({id(ids): reference}), loss_weights=[1.0], use_weighting=False, **(usual | settings))
    inputs = {"input_ids": ids, "completion_mask": completion, "attention_mask": attention}
    theirs = DPOTrainer._compute_loss(me, Table({id(ids): policy}), inputs, False)
    r = Responses.of(policy_logps=policy, reference_logps=reference, mask=completion[:, 1:], pairs="halves")
    return theirs, policy, r, me


LD = {"name": "ld", "alpha": 0.4}


@pytest.mark.parametrize("beta", [0.1, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("theirs", "name", "mine"),
    [
        ({"loss_types": ["sigmoid_norm"]}, "ln-dpo", {}),
        ({"loss_types": ["sigmoid_norm"]}, "dpo", {"length": "mean"}),
        ({"ld_alpha": 0.4}, "ld-dpo", {"ld_alpha": 0.4, "reference": "both"}),
        ({"ld_alpha": 0.4}, "dpo", {"length": LD}),
        ({"ld_alpha": 0.4, "loss_types": ["hinge"]}, "dpo", {"length": LD, "compare": "hinge"}),
        ({"f_divergence_type": "forward_kl"}, "f-dpo", {"divergence": "forward_kl"}),
        ({"f_divergence_type": "js_divergence"}, "f-dpo", {"divergence": "jsd"}),
        ({"f_divergence_type": "js_divergence", "ld_alpha": 0.4}, "dpo", {"link": "jsd", "length": LD}),
        ({"f_divergence_type": "js_divergence", "ld_alpha": 0.4}, "f-dpo", {"divergence": "jsd", "length": LD}),
        ({"f_divergence_type": "forward_kl", "loss_types": ["hinge"]}, "f-dpo", {"divergence": "forward_kl", "compare": "hinge"}),
        (
            {"f_divergence_type": "js_divergence", "loss_types": ["robust"], "label_smoothing": 0.2},
            "dpo",
            {"link": "jsd", "loss_type": "robust", "label_smoothing": 0.2},
        ),
    ],
)  # fmt: skip
def test_dpo_trainer(theirs, name, mine, beta, seed):
    loss, leaf, r, _ = case(seed, beta=beta, **theirs)
    answer = get_method(name, beta=beta, **mine)(r)
    agree(answer.scalar, loss, leaf)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_trls_alpha_is_one_minus_the_papers(alpha, seed):
    """In float32, as TRL's table of limits knows no float64."""
    settings = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 - alpha, "beta": 0.3}
    loss, leaf, r, _ = case(seed, torch.float32, **settings)
    mine = get_method("f-dpo", beta=0.3, divergence="alpha_divergence", alpha=alpha)(r).scalar
    torch.testing.assert_close(mine, loss, rtol=1e-5, atol=1e-6)
    got, want = (torch.autograd.grad(x, leaf)[0] for x in (mine, loss))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


def test_difference_rewards_of_a_divergence():
    """TRL logs beta times the log-ratio whatever the divergence; here the rewards are what is compared, TRL's beside it."""
    _, _, r, me = case(0, f_divergence_type="js_divergence", beta=0.3)
    loss = get_method("f-dpo", beta=0.3, divergence="jsd")(r)
    theirs = me._metrics["train"]["rewards/chosen"][0]
    assert loss.metrics["log_ratio_rewards/chosen"].mean().item() == pytest.approx(theirs)
    assert abs(loss.rewards[0].mean().item() - theirs) > 1e-3


def test_difference_a_divergence_of_a_normalised_ratio():
    """TRL divides f'(ratio of the response) by its length; here the link is that of the ratio per token."""
    theirs, _, r, _ = case(0, f_divergence_type="js_divergence", loss_types=["sigmoid_norm"], beta=2.0)
    assert abs(theirs.item() - get_method("ln-dpo", link="jsd")(r).scalar.item()) > 1e-4
