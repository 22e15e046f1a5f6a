"""What may not change a loss, for every registered method: found from its needs and its record, not from its name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from every import EVERY, EVERY_WAY_OF_ALL, EXACT
from from_needs import (
    TOYS_AND_METHODS,
    WITH_ANNOTATIONS,
    Made,
    collate,
    examples,
    gradients,
    loss_of,
    seen,
    where,
)

from prefopt import Method, annotated
from prefopt.objectives.method import METHODS
from prefopt.scoring.text import asked_sources
from prefopt.training.engine import Meter, measures


@EVERY_WAY_OF_ALL
def test_padding_is_never_read(m, sparse):
    of = examples(m, 5, sparse=sparse)
    results = []
    for junk in (0.0, float("nan"), -1e30):
        made = collate(of, junk=junk)
        loss, _ = loss_of(m, made)
        loss.scalar.backward()
        meter = Meter()
        meter.add(measures(seen(made), loss))
        meter.add(loss.terms)
        results.append(
            (loss.scalar.item(), gradients(of), meter.flush(), [u.sum.tolist() for u in loss.updates.values()])
        )
    for value, grads, metrics, updates in results[1:]:
        assert value == results[0][0]
        assert all(torch.equal(g, results[0][1][k]) for k, g in grads.items())
        assert (metrics, updates) == (results[0][2], results[0][3])
    assert results[0][1], "the loss moves nothing"
    for k, g in results[0][1].items():
        index, row_set, name = k.split(".")
        e = of[int(index)]
        unread = ~e.mask[row_set] if name not in e.features else where(e.mask[row_set], e.features[name][0]) == 0
        assert not g[unread.expand(g.shape)].any(), f"gradient under the mask of {k}"


@EVERY_WAY_OF_ALL
def test_order_of_examples_does_not_matter(m, sparse):
    of = examples(m, 6, seed=1, sparse=sparse)
    answers = []
    for order in (list(range(6)), [3, 5, 0, 2, 4, 1]):
        loss, _ = loss_of(m, collate([of[i] for i in order]))
        loss.scalar.backward()
        answers.append((loss.scalar.detach(), gradients(of)))
    torch.testing.assert_close(answers[0][0], answers[1][0], **EXACT)
    for k, g in answers[0][1].items():
        torch.testing.assert_close(g, answers[1][1][k], **EXACT)


@EVERY
def test_everything_twice_is_the_same_mean(m):
    of = examples(m, 4, seed=2)
    once, twice = (loss_of(m, collate(x))[0].scalar for x in (of, of + of))
    torch.testing.assert_close(once, twice, **EXACT)


WEIGHABLE = {k: m for k, m in TOYS_AND_METHODS.items() if any(x.startswith(f"{k}+") for x in WITH_ANNOTATIONS)}


@pytest.mark.parametrize("m", WEIGHABLE.values(), ids=WEIGHABLE)
def test_a_weight_of_one_half_is_half_an_example(m):
    """Twice the examples with half the weight: the same sums; a weight never enters the normaliser."""
    weighted = annotated(m, ["weight"])
    of = examples(weighted, 4, seed=3)
    halves = [
        dataclasses.replace(e, notes=e.notes | {"weight": (e.notes["weight"][0], e.notes["weight"][1] / 2)}) for e in of
    ]
    plain, _ = loss_of(weighted, collate(of))
    doubled, _ = loss_of(weighted, collate(halves + halves))
    bare, _ = loss_of(m, collate(of))
    weighs = {k for k, t in bare.terms.items() if not torch.equal(t.values, plain.terms[k].values)}
    assert weighs
    for k, t in plain.terms.items():
        torch.testing.assert_close(doubled.terms[k].count, 2 * t.count, **EXACT)
        assert torch.equal(t.count, bare.terms[k].count)
        factor = 1 if k in weighs else 2
        torch.testing.assert_close(doubled.terms[k].values.sum(), factor * t.values.sum(), **EXACT)


LABELLED = {k: m for k, m in TOYS_AND_METHODS.items() if {"notes:pairs", "notes:label"} & m.needs().keys()}


@pytest.mark.parametrize("m", LABELLED.values(), ids=LABELLED)
def test_swapping_labels_is_swapping_the_data(m):
    needs = m.needs()
    of = examples(m, 5, seed=4)
    made = collate(of)
    if "notes:pairs" in needs:
        turned = Made(made.notes | {"pairs": made.notes["pairs"].flip(1)}, made.scores, features=made.features)
    else:
        turned = Made(made.notes | {"label": ~made.notes["label"]}, made.scores, features=made.features)
    (straight, owner), (other, _) = loss_of(m, made), loss_of(m, turned)
    told = any(k.startswith("notes:") and s["shape"] == "R" and not s.get("dtype") for k, s in needs.items())
    assert told or abs(straight.scalar - other.scalar).item() > 1e-9  # unless a number of each response says who won
    if "notes:pairs" in needs:
        by_view = m(seen(made, states=owner.states.values, modules=owner.modules).swapped())
        torch.testing.assert_close(by_view.scalar, other.scalar, **EXACT)


# by design these may feel what both sides of a pair share: single responses, an absolute likelihood that is kept up,
# a ratio through another link than the logarithm, positions of unequal weight
ABSOLUTE = {"pointwise", "length_bias", "likelihood_collapse", "diversity", "generalization", "token", "step", "turn"}


def compares_with_other_models(m: Method) -> bool:
    """What others say does not move with the reference."""
    return bool(asked_sources(m.needs())) or "notes:source_sums" in m.needs()


REFERRING = {
    k: m for k, m in TOYS_AND_METHODS.items() if "scores:reference" in m.needs() and not compares_with_other_models(m)
}


@pytest.mark.parametrize("m", REFERRING.values(), ids=REFERRING)
def test_a_reference_matters_only_as_a_difference(m):
    """A term that reads the reference feels it as it feels the policy: what is added to both cancels, and a constant
    added to one for all answers to a prompt (its partition function) leaves a preference alone whichever one it is.
    """
    made = collate(examples(m, 4, seed=11))
    each = 2.0 * (1 + made.notes["group"][:, None]).double()

    def terms(spread: str, **sign: float) -> dict[str, torch.Tensor]:
        scores = dict(made.scores["responses"])
        for name, by in sign.items():
            s = scores[name]
            shift = each / s.length[:, None] if spread == "its total" else each * torch.ones_like(s.values)
            scores[name] = s.like(s.values + by * shift)
        out = loss_of(m, Made(made.notes, made.scores | {"responses": scores}, features=made.features))[0]
        return {k: t.mean() for k, t in out.terms.items()}

    def same(x: torch.Tensor, y: torch.Tensor) -> bool:
        return torch.allclose(x, y, rtol=1e-7, atol=1e-10)

    before = terms("its total")
    generator = torch.Generator().manual_seed(0)
    ref = made.scores["responses"]["reference"]
    noise = torch.rand(ref.values.shape, generator=generator, dtype=torch.float64)
    moved = made.scores | {"responses": made.scores["responses"] | {"reference": ref.like(ref.values - noise)}}
    other = loss_of(m, Made(made.notes, moved, features=made.features))[0].terms
    reading = [k for k, x in before.items() if not same(x, other[k].mean())]
    assert reading, "the reference has no effect"
    tags = set(METHODS[m.name].tags) if m.name in METHODS else set()
    harmless = set()
    # a rule of length may count positions of one of the two only, two distributions are sorted each by itself, and a
    # weight may be the policy's alone
    apart = "length_bias" in tags or any(k == "scores:log_collision" or s.get("every") for k, s in m.needs().items())
    for spread in ("its total", "each of its positions"):
        both, policy, reference = (
            terms(spread, **x) for x in ({"policy": 1, "reference": 1}, {"policy": 1}, {"reference": -1})
        )
        for k in reading:
            if not apart:
                assert same(both[k], before[k]), f"{k}: {spread}, added to both"
                assert same(policy[k], reference[k]), f"{k}: {spread}, added to one"
            harmless |= {k} if same(reference[k], before[k]) else set()
    if not ABSOLUTE & tags:
        compares = {k for k in reading if other[k].logit is not None or other[k].over == "groups"}
        assert harmless >= compares, "what all answers to a prompt share must not matter to a preference"
