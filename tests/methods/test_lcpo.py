"""LCPO: the equations by scalars, the closed forms of s, the theorem on calibrated probabilities, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from by_hand import average, log_sigmoid, ratios, total
from ragged import Ragged, ragged
from torch import Tensor

from prefopt import PrefoptError, Responses, get_method
from prefopt.objectives.method import family
from prefopt.training.engine import States


def softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(x))


def induced(b: Ragged, base: str, w: int, l: int, beta: float, gamma: float = 0.0, c: float = 0.0) -> Tensor:
    """The card's closed forms of s."""
    if base in ("dpo", "ipo"):
        D = total(ratios(b, w)) - total(ratios(b, l))
        return beta * D if base == "dpo" else 2 * D / beta
    if base == "simpo":
        d = beta * (average(b.tokens("policy", w)) - average(b.tokens("policy", l)))
        return softplus(d + gamma) - softplus(gamma - d)
    return (beta + c) * (total(b.tokens("policy", w)) - total(b.tokens("policy", l)))


BASES: list[tuple[dict[str, Any], dict[str, float]]] = [
    ({"name": "dpo", "beta": 0.3}, {"beta": 0.3}),
    ({"name": "ipo", "beta": 0.7, "normalise": "sum"}, {"beta": 0.7}),
    ({"name": "simpo", "beta": 1.5, "gamma_beta_ratio": 0.6}, {"beta": 1.5, "gamma": 0.9}),
    ({"name": "cpo", "beta": 0.2, "cpo_alpha": 0.4, "nll": "sequence"}, {"beta": 0.2, "c": 0.4}),
]
BASE = pytest.mark.parametrize(("base", "closed"), BASES, ids=[b["name"] for b, _ in BASES])


def annotated(b: Ragged, k: int) -> Responses:
    r = b.responses()
    return r.replace(notes={**r.notes, "annotator": torch.arange(len(b.pairs)) % k})


@BASE
@pytest.mark.parametrize("seed", [0, 1])
def test_value_gradient_and_update_are_those_of_the_equations(base, closed, seed):
    b, etas = ragged(seed), torch.tensor([0.6, 0.95], dtype=torch.float64)
    m = get_method("lcpo", base=base, annotators=2, ema=0.3)
    loss = m(annotated(b, 2).replace(states={"eta": etas}))
    losses, posterior = [], []
    for i, (w, l) in enumerate(b.pairs):
        s = induced(b, base["name"], w, l, **closed)
        p, eta = torch.sigmoid(s).detach(), etas[i % 2]
        trust = p * eta / (p * eta + (1 - p) * (1 - eta))
        posterior.append(trust)
        losses.append(-trust * log_sigmoid(s) - (1 - trust) * log_sigmoid(-s))
        torch.testing.assert_close(loss.metrics["induced_logit"][i], s)
    want = average(losses)
    torch.testing.assert_close(loss.scalar, want, rtol=1e-12, atol=1e-12)
    got, expected = (torch.autograd.grad(x, b.policy, retain_graph=True)[0] for x in (loss.scalar, want))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss.metrics["weights"], torch.stack(posterior))
    torch.testing.assert_close(loss.exports["weight"], torch.stack(posterior))
    u = loss.updates["eta"]
    new = u.advance(etas, u.sum, u.count)
    for k in (0, 1):
        mine = torch.stack(posterior[k::2]).mean()
        torch.testing.assert_close(new[k], 0.7 * etas[k] + 0.3 * mine)


@BASE
def test_the_induced_probability_is_that_of_the_two_orders(base, closed):
    """p = exp(-L(w > l)) / (exp(-L(w > l)) + exp(-L(l > w))), literally."""
    r = ragged(2).responses()
    inner = get_method(**base)
    right, wrong = (torch.exp(-inner(x).per("pairs")) for x in (r, r.swapped()))
    s = get_method("lcpo", base=base)(r).metrics["induced_logit"]
    torch.testing.assert_close(torch.sigmoid(s), right / (right + wrong), rtol=1e-9, atol=0)


def test_cpos_likelihood_outside():
    b = ragged(3)
    base = {"name": "cpo", "beta": 0.2, "cpo_alpha": 0.4, "nll": "sequence"}
    loss = get_method("lcpo", base=base, cpo_nll="outside")(b.responses())
    s = torch.stack([induced(b, "cpo", w, l, beta=0.2) for w, l in b.pairs])
    torch.testing.assert_close(loss.metrics["induced_logit"], s)
    imitation = 0.4 * average([-total(b.tokens("policy", w)) for w, _ in b.pairs])
    torch.testing.assert_close(loss.scalar, loss.terms["preference"].mean() + imitation)
    with pytest.raises(PrefoptError, match="cpo_nll = 'outside' has no effect"):
        get_method("lcpo", base="cpo", cpo_nll="outside")  # its mean over tokens is beside s already


@pytest.mark.parametrize("base", [*(b for b, _ in BASES), {"name": "orpo"}, {"name": "dpo", "loss_type": "hinge"}])
def test_a_certain_annotator_leaves_the_likelihood_of_the_order(base):
    """eta -> 1: w -> 1, so the loss is -log p; around dpo that is dpo itself."""
    r = ragged(4).responses()
    eta = {"eta": torch.tensor([1 - 1e-13], dtype=torch.float64)}
    loss = get_method("lcpo", base=base)(r.replace(states=eta))
    beside = sum(t.mean() for k, t in loss.terms.items() if k != "preference")
    s = loss.metrics["induced_logit"]
    torch.testing.assert_close(loss.scalar, -torch.nn.functional.logsigmoid(s).mean() + beside, rtol=1e-9, atol=1e-9)
    if base["name"] == "dpo" and "loss_type" not in base:
        torch.testing.assert_close(loss.scalar, get_method(**base)(r).scalar, rtol=1e-9, atol=1e-9)


def test_the_slope_never_points_to_the_reversed_order_and_fades_where_a_pair_contradicts():
    s = torch.linspace(-12, 12, 97, dtype=torch.float64)
    policy = torch.cat([s / 0.2, -s / 0.2])[:, None].requires_grad_()
    r = Responses.of(policy, torch.zeros_like(policy), pairs="halves")
    loss = get_method("lcpo", base={"name": "dpo", "beta": 0.1}, eta_0=0.8)(r)
    slope = torch.autograd.grad(loss.scalar * len(s), policy)[0][: len(s), 0] / 0.1
    p, eta = torch.sigmoid(s), 0.8
    torch.testing.assert_close(slope, -(2 * eta - 1) * p * (1 - p) / (eta * p + (1 - eta) * (1 - p)))
    assert (slope <= 0).all()
    assert s[slope.argmin()].item() == pytest.approx(-math.log(eta / (1 - eta)) / 2, abs=0.25)


def test_the_first_steps_of_dpo_do_not_move_eta():
    policy = -torch.rand(6, 3, dtype=torch.float64)
    loss = get_method("lcpo")(Responses.of(policy.requires_grad_(), policy.detach(), pairs="halves"))
    u = loss.updates["eta"]
    torch.testing.assert_close(u.advance(torch.tensor([0.9]).double(), u.sum, u.count).item(), 0.9)
    torch.testing.assert_close(
        torch.autograd.grad(loss.scalar, policy)[0],
        torch.autograd.grad(
            get_method("dpo", label_smoothing=0.1)(Responses.of(policy, policy.detach(), pairs="halves")).scalar, policy
        )[0],
    )


def test_the_theorem_on_calibrated_probabilities():
    """4000 fixed items, 30 % of labels flipped: from every start eta ends near 0.7, all at one place."""
    g = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(4000, generator=g, dtype=torch.float64)
    s = torch.where(torch.rand(4000, generator=g, dtype=torch.float64) < torch.sigmoid(z), z, -z)  # the true order's
    s = torch.where(torch.rand(4000, generator=g) < 0.3, -s, s)  # the observed order's
    r = Responses.of(torch.cat([s, torch.zeros_like(s)]), torch.zeros(8000, dtype=torch.float64), pairs="halves")
    ends = []
    for start in (0.55, 0.75, 0.9, 0.99):
        m = get_method("lcpo", base={"name": "dpo", "beta": 1.0}, eta_0=start, ema=1.0)
        states = States(dict(m.init(r).states))
        for _ in range(200):
            states.collect(m(r.replace(states=states.values)).updates)
            states.advance()
        ends.append(states.values["eta"].item())
    assert max(ends) - min(ends) < 1e-6
    assert all(abs(e - 0.7) < 0.03 for e in ends)


def test_one_update_a_step_from_all_its_parts_and_only_annotators_present():
    b = ragged(5)
    r = annotated(b, 2)
    m = get_method("lcpo", annotators=3, ema=0.5)
    whole = States({"eta": torch.full((3,), 0.8, dtype=torch.float64)})
    states = {"eta": whole.values["eta"].clone()}
    whole.collect(m(r.replace(states=states)).updates)
    whole.advance()
    parts = States({"eta": states["eta"].clone()})
    for i in range(len(b.pairs)):
        notes = {k: v[i : i + 1] if k in ("pairs", "annotator", "margin") else v for k, v in r.notes.items()}
        parts.collect(m(r.replace(states=states, notes=notes)).updates)
    parts.advance()
    torch.testing.assert_close(parts.values, whole.values)
    assert whole.values["eta"][2].item() == 0.8
    assert (whole.values["eta"][:2] != 0.8).all()


def test_eta_stays_inside():
    u = get_method("lcpo", ema=1.0)(ragged(6).responses()).updates["eta"]
    n = torch.tensor([4.0], dtype=torch.float64)
    old = torch.tensor([0.9], dtype=torch.float64)
    assert u.advance(old, n, n).item() == 1 - 1e-4
    assert u.advance(old, 0 * n, n).item() == 1e-4
    assert u.advance(old, 0 * n, 0 * n).item() == 0.9


def test_without_a_column_all_pairs_are_one_annotators():
    r = ragged(7).responses()
    assert torch.equal(get_method("lcpo")(r).scalar, get_method("lcpo", annotators=1)(annotated(ragged(7), 3)).scalar)


def test_an_unreliable_annotator_is_reported():
    r = annotated(ragged(8), 2).replace(states={"eta": torch.tensor([0.3, 0.9], dtype=torch.float64)})
    assert int(get_method("lcpo", annotators=2)(r).health["unreliable_annotators"]) == 1


def test_it_wraps_itself_with_states_apart():
    m = get_method("lcpo", base={"name": "lcpo", "base": "dpo", "eta_0": 0.7})
    loss = m(ragged(9).responses())
    assert set(loss.updates) == {"eta", "base/eta"}
    assert {"weight", "base/weight"} <= set(loss.exports)


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"eta_0": 1.0}, r"must be in \(0, 1\)"),
        ({"eta_0": 0.0}, r"must be in \(0, 1\)"),
        ({"ema": 0.0}, r"must be in \(0, 1\]"),
        ({"ema": 1.5}, r"must be in \(0, 1\]"),
        ({"annotators": 0}, "whole number of at least 1"),
        ({"annotators": 2.0}, "whole number of at least 1"),
        ({"base": "kto"}, "needs a loss over pairs; the terms of the wrapped method are value"),
        ({"base": "sft"}, "needs a loss over pairs"),
        ({"base": "apo-zero", "cpo_nll": "outside"}, "the base compares nothing, so cpo_nll = outside leaves nothing"),
        ({"base": {"name": "dpo", "beta": -1.0}}, "dpo.beta = -1.0: must be in"),
        ({"link": "jsd"}, "lcpo wraps another method; give it to that one"),
    ],
)
def test_bad_settings_are_refused(hyper, says):
    with pytest.raises(PrefoptError, match=says):
        get_method("lcpo", **hyper)


def test_missing_things_are_named():
    with pytest.raises(PrefoptError, match="Give `reference_logps`"):
        get_method("lcpo")(Responses.of(torch.zeros(2, 3), pairs="halves"))
    r = annotated(ragged(1), 3)
    with pytest.raises(PrefoptError, match="'annotator' has values 0..2, expected 0..1"):
        get_method("lcpo", annotators=2)(r)


def test_a_number_of_annotators_comes_from_the_data():
    m = family("lcpo")(base={"name": "lcpo"})
    counted = m.counted({"annotator": 4})
    assert counted.hyper["annotators"] == 4
    assert counted.hyper["base"].hyper["annotators"] == 4
    assert m.counted({}).hyper["annotators"] is None
    assert get_method("lcpo", annotators=2).counted({"annotator": 4}).hyper["annotators"] == 2


def test_defaults_are_the_papers():
    found = get_method("lcpo").record()
    base = found.pop("base")
    assert found == {"name": "lcpo", "eta_0": 0.9, "ema": 0.1, "annotators": None, "cpo_nll": "inside"}
    assert base["name"] == "dpo"


def test_pairs_that_the_base_leaves_out_teach_nobody():
    """ODPO leaves out pairs that are not scored higher: neither the loss nor the reliabilities hear of them."""
    b = ragged(3)
    scores = torch.zeros(len(b.mask), dtype=torch.float64)
    for w, _ in b.pairs[:2]:
        scores[w] = 2.0
    r = annotated(b, 1).replace(notes={**b.responses().notes, "score": scores, "annotator": torch.zeros(4).long()})
    base = get_method("odpo", alpha=0.0)
    kept = base(r).terms["preference"].keep
    assert kept is not None
    assert 0 < int(kept.sum()) < len(b.pairs)
    m = get_method("lcpo", base={"name": "odpo", "alpha": 0.0}, annotators=2)
    loss = m(m.init(r))
    assert loss.terms["preference"].count == kept.sum()
    assert (loss.terms["preference"].values != 0).tolist() == kept.tolist()
    update = loss.updates["eta"]
    assert update.count.tolist() == [int(kept.sum()), 0]
    torch.testing.assert_close(update.sum[0], loss.metrics["weights"][kept].sum())


def test_what_is_told_of_each_pair():
    """Reliability is that of the pair's own annotator; one as good as a coin counts as unreliable."""
    r = annotated(ragged(1), 2).replace(states={"eta": torch.tensor([0.5, 0.8], dtype=torch.float64)})
    loss = get_method("lcpo", annotators=2)(r)
    assert loss.metrics["reliability"].tolist() == [0.5, 0.8, 0.5, 0.8]
    assert loss.health["unreliable_annotators"] == 1


def test_what_the_base_tells_is_told_too():
    """Its metrics, its health and its exports beside LCPO's own; the exported logit is that of the written label."""
    b = ragged(2)
    scores = {"score": torch.arange(7.0, dtype=torch.float64)}
    r = annotated(b, 2).replace(notes={**b.responses().notes, **scores, "annotator": torch.arange(4) % 2})
    base = {"name": "odpo", "alpha": 0.1}
    inner, loss = get_method(**base)(r), get_method("lcpo", base=base, annotators=2)(r)
    assert loss.health["not_higher"] == inner.health["not_higher"] > 0
    metrics = get_method("lcpo", base="tdpo", annotators=2)(
        r.replace(scores=dict(r.scores) | {"token_kl": -r.reference})
    )
    assert {"seq_kl/chosen", "weights", "induced_logit", "reliability"} <= metrics.metrics.keys()
    nested = get_method("lcpo", base={"name": "lcpo", "annotators": 2}, annotators=2)
    told = nested(nested.init(r)).exports
    assert {"weight", "base/weight", "base/induced_logit"} <= told.keys()
    torch.testing.assert_close(loss.exports["induced_logit"], loss.metrics["induced_logit"].detach())
    plain = get_method("lcpo", annotators=2)(r)
    sides = [(total(ratios(b, w)) - total(ratios(b, l))).item() * 0.1 for w, l in b.pairs]
    assert plain.exports["induced_logit"].tolist() == pytest.approx(sides)
