"""The survey's representative losses (2503.11701) against the equations printed there, one scalar at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_hand import agree, average, log_sigmoid, ratios, total
from ragged import Ragged, ragged
from torch import Tensor

from prefopt import Method, PrefoptError, Responses, get_method

ROWS = 7
GROUPS = [[0, 1, 2], [3, 4], [5, 6]]


def noted(seed: int, **notes: Tensor) -> Ragged:
    """A ragged batch with the annotations that these losses read."""
    b = ragged(seed)
    g = torch.Generator().manual_seed(seed + 50)
    pairs = len(b.pairs)
    b.notes |= {
        "score": 3 * torch.rand(ROWS, generator=g, dtype=torch.float64),
        "label_probability": torch.tensor([1.0, 0.5, 0.8, 0.0], dtype=torch.float64)[torch.arange(pairs) % 4],
        "annotator": torch.arange(pairs) % 3,
        "group": torch.tensor([0, 0, 0, 1, 1, 2, 2]),
    } | notes
    return b


def reward(b: Ragged, row: int, beta: float) -> Tensor:
    return beta * total(ratios(b, row))


def sigmoid(u: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-u))


def each(b: Ragged, loss: Callable[[Tensor, Tensor], Tensor], beta: float) -> Tensor:
    return average([loss(reward(b, w, beta), reward(b, l, beta)) for w, l in b.pairs])


def odpo(b: Ragged, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    s, losses = b.notes["score"], []
    for w, l in b.pairs:
        if s[w] > s[l]:
            delta = alpha * math.log(s[w] - s[l])
            losses.append(-log_sigmoid(reward(b, w, beta) - reward(b, l, beta) - delta))
    return average(losses)


def gdpo_geometric(b: Ragged, beta: float = 0.1) -> Tensor:
    p = b.notes["label_probability"]
    losses = [(2 * p[i] - 1) * (reward(b, w, beta) - reward(b, l, beta)) for i, (w, l) in enumerate(b.pairs)]
    return average([-log_sigmoid(u) for u in losses])


def nca(b: Ragged, beta: float = 0.1) -> Tensor:
    return each(b, lambda w, l: -log_sigmoid(w) - log_sigmoid(-w) / 2 - log_sigmoid(-l) / 2, beta)


def exo(b: Ragged, beta: float = 0.1, label_smoothing: float = 1e-3) -> Tensor:
    def kl(r_w: Tensor, r_l: Tensor) -> Tensor:
        z = torch.exp(r_w) + torch.exp(r_l)
        q, p = (torch.exp(r_w) / z, torch.exp(r_l) / z), (1 - label_smoothing, label_smoothing)
        return q[0] * torch.log(q[0] / p[0]) + q[1] * torch.log(q[1] / p[1])

    return each(b, kl, beta)


def chi_po(b: Ragged, beta: float = 0.1, r_max: float = 10.0) -> Tensor:
    def link(row: int) -> Tensor:
        z = torch.exp(total(ratios(b, row)))
        return beta * (z + torch.log(z))

    losses = []
    for w, l in b.pairs:
        u = link(w) - link(l)
        u = u if abs(u) < 2 * r_max else torch.sign(u).detach() * 2 * r_max
        losses.append(-log_sigmoid(u))
    return average(losses)


def gpo(b: Ragged, beta: float = 0.1, loss_type: str = "exponential") -> Tensor:
    g = {
        "exponential": lambda u: torch.exp(-u),
        "truncated-quadratic": lambda u: torch.maximum(torch.zeros_like(u), 1 - u) ** 2,
        "savage": lambda u: 1 / (1 + torch.exp(u)) ** 2,
    }[loss_type]
    return each(b, lambda w, l: g(w - l), beta)


def apo_zero(b: Ragged, beta: float = 0.1) -> Tensor:
    return each(b, lambda w, l: 1 - sigmoid(w) + sigmoid(l), beta)


def apo_down(b: Ragged, beta: float = 0.1) -> Tensor:
    return each(b, lambda w, l: sigmoid(w) + 1 - sigmoid(w - l), beta)


def sppo(b: Ragged, beta: float = 1e-3, target: str = "hard") -> Tensor:
    p = b.notes["win_probability"] if target == "measured" else None
    losses = []
    for w, l in b.pairs:
        wins = (1.0, 0.0) if p is None else (p[w], p[l])
        sides = [(total(ratios(b, y)) - (x - 0.5) / beta) ** 2 for y, x in zip((w, l), wins, strict=True)]
        losses.append(sides[0] + sides[1])
    return average(losses)


def simper(b: Ragged) -> Tensor:
    p = {y: torch.exp(average(b.tokens("policy", y))) for pair in b.pairs for y in pair}
    return average([p[l] - p[w] for w, l in b.pairs])


def e_dpo(b: Ragged, beta: float = 0.1) -> Tensor:
    s = b.notes["score"]
    return average([(s[w] - s[l] - reward(b, w, beta) + reward(b, l, beta)) ** 2 for w, l in b.pairs])


def alphapo(
    b: Ragged, beta: float = 2.5, alpha: float = 0.25, gamma_beta_ratio: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    def shaped(row: int) -> Tensor:
        return (1 - torch.exp(average(b.tokens("policy", row))) ** -alpha) / alpha

    margins = [beta * (shaped(w) - shaped(l) - gamma_beta_ratio) for w, l in b.pairs]
    return average([-(1 - label_smoothing) * log_sigmoid(u) - label_smoothing * log_sigmoid(-u) for u in margins])


def tied(b: Ragged, beta: float, win: Callable[[Tensor], Tensor], tie: Callable[[Tensor], Tensor]) -> Tensor:
    """Label 1, 1/2, 0: won, tied, lost; 0.8 is 0.6 won and 0.4 tied."""
    losses = []
    for p, (w, l) in zip(b.notes["label_probability"].tolist(), b.pairs, strict=True):
        u = reward(b, w, beta) - reward(b, l, beta)
        share = {1.0: (1, 0, 0), 0.5: (0, 1, 0), 0.8: (0.6, 0.4, 0), 0.0: (0, 0, 1)}[round(p, 6)]
        losses.append(-sum(s * torch.log(x) for s, x in zip(share, (win(u), tie(u), win(-u)), strict=True) if s))
    return average(losses)


def rao_kupper(b: Ragged, beta: float = 0.1, alpha: float = math.log(3)) -> Tensor:
    return tied(b, beta, lambda u: sigmoid(u - alpha), lambda u: 1 - sigmoid(u - alpha) - sigmoid(-u - alpha))


def davidson(b: Ragged, beta: float = 0.1, nu: float = 1.0) -> Tensor:
    def win(u: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-u) + 2 * nu * torch.exp(-u / 2))

    return tied(b, beta, win, lambda u: 2 * nu * torch.exp(-u / 2) * win(u))


def discopop(b: Ragged, beta: float = 0.1, discopop_tau: float = 0.05) -> Tensor:
    def blend(r_w: Tensor, r_l: Tensor) -> Tensor:
        u = r_w - r_l
        s = sigmoid(u / discopop_tau)
        return -(1 - s) * log_sigmoid(u) + s * torch.exp(-u)

    return each(b, blend, beta)


def bco(b: Ragged, beta: float = 0.1, shift: bool = True) -> Tensor:
    good, bad = [reward(b, w, beta) for w, _ in b.pairs], [reward(b, l, beta) for _, l in b.pairs]
    return average([-log_sigmoid(x) for x in good]) + average([-log_sigmoid(-x) for x in bad])


def apo_zero_unpaired(
    b: Ragged, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Tensor:
    losses = []
    for row, good in enumerate(b.notes["label"].tolist()):
        s = sigmoid(reward(b, row, beta))
        losses.append(desirable_weight * (1 - s) if good else undesirable_weight * s)
    return average(losses)


def plackett_luce(b: Ragged, beta: float = 0.1) -> Tensor:
    losses = []
    for rows in GROUPS:
        ranked = sorted(rows, key=lambda i: -b.notes["score"][i])
        e = [torch.exp(reward(b, i, beta)) for i in ranked]
        losses.append(-total([torch.log(e[k] / total(e[k:])) for k in range(len(e))]))
    return average(losses)


def lipo(b: Ragged, beta: float = 0.05) -> Tensor:
    s, losses = b.notes["score"], []
    for rows in GROUPS:
        r = {i: reward(b, i, beta) for i in rows}
        place = {i: 1 + k for k, i in enumerate(sorted(rows, key=lambda i: -r[i]))}
        terms = [torch.zeros((), dtype=torch.float64)]
        for i in rows:
            for j in rows:
                if s[i] > s[j]:
                    gain = abs(2 ** s[i] - 2 ** s[j])
                    discount = abs(1 / math.log(1 + place[i]) - 1 / math.log(1 + place[j]))
                    terms.append(-gain * discount * log_sigmoid(r[i] - r[j]))
        losses.append(total(terms))
    return average(losses)


def grpo_robust(b: Ragged, annotators: int = 3, step_size: float = 0.01) -> Tensor:
    mean = []
    for g in range(annotators):
        members = [pair for pair, who in zip(b.pairs, b.notes["annotator"].tolist(), strict=True) if who == g]
        mean.append(average([-log_sigmoid(reward(b, w, 0.1) - reward(b, l, 0.1)) for w, l in members]))
    return total(mean) / annotators  # the weights start equal


CASES: list[tuple[Callable[..., Tensor], dict[str, Any]]] = [
    (odpo, {}),
    (odpo, {"beta": 0.4, "alpha": 0.3}),
    (gdpo_geometric, {"beta": 0.5}),
    (nca, {"beta": 0.3}),
    (exo, {}),
    (exo, {"beta": 0.6, "label_smoothing": 0.2}),
    (chi_po, {}),
    (chi_po, {"beta": 0.9, "r_max": 1.5}),
    (gpo, {"beta": 0.3}),
    (gpo, {"beta": 0.3, "loss_type": "truncated-quadratic"}),
    (gpo, {"beta": 0.3, "loss_type": "savage"}),
    (apo_zero, {"beta": 0.4}),
    (apo_down, {"beta": 0.4}),
    (sppo, {}),
    (sppo, {"beta": 0.5}),
    (simper, {}),
    (e_dpo, {"beta": 0.7}),
    (alphapo, {}),
    (alphapo, {"alpha": -0.5, "beta": 1.5, "gamma_beta_ratio": 0.0, "label_smoothing": 0.1}),
    (rao_kupper, {}),
    (rao_kupper, {"beta": 0.8, "alpha": 0.2}),
    (davidson, {}),
    (davidson, {"beta": 0.8, "nu": 0.1}),
    (discopop, {}),
    (discopop, {"beta": 0.6, "discopop_tau": 0.7}),
    (bco, {}),
    (bco, {"beta": 0.5, "shift": False}),
    (apo_zero_unpaired, {}),
    (apo_zero_unpaired, {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.2}),
    (plackett_luce, {}),
    (plackett_luce, {"beta": 0.9}),
    (lipo, {}),
    (lipo, {"beta": 0.6}),
    (grpo_robust, {"annotators": 3}),
]
IDS = [f"{f.__name__}-{'-'.join(f'{k}={v}' for k, v in h.items()) or 'default'}" for f, h in CASES]


def made(by_hand: Callable[..., Tensor], hyper: dict[str, Any]) -> Method:
    return get_method(by_hand.__name__.replace("_", "-"), **hyper)


@pytest.mark.parametrize(("by_hand", "hyper"), CASES, ids=IDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_are_those_of_the_equation(by_hand, hyper, seed):
    b = noted(seed)
    agree(b, made(by_hand, hyper), by_hand(b, **hyper))


@pytest.mark.parametrize(("by_hand", "hyper"), CASES, ids=IDS)
def test_gradcheck(by_hand, hyper):
    b = ragged(11, junk=7.0)
    b.notes |= noted(11).notes
    m = made(by_hand, hyper)
    assert torch.autograd.gradcheck(
        lambda x: m(b.responses(policy=x)).scalar,
        b.policy.detach().requires_grad_(),
        atol=1e-4 if m.name == "sppo" else 1e-5,
    )


def test_sppo_reads_measured_win_probabilities():
    b = noted(2, win_probability=torch.rand(ROWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    agree(b, get_method("sppo", beta=0.3, target="measured"), sppo(b, 0.3, "measured"))


def test_odpo_leaves_out_pairs_without_an_offset_and_says_so():
    b = noted(3)
    s = b.notes["score"]
    wrong = sum(1 for w, l in b.pairs if s[w] <= s[l])
    assert 0 < wrong < len(b.pairs)
    loss = get_method("odpo")(b.responses())
    assert loss.health["not_higher"] == wrong
    assert loss.terms["preference"].count == len(b.pairs) - wrong
    b.notes["score"] = torch.zeros(ROWS, dtype=torch.float64)
    assert get_method("odpo")(b.responses()).scalar == 0


def test_ties_are_at_their_best_where_the_rewards_are_equal():
    """P(tie) is largest at D = 0, the three outcomes sum to one, and a tie pushes a gap back."""
    for name, key in (("rao-kupper", "alpha"), ("davidson", "nu")):
        m = get_method(name, **{key: 0.7})
        sums = []
        for gap in (-3.0, 0.0, 1.0):
            probability = []
            for label in (1.0, 0.5, 0.0):
                x = torch.tensor([10 * gap, 0.0], dtype=torch.float64, requires_grad=True)
                p = torch.tensor([label], dtype=torch.float64)
                loss = m(
                    Responses.of(x, torch.zeros(2, dtype=torch.float64), pairs="halves", label_probability=p)
                ).scalar
                probability.append(math.exp(-loss.item()))
                if label == 0.5:
                    slope = torch.autograd.grad(loss, x)[0][0].item()
                    assert abs(slope) < 1e-12 if gap == 0 else slope * gap > 0
            sums.append(sum(probability))
        assert sums == pytest.approx([1, 1, 1])


def test_plackett_luce_does_not_care_in_which_order_equals_stand():
    g = torch.Generator().manual_seed(0)
    x = -torch.rand(4, generator=g, dtype=torch.float64)
    zero, m = torch.zeros(4, dtype=torch.float64), get_method("plackett-luce")
    score = torch.tensor([1.0, 2.0, 2.0, 0.0], dtype=torch.float64)
    group = torch.zeros(4, dtype=torch.long)
    turned = torch.tensor([0, 2, 1, 3])
    a, b = (m(Responses.of(x[i], zero, score=score[i], group=group)).scalar for i in (torch.arange(4), turned))
    torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


def test_bco_subtracts_the_mean_of_the_sides_over_all_steps():
    b = noted(4)
    m, r = get_method("bco", beta=0.5), b.responses()
    r = m.init(r)
    good, bad = [reward(b, w, 0.5).detach() for w, _ in b.pairs], [reward(b, l, 0.5).detach() for _, l in b.pairs]
    sums = [sum(good), sum(bad), torch.tensor(float(len(good))), torch.tensor(float(len(bad)))]
    update = m(r).updates["seen"]
    state = update.advance(r.states["seen"], update.sum, update.count)
    torch.testing.assert_close(state, torch.stack(sums).double())
    twice = update.advance(state, update.sum, update.count)
    torch.testing.assert_close(twice, 2 * state)
    d = (sum(good) / len(good) + sum(bad) / len(bad)) / 2
    later = m(r.replace(states={"seen": state}))
    want = average([-log_sigmoid(x - d) for x in good]) + average([-log_sigmoid(d - x) for x in bad])
    torch.testing.assert_close(later.scalar, want, rtol=1e-12, atol=0)
    assert later.metrics["shift"].item() == pytest.approx(d.item())


def test_group_weights_follow_the_losses():
    b = noted(5)
    m = get_method("grpo-robust", annotators=3, step_size=0.5, base={"name": "dpo", "beta": 0.4})
    r = m.init(b.responses())
    update = m(r).updates["group_weights"]
    a = update.advance(r.states["group_weights"], update.sum, update.count)
    worst = update.sum / update.count
    want = torch.exp(0.5 * worst) / torch.exp(0.5 * worst).sum()
    torch.testing.assert_close(a, want, rtol=1e-12, atol=0)
    absent = update.advance(a, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(absent, a)
    weighted = m(r.replace(states={"group_weights": a}))
    torch.testing.assert_close(weighted.scalar, (a * worst).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "hyper", "says"),
    [
        ("exo", {"label_smoothing": 0.0}, r"label_smoothing = 0.0: must be in \(0, 0.5\)"),
        ("alphapo", {"alpha": 0.0}, "alpha = 0 is SimPO"),
        ("grpo-robust", {"annotators": 1}, "one group has no worst case"),
        ("grpo-robust", {"base": "kto"}, "needs a loss over pairs"),
        ("mpo", {"w_p": 0.0, "w_q": 0.0, "w_g": 0.0}, "nothing is left to train on"),
        ("mpo", {"w_q": 0.0, "quality": "nca"}, "quality = .* has no effect"),
        ("discopop", {"discopop_tau": 1.5}, r"must be in \(0, 1\]"),
        ("cpo", {"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing has no effect"),
    ],
)
def test_refusals(name, hyper, says):
    with pytest.raises(PrefoptError, match=says):
        get_method(name, **hyper)
