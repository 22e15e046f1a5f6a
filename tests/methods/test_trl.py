"""The same numbers as TRL 1.16, value and gradient, from TRL's own loss functions on the same tensors.

TRL's losses are methods of trainers: they are called here on a stand-in that has only what the loss reads, with a
"model" that answers tables of numbers. docs/differences.md says where the two differ, and each line of it that
concerns a loss is a test at the end of this file.
"""

from __future__ import annotations

import types

import pytest
import torch
from ragged import ragged

from prefopt import Responses, get_method

pytest.importorskip("trl", reason="TRL is in the extra `bench`: pip install 'prefopt[bench]'")
pytest.importorskip("trl.trainer.dpo_trainer")

from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl_cases import (
    PAIRS,
    Table,
    agree,
    cpo_like,
    dpo_case,
    kto_case,
    logps,
    stand_in,
    tokens,
)


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("theirs", "name", "mine"),
    [
        ({"loss_types": ["sigmoid"]}, "dpo", {}),
        ({"loss_types": ["hinge"]}, "dpo", {"loss_type": "hinge"}),
        ({"loss_types": ["robust"], "label_smoothing": 0.15}, "dpo", {"loss_type": "robust", "label_smoothing": 0.15}),
        ({"loss_types": ["ipo"]}, "ipo", {}),
    ],
)
def test_dpo_trainer(theirs, name, mine, beta, seed):
    loss, leaf, r, me = dpo_case(seed, **({"label_smoothing": 0.0} | theirs), beta=beta)
    answer = get_method(name, beta=beta, **mine)(r)
    agree(answer.scalar, loss, leaf)
    if name == "dpo":
        w, l = answer.rewards
        assert me._metrics["train"]["rewards/chosen"][0] == pytest.approx(w.mean().item())
        assert me._metrics["train"]["rewards/margins"][0] == pytest.approx((w - l).mean().item())
        assert me._metrics["train"]["rewards/accuracies"][0] == pytest.approx((w > l).double().mean().item())


@pytest.mark.parametrize("eps", [0.1, 0.4])
def test_conservative_dpo_is_trls_cpo_form_on_log_ratios(eps):
    """TRL's DPO lost the conservative form; its CPO loss has it, on any two log-probs: here on log-ratios."""
    _, leaf, r, _ = dpo_case(3, loss_types=["sigmoid"], label_smoothing=0.0, beta=0.3)
    h = r.log_ratio.sum()
    me = stand_in(alpha=0.0, loss_type="sigmoid", beta=0.3, label_smoothing=eps)
    theirs = CPOTrainer.cpo_loss(me, h[:PAIRS], h[PAIRS:])[0].mean()
    agree(get_method("dpo", beta=0.3, label_smoothing=eps)(r).scalar, theirs, leaf)


@pytest.mark.parametrize("labels", ["mixed", "all desirable", "all undesirable"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.33, 0.5)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kto_trainer(labels, weights, seed):
    label = {"mixed": torch.arange(6) % 3 == 0}.get(labels, torch.full((6,), labels == "all desirable"))
    own = {"desirable_weight": weights[0], "undesirable_weight": weights[1], "beta": 0.4}
    theirs, policy, r, me = kto_case(seed, label, loss_type="kto", **own)
    m = get_method("kto", **own, check=False)
    agree(m(r).scalar, theirs, policy)
    assert me._metrics["train"]["kl"][0] == pytest.approx(m(r).metrics["kl"].item())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.25, 0.0])
def test_cpo_trainer(alpha, seed):
    settings = {"alpha": 0.0, "loss_type": "sigmoid", "beta": 0.3, "label_smoothing": 0.0, "cpo_alpha": alpha}
    theirs, leaf, r = cpo_like(CPOTrainer, seed, **settings)
    agree(get_method("cpo", beta=0.3, cpo_alpha=alpha)(r).scalar, theirs, leaf)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        ({}, {}),
        ({"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        ({"cpo_alpha": 0.6}, {"sft_weight": 0.6}),
        ({"simpo_gamma": 3.0}, {"gamma_beta_ratio": 1.2}),
    ],
)
def test_simpo_of_cpo_trainer(theirs, mine, seed):
    beta = 2.5
    usual = {"alpha": 0.0, "loss_type": "simpo", "beta": beta, "label_smoothing": 0.0, "cpo_alpha": 0.0}
    loss, leaf, r = cpo_like(CPOTrainer, seed, **({"simpo_gamma": beta * 0.5} | usual | theirs))
    agree(get_method("simpo", beta=beta, **mine)(r).scalar, loss, leaf)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo_trainer(beta, seed):
    theirs, leaf, r = cpo_like(ORPOTrainer, seed, beta=beta)
    agree(get_method("orpo", beta=beta)(r).scalar, theirs, leaf, rtol=1e-6)  # TRL computes the odds in float32


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("center", [None, 0.01])
def test_reward_trainer(margin, center):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2 * PAIRS, 1, generator=g, dtype=torch.float64, requires_grad=True)
    gap = torch.randn(PAIRS, generator=g, dtype=torch.float64)
    me = stand_in(args=types.SimpleNamespace(center_rewards_coefficient=center))
    inputs = {"attention_mask": torch.ones(2 * PAIRS, 3)} | ({"margin": gap} if margin else {})
    theirs = RewardTrainer.compute_loss(me, lambda **_: types.SimpleNamespace(logits=logits), inputs)
    hyper = ({"use_margin": True} if margin else {}) | ({"center_coefficient": center} if center else {})
    r = Responses.of(reward_logps=logits, pairs="halves", margin=gap)
    answer = get_method("bt-reward", **hyper)(r)
    agree(answer.scalar, theirs, logits)
    w, l = answer.rewards
    assert me._metrics["train"]["accuracy"][0] == pytest.approx((w > l).double().mean().item())


# ---- the documented differences, so that the page cannot rot


def test_difference_label_smoothing_of_sigmoid_is_ignored_by_trl():
    losses = [dpo_case(0, loss_types=["sigmoid"], label_smoothing=e, beta=0.3)[0].item() for e in (0.0, 0.3)]
    assert losses[0] == losses[1]
    _, _, r, _ = dpo_case(0, loss_types=["sigmoid"], label_smoothing=0.0, beta=0.3)
    ours = [get_method("dpo", beta=0.3, label_smoothing=e)(r).scalar.item() for e in (0.0, 0.3)]
    assert ours[0] == pytest.approx(losses[0])
    assert abs(ours[1] - ours[0]) > 1e-3


def test_difference_ipo_counts_a_completion_that_starts_the_row():
    """TRL divides by an unshifted mask: a completion without any prompt token is one token too long there."""
    ids, completion, attention = tokens(0, 2 * PAIRS)
    completion[0] = attention[0]  # the first completion begins with the row
    policy, reference = logps(1, completion, grad=True), logps(2, completion)
    usual = {"ld_alpha": None, "f_divergence_type": "reverse_kl", "loss_weights": [1.0], "use_weighting": False}
    me = stand_in(ref_model=Table({id(ids): reference}), loss_types=["ipo"], label_smoothing=0.0, beta=0.1, **usual)
    inputs = {"input_ids": ids, "completion_mask": completion, "attention_mask": attention}
    theirs = DPOTrainer._compute_loss(me, Table({id(ids): policy}), inputs, False)
    r = Responses.of(policy_logps=policy, reference_logps=reference, mask=completion[:, 1:], pairs="halves")
    assert abs(theirs.item() - get_method("ipo")(r).scalar.item()) > 1e-4


def test_difference_rewards_of_ipo_are_means():
    _, _, r, me = dpo_case(1, loss_types=["ipo"], label_smoothing=0.0, beta=0.1)
    w, _ = get_method("ipo")(r).rewards
    sums = 0.1 * r.log_ratio.sum()[:PAIRS]
    assert me._metrics["train"]["rewards/chosen"][0] == pytest.approx(sums.mean().item())
    torch.testing.assert_close(w, sums / r.policy.length[:PAIRS])


def test_difference_a_mean_of_token_means_is_not_the_token_mean():
    """CPO and ORPO under accumulation: TRL averages micro-batches' token means, prefopt counts the whole step."""
    b = ragged(0)
    m = get_method("cpo")
    whole = m(b.responses())
    parts = [m(b.responses().replace(notes={"pairs": torch.tensor([p])})) for p in b.pairs]
    assert whole.scalar.item() != pytest.approx(torch.stack([p.scalar for p in parts]).mean().item(), abs=1e-3)
