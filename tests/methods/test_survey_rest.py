"""The survey's losses that read more than two responses' likelihoods, against their equations, one scalar at a time."""

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


def noted(seed: int) -> Ragged:
    b = ragged(seed)
    g = torch.Generator().manual_seed(seed + 90)
    pairs = len(b.pairs)
    values = -2 * torch.rand(b.mask.shape, generator=g, dtype=torch.float64)
    b.scores["log_collision"] = torch.where(b.mask, values, math.nan)
    b.scores["entropy"] = torch.where(b.mask, -values, math.nan)
    b.notes |= {
        "score": 3 * torch.rand(ROWS, generator=g, dtype=torch.float64),
        "cost": torch.randn(ROWS, generator=g, dtype=torch.float64),
        "unsafe": torch.tensor([1.0, 0.0, 0.9, 0.1, 1.0, 0.0, 0.0], dtype=torch.float64),
        "from_reference": torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64),
        "on_policy": torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64),
        "age": torch.tensor([0.0, 3.0, 1.5, 10.0], dtype=torch.float64)[:pairs],
        "dispersion": torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64)[:pairs],
        "wrong_step": torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=torch.float64)[:pairs],
        "step_index": 1 + (torch.arange(b.mask.shape[1]) >= 3).long().expand(ROWS, -1),
        "group": torch.tensor([0, 0, 0, 1, 1, 2, 2]),
    }
    return b


def h(b: Ragged, row: int) -> Tensor:
    return total(ratios(b, row))


def logp(b: Ragged, row: int) -> Tensor:
    return total(b.tokens("policy", row))


def losses(b: Ragged, beta: float) -> list[Tensor]:
    return [-log_sigmoid(beta * (h(b, w) - h(b, l))) for w, l in b.pairs]


def wpo(b: Ragged) -> Tensor:
    def weight(row: int) -> float:
        each = [
            p.item() - c.item() for p, c in zip(b.tokens("policy", row), b.tokens("log_collision", row), strict=True)
        ]
        return math.exp(sum(each) / len(each))

    return average([weight(w) * weight(l) * x for (w, l), x in zip(b.pairs, losses(b, 0.1), strict=True)])


def dr_dpo(b: Ragged, beta_prime: float = 1.0) -> Tensor:
    return -beta_prime * torch.log(average([torch.exp(-x / beta_prime) for x in losses(b, 0.1)]))


def ns_dpo(b: Ragged, gamma: float = 0.95) -> Tensor:
    return average([gamma**a * x for a, x in zip(b.notes["age"].tolist(), losses(b, 0.1), strict=True)])


def cal_dpo(b: Ragged, beta: float = 0.1) -> Tensor:
    terms = []
    for w, l in b.pairs:
        terms.append(-log_sigmoid(h(b, w) - h(b, l)) + (h(b, w) - 0.5 / beta) ** 2 + (h(b, l) + 0.5 / beta) ** 2)
    return average(terms)


def alpha_dpo(b: Ragged, beta: float = 2.5, gamma_beta_ratio: float = 0.1, alpha: float = 0.01) -> Tensor:
    gaps = [(average(ratios(b, w)) - average(ratios(b, l))).item() for w, l in b.pairs]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in gaps) / len(gaps))
    terms = []
    for (w, l), gap in zip(b.pairs, gaps, strict=True):
        s_w, s_l = (average(b.tokens("policy", y)) for y in (w, l))
        margin = gamma_beta_ratio * beta + alpha * (gap - mean) / deviation
        terms.append(-log_sigmoid(beta * s_w - beta * s_l - margin))
    return average(terms)


def safe_dpo(b: Ragged, beta: float = 0.1, delta: float = 0.0) -> Tensor:
    unsafe, terms = (b.notes["unsafe"] > 0.5).tolist(), []
    for w, l in b.pairs:
        if unsafe[w] and unsafe[l]:
            continue
        if unsafe[w]:
            w, l = l, w
        terms.append(-log_sigmoid(beta * (h(b, w) - h(b, l)) - delta * (unsafe[l] - unsafe[w])))
    return average(terms)


def c_dpo(b: Ragged, beta: float = 0.1, lam_0: float = 1.0) -> Tensor:
    u = (b.notes["score"] - lam_0 * b.notes["cost"]).tolist()
    ordered = [(w, l) if u[w] > u[l] else (l, w) for w, l in b.pairs]
    return average([-log_sigmoid(beta * (h(b, w) - h(b, l))) for w, l in ordered])


def mallows_po(b: Ragged, beta: float = 0.1, dispersion: str = "entropy", vocabulary: int = 32000) -> Tensor:
    terms = []
    for i, (w, l) in enumerate(b.pairs):
        H = (average(b.tokens("entropy", w)) + average(b.tokens("entropy", l))).item() / 2
        entropy = dispersion == "entropy"
        phi = -math.log(H / math.log(vocabulary)) if entropy else b.notes["dispersion"][i].item()
        terms.append(-log_sigmoid(phi * beta * (h(b, w) - h(b, l))))
    return average(terms)


def xpo(b: Ragged, beta: float = 0.1, alpha: float = 1e-5) -> Tensor:
    flags = b.notes["from_reference"].tolist()
    own = [total([logp(b, y) for y in pair if flags[y]]) for pair in b.pairs]
    return average([x + alpha * s for x, s in zip(losses(b, beta), own, strict=True)])


def hypo(b: Ragged, beta: float = 0.1, lam: float = 0.1) -> Tensor:
    sampled = [y for y in range(ROWS) if b.notes["on_policy"][y]]
    kl = average([h(b, y).detach() + h(b, y).detach() * (logp(b, y) - logp(b, y).detach()) for y in sampled])
    return average(losses(b, beta)) + lam * kl


def step_dpo(b: Ragged, beta: float = 0.1) -> Tensor:
    terms = []
    for (w, l), k in zip(b.pairs, b.notes["wrong_step"].tolist(), strict=True):
        sides = []
        for y in (w, l):
            places = [t for t in range(b.mask.shape[1]) if b.mask[y, t]]
            sides.append([x for t, x in zip(places, ratios(b, y), strict=True) if b.notes["step_index"][y, t] == k])
        if all(sides):
            terms.append(-log_sigmoid(beta * (total(sides[0]) - total(sides[1]))))
    return average(terms)


def dmpo(b: Ragged, beta: float = 0.1, gamma: float = 0.7) -> Tensor:
    def reward(y: int) -> Tensor:
        turns: list[list[Tensor]] = []
        found, before = iter(ratios(b, y)), False
        for scored in b.mask[y].tolist():
            if scored:
                turns = turns if before else [*turns, []]
                turns[-1].append(next(found))
            before = scored
        T = len(turns)
        weights = [gamma**t * (1 - gamma ** (T - t)) / (1 - gamma**T) for t in range(T)]
        return beta * total([x * total(turn) for x, turn in zip(weights, turns, strict=True)])

    return average([-log_sigmoid(reward(w) - reward(l)) for w, l in b.pairs])


def opo(b: Ragged, beta: float = 0.1, tau: float = 1.0) -> Tensor:
    terms = []
    for rows in GROUPS:
        s = torch.stack([beta * h(b, y) for y in rows])
        gain, n = [2 ** b.notes["score"][y].item() - 1 for y in rows], len(rows)
        P = []
        for k in range(1, n + 1):
            z = [(n + 1 - 2 * k) * s[j] - total([abs(s[j] - s[i]) for i in range(n)]) for j in range(n)]
            P.append(torch.stack([torch.exp(x / tau) for x in z]))
        M = torch.stack([row / row.sum() for row in P])
        for _ in range(30):
            M = M / M.sum(0, keepdim=True)
            M = M / M.sum(1, keepdim=True)
        dcg = total([M[k] @ torch.tensor(gain, dtype=torch.float64) / math.log2(2 + k) for k in range(n)])
        best = sum(x / math.log2(2 + k) for k, x in enumerate(sorted(gain, reverse=True)))
        terms.append(-dcg / best)
    return average(terms)


CASES: list[tuple[Callable[..., Tensor], dict[str, Any]]] = [
    (wpo, {}),
    (dr_dpo, {}),
    (dr_dpo, {"beta_prime": 0.1}),
    (ns_dpo, {}),
    (ns_dpo, {"gamma": 0.3}),
    (cal_dpo, {}),
    (cal_dpo, {"beta": 2.0}),
    (alpha_dpo, {}),
    (alpha_dpo, {"beta": 1.5, "gamma_beta_ratio": 0.6, "alpha": 0.7}),
    (safe_dpo, {}),
    (safe_dpo, {"beta": 0.7, "delta": 0.8}),
    (c_dpo, {}),
    (c_dpo, {"beta": 0.7, "lam_0": 4.0}),
    (mallows_po, {}),
    (mallows_po, {"beta": 0.5, "vocabulary": 300}),
    (mallows_po, {"beta": 0.5, "dispersion": "column"}),
    (xpo, {}),
    (xpo, {"beta": 0.5, "alpha": 0.3}),
    (hypo, {}),
    (hypo, {"beta": 0.5, "lam": 0.9}),
    (step_dpo, {}),
    (step_dpo, {"beta": 0.9}),
    (dmpo, {}),
    (dmpo, {"beta": 0.9, "gamma": 0.2}),
    (opo, {}),
    (opo, {"beta": 0.8, "tau": 0.3}),
]
IDS = [f"{f.__name__}-{'-'.join(f'{k}={v}' for k, v in x.items()) or 'default'}" for f, x in CASES]


def made(by_hand: Callable[..., Tensor], hyper: dict[str, Any]) -> Method:
    return get_method(by_hand.__name__.replace("_", "-"), **hyper)


@pytest.mark.parametrize(("by_hand", "hyper"), CASES, ids=IDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_are_those_of_the_equation(by_hand, hyper, seed):
    b = noted(seed)
    agree(b, made(by_hand, hyper), by_hand(b, **hyper))


@pytest.mark.parametrize("base", [{"name": "ipo"}, {"name": "simpo", "beta": 1.0}, {"name": "apo-zero"}])
@pytest.mark.parametrize("name", ["wpo", "dr-dpo", "ns-dpo"])
def test_weights_go_around_any_pairwise_method(name, base):
    """The weighted sum of the base's own losses, with weights that add up to the pairs for the robust one."""
    r = noted(0).responses()
    inner = get_method(**base)(r)
    out = get_method(name, base=base)(r)
    got = torch.autograd.grad(out.scalar, r.scores["policy"].values, retain_graph=True)[0]
    each = (out.metrics["weights"] * inner.per("pairs")).mean()
    torch.testing.assert_close(got, torch.autograd.grad(each, r.scores["policy"].values)[0], rtol=1e-12, atol=1e-14)
    if name == "dr-dpo":
        torch.testing.assert_close(out.metrics["weights"].mean(), torch.ones((), dtype=torch.float64))


def test_what_a_limit_is():
    r = noted(2).responses()
    dpo = get_method("dpo")(r).scalar
    torch.testing.assert_close(get_method("dr-dpo", beta_prime=1e7)(r).scalar, dpo, rtol=1e-6, atol=0)
    torch.testing.assert_close(get_method("ns-dpo", gamma=1.0)(r).scalar, dpo)
    torch.testing.assert_close(get_method("xpo", alpha=0.0)(r).scalar, dpo)
    torch.testing.assert_close(get_method("hypo", lam=0.0)(r).scalar, dpo)
    alpha, simpo = (
        get_method(n, beta=2.0, gamma_beta_ratio=0.3, **x)(r).scalar
        for n, x in (("alpha-dpo", {"alpha": 0.0}), ("simpo", {}))
    )
    torch.testing.assert_close(alpha, simpo)


def test_one_turn_is_dpo():
    x = -torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    r = Responses.of(x, 0.5 * x, pairs="halves")
    torch.testing.assert_close(get_method("dmpo")(r).scalar, get_method("dpo")(r).scalar)


def test_a_shared_prefix_cancels():
    """Step-DPO of the first wrong step is DPO on answers that end with it."""
    x = -torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[1, :3] = x[0, :3]
    step = torch.tensor([[1, 1, 1, 2, 2, 3]] * 2)
    upto = {"reference_logps": 0.3 * x, "pairs": "halves"}
    told = {"step_index": step, "wrong_step": torch.tensor([2.0])}
    cut = Responses.of(x[:, :5], 0.3 * x[:, :5], pairs="halves")
    torch.testing.assert_close(
        get_method("step-dpo")(Responses.of(x, **upto, **told)).scalar, get_method("dpo")(cut).scalar
    )


def test_a_pair_cut_before_its_step_is_left_out():
    x = -torch.rand(4, 3, dtype=torch.float64)
    told = {"step_index": torch.tensor([[1, 1, 2]] * 4), "wrong_step": torch.tensor([2.0, 3.0])}
    loss = get_method("step-dpo")(Responses.of(x, 0.3 * x, pairs="halves", **told))
    assert loss.health["no_wrong_step"] == 1
    assert loss.terms["preference"].count == 1


def test_safety_turns_pairs_and_drops_those_it_cannot_order():
    x, zero = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    unsafe = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 1.0])  # chosen of three pairs, then rejected: turned, dropped, kept
    loss = get_method("safe-dpo", delta=2.0)(Responses.of(x, zero, pairs="halves", unsafe=unsafe))
    assert loss.metrics["turned"].tolist() == [1, 0, 0]
    assert loss.health["both_unsafe"] == 1
    assert loss.terms["preference"].count == 2
    assert loss.terms["preference"].logit.tolist() == [-2, 0, -2]
    with pytest.raises(PrefoptError, match="unsafe"):
        get_method("safe-dpo")(Responses.of(x, zero, pairs="halves", unsafe=2 * unsafe))


def test_the_price_of_cost_rises_while_the_policy_costs_too_much():
    """J by hand: the pair's two responses, weighed by the policy over the reference."""
    x = torch.tensor([0.4, -0.2, -0.5, 0.3], dtype=torch.float64)
    cost = torch.tensor([2.0, 0.0, -1.0, 1.0], dtype=torch.float64)
    score = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    r = Responses.of(x, torch.zeros(4, dtype=torch.float64), pairs="halves", cost=cost, score=score)
    m = get_method("c-dpo", lam_0=0.2, step_size=0.5, budget=0.25)
    r = m.init(r)
    loss = m(r)
    J = 0.0
    for w, l in ((0, 2), (1, 3)):
        e = math.exp(x[w]), math.exp(x[l])
        J += (e[0] * cost[w].item() + e[1] * cost[l].item()) / sum(e) / 2
    update = loss.updates["lam"]
    for old in (0.2, 7.0):
        new = update.advance(torch.tensor(old, dtype=torch.float64), update.sum, update.count)
        assert new.item() == pytest.approx(old + 0.5 * (J - 0.25))
    low = update.advance(torch.tensor(0.0, dtype=torch.float64), torch.tensor(-9.0), torch.tensor(1.0))
    assert low == 0
    prices = [m(r.replace(states={"lam": torch.tensor(p, dtype=torch.float64)})) for p in (0.0, 10.0)]
    assert [p.metrics["turned"].tolist() for p in prices] == [
        [0, 0],
        [1, 0],
    ]  # the first costs 3 more, the second 1 less
    even = Responses.of(x, 0 * x, pairs="halves", cost=torch.zeros(4), score=torch.ones(4))
    assert m(m.init(even)).terms["preference"].count == 0


def test_on_policy_gradient_is_that_of_the_kl():
    """Over all answers of a small space, weighed by the policy, the surrogate's gradient is KL's."""
    z = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ref = torch.log_softmax(torch.arange(5.0, dtype=torch.float64), 0)
    logp = torch.log_softmax(z, 0)
    exact = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), z, retain_graph=True)[0]
    p, got = logp.detach().exp(), torch.zeros(5, dtype=torch.float64)
    for y in range(5):
        rows = torch.stack([logp[y].detach(), logp[y].detach(), logp[y]])
        told = {"pairs": torch.tensor([[0, 1]]), "on_policy": torch.tensor([0.0, 0.0, 1.0])}
        kl = get_method("hypo", lam=1.0)(Responses.of(rows, torch.stack([ref[y]] * 3), **told)).terms["kl"]
        assert kl.mean().item() == pytest.approx((logp[y] - ref[y]).item())
        got += p[y] * torch.autograd.grad(kl.mean(), z, retain_graph=True)[0]
    torch.testing.assert_close(got, exact)


def test_a_sharp_sort_is_minus_ndcg():
    score = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    for reward, dcg in (([3.0, 1.0, 2.0], None), ([1.0, 2.0, 3.0], (3 / 1, 1 / math.log2(3), 7 / 2))):
        r = Responses.of(
            torch.tensor(reward, dtype=torch.float64),
            torch.zeros(3, dtype=torch.float64),
            score=score,
            group=torch.zeros(3, dtype=torch.long),
        )
        got = get_method("opo", beta=1.0, tau=0.05)(r).scalar.item()
        best = 7 + 3 / math.log2(3) + 1 / 2
        assert got == pytest.approx(-1.0 if dcg is None else -sum(dcg) / best, abs=1e-6)
    flat = Responses.of(torch.zeros(3), torch.zeros(3), score=torch.zeros(3), group=torch.zeros(3, dtype=torch.long))
    assert get_method("opo")(flat).scalar == 0  # no gain to be had


def test_alpha_dpo_starts_as_simpo():
    """Where policy is reference all gaps are rounding, which must not be blown up to deviations of one."""
    g = torch.Generator().manual_seed(0)
    x = -torch.rand(8, 5, generator=g)
    near = x + 1e-6 * torch.randn(8, 5, generator=g)
    r = Responses.of(x, near, pairs="halves")
    settings = {"beta": 2.0, "gamma_beta_ratio": 0.3}
    alpha, simpo = get_method("alpha-dpo", alpha=1.0, **settings)(r), get_method("simpo", **settings)(r)
    torch.testing.assert_close(alpha.scalar, simpo.scalar, rtol=0, atol=2e-3)
