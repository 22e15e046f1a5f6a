"""InfiFPO (2505.13878) with scalars, its identities and its bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ragged import ragged

from prefopt import PrefoptError, Responses, get_method

N = 3


def material(seed: int, n: int = N) -> tuple[Any, Responses]:
    b = ragged(seed, extras=False)
    g = torch.Generator().manual_seed(seed)
    b.notes.clear()
    b.scores.pop("reward")
    rows = len(b.mask)
    b.notes["source_counts"] = torch.randint(1, 9, (rows, n), generator=g).double()
    b.notes["source_sums"] = -2 * torch.rand(rows, n, generator=g, dtype=torch.float64) * b.notes["source_counts"]
    return b, b.responses()


def fused(b: Any, row: int, other: int, better: bool, k: dict[str, Any]) -> float:
    """f(y) of the card with scalars."""

    def clipped(row: int, better: bool) -> tuple[float, list[float]]:
        q = [x.item() for x in b.tokens("reference", row)]
        pivot = sum(q) / (len(q) if k["length_norm"] else 1)
        s = [
            (b.notes["source_sums"][row, i] / (b.notes["source_counts"][row, i] if k["length_norm"] else 1)).item()
            for i in range(b.notes["source_sums"].shape[1])
        ] + ([pivot] if k["include_pivot"] else [])
        return pivot, [(max if better else min)(x, pivot) for x in s] if k["clip"] else s

    pivot, c = clipped(row, better)
    if k["fusion"] == "average":
        return sum(c) / len(c)
    if k["fusion"] == "explicit":
        return sum(a * x for a, x in zip(k["gamma"], c, strict=True))
    if k["fusion"] == "confidence":
        weight = [1 / (-x + k["eps"]) for x in c]
        return sum(a * x for a, x in zip(weight, c, strict=True)) / sum(weight)
    if k["margin_scope"] == "pair":
        _, d = clipped(other, not better)
        gap = [(x - y) if better else (y - x) for x, y in zip(c, d, strict=True)]
    elif k["margin_space"] == "prob":
        gap = [abs(math.exp(x) - math.exp(pivot)) for x in c]
    else:
        gap = [abs(x - pivot) for x in c]
    return c[max(range(len(c)), key=lambda i: gap[i])]  # the first of equals


HYPER = [
    {},
    {"clip": False},
    {"clip": False, "margin_space": "prob"},
    {"fusion": "average", "include_pivot": True},
    {"fusion": "confidence", "eps": 0.3},
    {"fusion": "explicit", "gamma": (0.2, 0.0, 0.8)},
    {"fusion": "explicit", "gamma": (0.2, 0.1, 0.3, 0.4), "include_pivot": True},
    {"margin_scope": "pair"},
    {"length_norm": False, "beta": 0.1},
    {"length_norm": False, "beta": 0.1, "fusion": "average", "clip": False},
    {"loss_type": "ipo", "beta": 0.7},
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("hyper", HYPER, ids=str)
def test_value_gradient_and_coefficient_are_those_of_the_card(hyper: dict[str, Any], seed: int) -> None:
    k = {"beta": 2.5, "length_norm": True, "clip": True, "include_pivot": False, "fusion": "max_margin", "eps": 1e-8,
         "margin_space": "log", "margin_scope": "response", "loss_type": "sigmoid"} | hyper  # fmt: skip
    b, r = material(seed)

    def s(row: int) -> torch.Tensor:
        p = b.tokens("policy", row)
        return sum(p) / (len(p) if k["length_norm"] else 1)

    want, disparity = torch.zeros((), dtype=torch.float64), []
    for w, l in b.pairs:
        delta = (s(w) - fused(b, w, l, True, k)) - (s(l) - fused(b, l, w, False, k))
        z = k["beta"] * delta
        disparity.append(1 / (1 + math.exp(z.item())))
        one = torch.nn.functional.softplus(-z) if k["loss_type"] == "sigmoid" else (delta - 1 / (2 * k["beta"])) ** 2
        want = want + one / len(b.pairs)
    loss = get_method("infifpo", **hyper)(r)
    torch.testing.assert_close(loss.scalar, want, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(x, b.policy)[0][b.mask] for x in (loss.scalar, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss.metrics["disparity"], torch.tensor(disparity, dtype=torch.float64))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clipped_max_margin_takes_the_extreme(seed: int) -> None:
    """f(y_w) = max(pivot, sources), f(y_l) = min(pivot, sources), in probabilities too; the loss starts above log 2."""
    b, r = material(seed)
    start = r.replace(scores=r.scores | {"policy": r.scores["reference"]})
    loss = get_method("infifpo")(start)
    s = b.notes["source_sums"] / b.notes["source_counts"]
    pivot = torch.tensor([sum(b.tokens("reference", i)) / len(b.tokens("reference", i)) for i in range(len(s))])
    both = torch.cat([s, pivot[:, None].double()], 1)
    chosen, rejected = zip(*b.pairs, strict=True)
    torch.testing.assert_close(loss.metrics["fused/chosen"], both.max(1).values[list(chosen)], atol=1e-6, rtol=0)
    torch.testing.assert_close(loss.metrics["fused/rejected"], both.min(1).values[list(rejected)], atol=1e-6, rtol=0)
    assert loss.scalar >= math.log(2)
    for key, value in (("margin_space", "prob"), ("include_pivot", True)):
        with pytest.raises(PrefoptError, match="no effect"):  # they change nothing then, and are not silently taken
            get_method("infifpo", **{key: value})


def test_with_the_pivot_alone_it_is_length_normalised_dpo() -> None:
    b, _ = material(4, n=1)
    b.notes["source_counts"] = b.mask.sum(1, keepdim=True).double()
    b.notes["source_sums"] = torch.where(b.mask, b.scores["reference"], 0.0).sum(1, keepdim=True)
    r = b.responses()
    w, l = r.pairs()
    want = torch.nn.functional.softplus(-2.5 * (w.log_ratio.mean() - l.log_ratio.mean())).mean()
    torch.testing.assert_close(get_method("infifpo")(r).scalar, want)


def test_wrpo_form() -> None:
    """-log sigmoid(a h(y_ws) + (1 - a) h(y_wp) - h(y_l)), both preferred ones clipped as chosen."""
    b, r = material(5)
    gold, _ = material(6)
    n, a = len(b.pairs), 0.3
    extra = Responses.of(gold.policy[:n], gold.scores["reference"][:n], mask=gold.mask[:n])
    notes = {f"gold_{k}": gold.notes[k][:n] for k in ("source_sums", "source_counts")}
    loss = get_method("infifpo", wrpo_alpha=a)(r.replace(notes=r.notes | notes, extras={"gold": extra}))
    k = {"length_norm": True, "clip": True, "include_pivot": False, "fusion": "max_margin", "margin_scope": "response",
         "margin_space": "log"}  # fmt: skip
    want = torch.zeros((), dtype=torch.float64)
    for i, (w, l) in enumerate(b.pairs):

        def h(x: Any, row: int, better: bool) -> torch.Tensor:
            p = x.tokens("policy", row)
            return 2.5 * (sum(p) / len(p) - fused(x, row, row, better, k))

        u = a * h(b, w, True) + (1 - a) * h(gold, i, True) - h(b, l, False)
        want = want + torch.nn.functional.softplus(-u) / n
    torch.testing.assert_close(loss.scalar, want, rtol=1e-12, atol=1e-12)
    with pytest.raises(PrefoptError, match="gold"):
        get_method("infifpo", wrpo_alpha=a)(r)


def test_no_gradient_through_the_fused_reference() -> None:
    b, _ = material(0)
    q = b.scores["reference"].clone().requires_grad_()
    b.notes["source_sums"].requires_grad_()
    get_method("infifpo")(b.responses(reference=q)).scalar.backward()
    assert q.grad is None
    assert b.notes["source_sums"].grad is None


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"beta": 0.0}, "infifpo.beta"),
        ({"fusion": "mean"}, "max_margin, average, confidence, explicit"),
        ({"fusion": "explicit"}, "go together"),
        ({"gamma": (1.0,)}, "go together"),
        ({"fusion": "explicit", "gamma": (0.5, 0.6)}, "sum to 1"),
        ({"fusion": "explicit", "gamma": (1.5, -0.5)}, "sum to 1"),
        ({"fusion": "confidence", "eps": 0.0}, "infifpo.eps"),
        ({"length_norm": False, "margin_space": "prob", "clip": False}, "length_norm"),
        ({"eps": 0.1}, "no effect"),
    ],
    ids=str,
)
def test_bad_hyperparameters(hyper: dict[str, Any], words: str) -> None:
    with pytest.raises(PrefoptError, match=words):
        get_method("infifpo", **hyper)


def test_bad_scores() -> None:
    _, r = material(0)
    m = get_method("infifpo")

    def changed(name: str, value: float) -> Responses:
        x = r.notes[name].clone()
        x[2, 1] = value
        return r.replace(notes=r.notes | {name: x})

    for name, value in (("source_sums", 0.5), ("source_sums", math.nan), ("source_counts", 0.0)):
        with pytest.raises(PrefoptError, match=name):
            m(changed(name, value))
    with pytest.raises(PrefoptError, match="source_counts"):
        m(r.replace(notes={k: v for k, v in r.notes.items() if k != "source_counts"}))
    with pytest.raises(PrefoptError, match="reference"):
        m(r.replace(scores={"policy": r.scores["policy"]}))


def test_it_warns_of_a_beta_of_the_other_scale() -> None:
    _, r = material(0)
    assert get_method("infifpo", beta=0.1)(r).health
    assert get_method("infifpo", beta=2.0, length_norm=False)(r).health
    assert not get_method("infifpo")(r).health
