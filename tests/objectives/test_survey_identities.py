"""The survey's claim, that one framework holds all variants: from one batch, methods that must be each other, to 1e-9."""

from __future__ import annotations

import pytest
import torch
from test_identities import made, same

from prefopt import Method, Responses, get_method, swap
from prefopt.objectives.links import jsd
from prefopt.objectives.words import bradley_terry

PAIRS, T = 5, 7
F64 = torch.float64


@pytest.fixture
def r() -> Responses:
    """Pairs with everything that any of the methods below reads; the chosen side has the higher score."""
    g = torch.Generator().manual_seed(3)
    policy, reference = (-2 * torch.rand(2 * PAIRS, T, generator=g, dtype=F64) for _ in range(2))
    mask = torch.rand(2 * PAIRS, T, generator=g) < 0.7
    mask[:, 0] = True
    return Responses.of(
        policy.requires_grad_(),
        reference,
        mask,
        pairs="halves",
        token_kl_logps=torch.zeros(2 * PAIRS, T, dtype=F64),
        group=torch.arange(PAIRS).repeat(2),
        score=torch.tensor([1.0] * PAIRS + [0.0] * PAIRS, dtype=F64),
        label_probability=torch.ones(PAIRS, dtype=F64),
        annotator=torch.zeros(PAIRS, dtype=torch.long),
        label=torch.arange(2 * PAIRS) < PAIRS,
    )


DPO_AGAIN = {
    "f-DPO with reverse KL": ("f-dpo", {"divergence": "reverse_kl"}),
    "conservative DPO without smoothing": ("dpo", {"label_smoothing": 0.0}),
    "robust DPO without flips": ("dpo", {"loss_type": "robust", "label_smoothing": 0.0}),
    "R-DPO without a length term": ("r-dpo", {"alpha": 0.0}),
    "DPOP without a penalty": ("dpop", {"lam": 0.0, "beta": 0.1}),
    "Plackett-Luce of two": ("plackett-luce", {}),
    "ODPO without an offset": ("odpo", {"alpha": 0.0}),
    "GDPO with certain labels": ("gdpo-geometric", {}),
    "D2PO without decay": ("d2po", {"gamma": 1.0}),
    "LD-DPO that keeps all": ("ld-dpo", {"ld_alpha": 1.0}),
    "Flex-DPO with one beta": ("3d-properties", {"beta_chosen": 0.1, "beta_rejected": 0.1}),
    "TDPO where the sequential KL is nothing": ("tdpo", {"beta": 0.1}),
    "beta-DPO that does not follow": ("beta-dpo", {"alpha": 0.0}),
    "Rao-Kupper that wins at once": ("rao-kupper", {"alpha": 1e-11}),
    "Davidson without ties": ("davidson", {"nu": 1e-13}),
    "MPO of the preference alone": ("mpo", {"w_p": 1.0, "w_q": 0.0, "w_g": 0.0}),
    "LCPO with labels that are right": ("lcpo", {"eta_0": 1 - 1e-13}),
}


@pytest.mark.parametrize("name", DPO_AGAIN)
def test_it_is_dpo(r, name):
    method, hyper = DPO_AGAIN[name]
    same(r, made(method, **hyper), get_method("dpo"))


def test_length_rules_are_dpo_where_all_lengths_are_one():
    g = torch.Generator().manual_seed(4)
    x, y = (-2 * torch.rand(2 * PAIRS, 1, generator=g, dtype=F64) for _ in range(2))
    one = Responses.of(x.requires_grad_(), y, pairs="halves")
    for name in ("ln-dpo", "sampo", "ld-dpo"):
        same(one, made(name, beta=0.1), get_method("dpo"))


def test_a_group_of_equals_is_the_mean(r):
    even = r.replace(notes={**r.notes, "annotator": torch.tensor([0, 1, 0, 1]), "pairs": r.notes["pairs"][:4]})
    same(even, made("grpo-robust", annotators=2), get_method("dpo"))


def test_optimal_transport_of_one_pair_is_dpo(r):
    one = r.replace(notes={**r.notes, "pairs": r.notes["pairs"][:1]})
    for paired in (True, False):
        same(one, made("aot", paired=paired), get_method("dpo"))


def test_lambda_weights_of_two_are_a_factor(r):
    gain, discount = 1.0, abs(1 / torch.log(torch.tensor(2.0, dtype=F64)) - 1 / torch.log(torch.tensor(3.0, dtype=F64)))
    same(r, get_method("lipo", beta=0.1), get_method("dpo"), factor=(gain * discount).item())


def test_reward_distillation_of_one_gap_is_ipo(r):
    """(s - D)^2 with beta = 1 and the gap 1/(2 tau)."""
    gap = r.replace(notes={**r.notes, "score": r.notes["score"] / (2 * 0.3)})
    same(gap, get_method("e-dpo", beta=1.0), get_method("ipo", beta=0.3, normalise="sum"))


def test_links_and_comparisons_of_dpo(r):
    same(r, made("chi-po", r_max=1e9), swap(get_method("dpo"), link=lambda h: torch.exp(h.clamp(max=20)) + h))
    same(r, get_method("f-dpo", divergence="jsd"), swap(get_method("dpo"), link=jsd))
    same(r, get_method("gpo", loss_type="savage"), swap(get_method("dpo"), compare=lambda u: torch.sigmoid(-u) ** 2))


def test_absolute_losses_are_sums_of_one_another(r):
    """NCA = BCO's pair form / 2 + a chosen term; APO-zero on pairs is twice its mean over rows."""
    bco, nca = get_method("bco", shift=False), get_method("nca")
    h_w = 0.1 * r.log_ratio.sum()[:PAIRS]
    both = (bradley_terry(h_w) + bradley_terry(-h_w)).mean() / 2
    torch.testing.assert_close(nca(r).scalar, bco(r).scalar / 2 + both, rtol=1e-9, atol=1e-9)
    same(r, get_method("apo-zero"), get_method("apo-zero-unpaired"), factor=2.0)


def test_alphapo_tends_to_simpo(r):
    same(r, made("alphapo", alpha=1e-12, beta=2.0, gamma_beta_ratio=0.5), get_method("simpo"))


def test_sppo_is_least_where_the_log_ratios_are_the_targets():
    x = torch.tensor([[0.5 / 0.25], [-0.5 / 0.25]], dtype=F64).requires_grad_()
    loss = get_method("sppo", beta=0.25)(Responses.of(x, torch.zeros(2, 1, dtype=F64), pairs="halves")).scalar
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, x)[0].any()


def test_all_of_the_survey_read_the_same_tensors(r):
    """The losses named in the survey's check, from one h_w, h_l and |y|: none needs a batch of its own."""
    named: list[Method] = [
        get_method(n) for n in ("dpo", "ipo", "simpo", "r-dpo", "dpop", "f-dpo", "cdpo", "robust-dpo")
    ]
    named.append(get_method("kto"))
    with_partner = r.replace(extras={"mismatched": Responses(scores={k: r.scores[k] for k in ("policy", "reference")})})
    assert all(m(with_partner).scalar.isfinite() for m in named)
