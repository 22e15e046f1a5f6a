"""ASFT one token at a time, its identity at tau = 1, unpaired rows, and the two claims about its slopes."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import agree, average, log_sigmoid
from ragged import Ragged, ragged
from torch import Tensor

from prefopt import PrefoptError, Responses, get_method


def log_odds(b: Ragged, row: int) -> Tensor:
    p = torch.exp(average(b.tokens("policy", row)))
    return torch.log(p / (1 - p))


def by_hand(b: Ragged, chosen: list[int], rejected: list[int], lam: float, sft_weight: float, tau: float) -> Tensor:
    up = average([-log_sigmoid(tau * log_odds(b, w)) for w in chosen])
    down = average([-log_sigmoid(-tau * log_odds(b, l)) for l in rejected])
    return lam * (up + down) + sft_weight * average([-average(b.tokens("policy", w)) for w in chosen])


@pytest.mark.parametrize("lam", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("sft_weight", [1.0, 0.4])
@pytest.mark.parametrize("tau", [1.0, 0.05])
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_are_those_of_the_equation(lam, sft_weight, tau, seed):
    b = ragged(seed)
    m = get_method("asft").hyper | {"lam": lam, "sft_weight": sft_weight, "tau": tau}
    given = {k: v for k, v in m.items() if v != 1.0}
    if lam == 0.0:
        given.pop("tau", None)  # without effect then
    made = get_method("asft", **given)
    w, l = zip(*b.pairs, strict=True)
    agree(b, made, by_hand(b, list(w), list(l), **(made.hyper)))


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_unpaired_rows_are_means_over_their_own_kind(seed):
    b = ragged(seed, pairs=False)
    good = [i for i, x in enumerate(b.notes["label"].tolist()) if x]
    bad = [i for i, x in enumerate(b.notes["label"].tolist()) if not x]
    assert good
    assert bad
    assert len(good) != len(bad)
    m = get_method("asft", lam=0.7, tau=0.5)
    agree(b, m, by_hand(b, good, bad, lam=0.7, sft_weight=1.0, tau=0.5))


@pytest.mark.parametrize("label", [True, False])
def test_one_kind_alone_makes_no_nan(label):
    r = Responses.of((-torch.rand(3, 4)).requires_grad_(), label=torch.tensor([label] * 3))
    assert get_method("asft")(r).scalar.isfinite()


def test_with_tau_one_it_is_likelihood_and_unlikelihood():
    b = ragged(6)
    loss = get_method("asft", lam=0.8, sft_weight=0.3)(b.responses())
    p = {i: torch.exp(average(b.tokens("policy", i))) for pair in b.pairs for i in pair}
    want = average([-(0.3 + 0.8) * torch.log(p[w]) - 0.8 * torch.log(1 - p[l]) for w, l in b.pairs])
    torch.testing.assert_close(loss.scalar, want, rtol=1e-12, atol=0)
    n_w = {w: len(b.tokens("policy", w)) for w, _ in b.pairs}
    grad = torch.autograd.grad(loss.scalar, b.policy)[0]
    expected = torch.zeros_like(grad)
    for w, l in b.pairs:  # the card's closed form at tau = 1
        expected[w] -= b.mask[w].double() * (0.3 + 0.8) / len(b.pairs) / n_w[w]
        expected[l] += b.mask[l].double() * 0.8 * (p[l] / (1 - p[l])).item() / len(b.pairs) / int(b.mask[l].sum())
    torch.testing.assert_close(grad, expected, rtol=1e-11, atol=1e-13)


def test_rewards_are_log_odds_and_metrics_the_parts():
    b = ragged(7)
    loss = get_method("asft", lam=0.5, sft_weight=0.2, tau=0.3)(b.responses())
    o = [torch.stack([log_odds(b, p[i]) for p in b.pairs]) for i in (0, 1)]
    torch.testing.assert_close(loss.rewards[0], o[0])
    torch.testing.assert_close(loss.rewards[1], o[1])
    a = torch.stack([average(b.tokens("policy", w)) for w, _ in b.pairs])
    torch.testing.assert_close(loss.metrics["sft"], -a)
    torch.testing.assert_close(loss.metrics["average_logps/chosen"], a)
    torch.testing.assert_close(loss.metrics["align/chosen"], torch.stack([-log_sigmoid(0.3 * x) for x in o[0]]))


def test_orpos_alignment_is_never_more_than_asfts():
    for seed in range(5):
        r = ragged(seed).responses()
        asft = get_method("asft")(r).metrics
        orpo = get_method("orpo", beta=1.0)(r).terms["preference"].values
        assert (orpo <= asft["align/chosen"] + asft["align/rejected"] + 1e-12).all()


def test_the_slope_at_a_rejected_probability_is_bounded_where_dpos_grows():
    """d align / d p_l = 1/(1 - p_l); DPO's |d L / d p_l| grows as 1/p_l."""
    p = torch.logspace(-8, math.log10(0.9), 40, dtype=torch.float64).requires_grad_()
    even = torch.full_like(p, 0.5).detach()
    r = Responses.of(torch.cat([even, p]).log(), torch.cat([even, p]).log().detach(), pairs="halves")
    slope, dpo = (
        torch.autograd.grad(get_method(name, **hyper)(r).scalar * len(p), p, retain_graph=True)[0]
        for name, hyper in (("asft", {"sft_weight": 0.0}), ("dpo", {}))
    )
    torch.testing.assert_close(slope, 1 / (1 - p.detach()))
    torch.testing.assert_close(dpo * p.detach(), torch.full_like(p, 0.05).detach())  # beta sigmoid(0) / p


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_at_certainty_it_is_finite_and_says_so(dtype):
    policy = torch.tensor([[0.0], [-1e-30], [-1e4], [0.0], [-1e-17], [-1e4]], dtype=dtype).requires_grad_()
    loss = get_method("asft")(Responses.of(policy, pairs="halves"))
    loss.scalar.backward()
    assert loss.scalar.isfinite()
    assert policy.grad.isfinite().all()
    assert int(loss.health["infinite_odds"]) == 2


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"lam": -0.1}, r"must be in \[0, inf\)"),
        ({"sft_weight": -1.0}, r"must be in \[0, inf\)"),
        ({"tau": 0.0}, r"must be in \(0, inf\)"),
        ({"lam": 0.0, "sft_weight": 0.0}, "both 0: nothing is left"),
        ({"lam": 0.0, "tau": 0.5}, "asft.tau = 0.5 has no effect"),
        ({"link": "jsd"}, "asft has no reference"),
        ({"length": "sum"}, "the average is a part of it"),
    ],
)
def test_bad_settings_are_refused(hyper, says):
    with pytest.raises(PrefoptError, match=says):
        get_method("asft", **hyper)


def test_an_empty_response_is_refused():
    with pytest.raises(PrefoptError, match="response 1 has no position"):
        Responses.of(-torch.rand(2, 2), mask=torch.tensor([[1, 1], [0, 0]]), pairs="halves")


def test_terms_are_means_over_what_the_data_holds():
    """Over pairs where there are pairs (so that weights of pairs reach them), else over the responses of each kind."""
    b = ragged(0)
    paired = get_method("asft")(b.responses()).terms
    assert {k: (t.over, int(t.count)) for k, t in paired.items()} == dict.fromkeys(paired, ("pairs", len(b.pairs)))
    alone = ragged(0, pairs=False)
    good = int(alone.notes["label"].sum())
    terms = get_method("asft")(alone.responses()).terms
    counts = {"align_chosen": good, "align_rejected": len(alone.notes["label"]) - good, "sft": good}
    assert {k: (t.over, int(t.count)) for k, t in terms.items()} == {k: ("responses", n) for k, n in counts.items()}
