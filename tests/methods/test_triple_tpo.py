"""Triple TPO against its equations, written out one token at a time, and against TRL's trainer."""

from __future__ import annotations

import collections
import math
import types
from typing import Any

import pytest
import torch
from ragged import ragged
from torch import Tensor

from prefopt import PrefoptError, Responses, get_method
from prefopt.objectives.probe import missing
from prefopt.training.engine import Meter, measures


def batch(seed: int, **options: Any) -> Any:
    """Ragged pairs with a gold response each, of other lengths."""
    b = ragged(seed, extras=False, **options)
    b.extras["gold"] = ragged(seed + 500, len(b.pairs), 8, pairs=False, extras=False)
    b.extras["gold"].notes = {}
    return b


def by_hand(b: Any, beta: float, alpha: float, gamma: float, e: float, loss_type: str) -> Tensor:
    losses = []
    for w, l in b.pairs:
        side = []
        for row in (w, l):
            tokens = b.tokens("policy", row)
            side.append(sum(tokens) / (len(tokens) if loss_type in ("tpo-l", "ipo") else 1))
        d = side[0] - side[1]
        u = beta * d - (gamma if loss_type == "tpo-l" else 0)
        soft = (1 - e) * torch.log(1 + torch.exp(-u)) + e * torch.log(1 + torch.exp(u))
        hinge = 1 - u if u < 1 else 0 * u
        losses.append({"hinge": hinge, "ipo": (d - 1 / (2 * beta)) ** 2}.get(loss_type, soft))
    gold = b.extras["gold"]
    tokens = [t for row in range(len(gold.mask)) for t in gold.tokens("policy", row)]
    return sum(losses) / len(losses) - alpha * sum(tokens) / len(tokens)


CASES: list[dict[str, Any]] = [
    {"loss_type": "sigmoid", "label_smoothing": 0.0},
    {"loss_type": "sigmoid", "label_smoothing": 0.2},
    {"loss_type": "tpo-l", "label_smoothing": 0.0, "gamma": 1.6},
    {"loss_type": "tpo-l", "label_smoothing": 0.3, "gamma": 0.5},
    {"loss_type": "tpo-l", "label_smoothing": 0.0, "gamma": 0.0},
    {"loss_type": "hinge", "label_smoothing": 0.0},
    {"loss_type": "ipo", "label_smoothing": 0.0},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("beta", "alpha"), [(0.3, 1.0), (2.0, 0.05)])
@pytest.mark.parametrize("seed", [0, 1])
def test_equation(seed: int, beta: float, alpha: float, case: dict[str, Any]) -> None:
    b = batch(seed)
    loss = get_method("triple-tpo", beta=beta, alpha=alpha, check=False, **case)(b.responses())
    want = by_hand(b, beta, alpha, case.get("gamma", 0.0), case["label_smoothing"], case["loss_type"])
    leaves = [b.policy, b.extras["gold"].policy]
    torch.testing.assert_close(loss.scalar, want, rtol=1e-12, atol=1e-12)
    for got, expected in zip(torch.autograd.grad(loss.scalar, leaves), torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)


def test_per_pair_values_are_the_contrast_and_rewards_are_without_gamma() -> None:
    b = batch(3)
    loss = get_method("triple-tpo", loss_type="tpo-l", gamma=1.5, beta=2.0)(b.responses())
    means = [[2.0 * sum(b.tokens("policy", i)) / len(b.tokens("policy", i)) for i in p] for p in b.pairs]
    assert loss.per("pairs").tolist() == pytest.approx([math.log1p(math.exp(1.5 - (w - l).item())) for w, l in means])
    for side, got in enumerate(loss.rewards):
        assert got.tolist() == pytest.approx([m[side].item() for m in means])


def test_the_gold_term_is_logged_before_alpha() -> None:
    b = batch(4)
    found = []
    for alpha in (1.0, 0.25, 0.0):
        meter, r = Meter(), b.responses()
        meter.add(measures(r, get_method("triple-tpo", alpha=alpha)(r)))
        found.append(meter.flush()["nll"])
    assert found[0] == found[1] > 0
    assert found[2] == 0


def test_alpha_0_asks_for_no_gold() -> None:
    contrast = get_method("triple-tpo", alpha=0.0)
    assert "extras:gold" not in contrast.needs()
    assert missing(contrast, {"scores:policy", "notes:pairs"}) == []
    b = batch(5)
    without = b.responses().replace(extras={})
    assert contrast(without).scalar == contrast(b.responses()).scalar
    whole = get_method("triple-tpo")
    assert missing(whole, {"scores:policy", "notes:pairs"}) == ["extras:gold"]
    with pytest.raises(PrefoptError, match="triple-tpo: .*'gold'"):
        whole(without)
    assert not any("reference" in need for need in [*contrast.needs(), *whole.needs()])


def test_the_gold_mean_is_over_the_tokens_of_the_whole_step() -> None:
    """Summed over parts with the step's counts: not a mean of the parts' means, which short golds would dominate."""
    b = batch(6)
    m = get_method("triple-tpo", beta=0.2, alpha=0.7)
    whole = m(b.responses())
    totals = {k: t.count for k, t in whole.terms.items()}
    share, means = torch.zeros(()), []
    for i, pair in enumerate(b.pairs):
        r = b.responses()
        gold = r.extras["gold"].scores["policy"][torch.tensor([i])]
        part = m(r.replace(notes={"pairs": torch.tensor([pair])}, extras={"gold": Responses({"policy": gold})}))
        share = share + sum((t.values.sum() / totals[k] for k, t in part.terms.items()), torch.zeros(()))
        means.append(part.scalar)
    torch.testing.assert_close(share, whole.scalar, rtol=1e-12, atol=0)
    assert abs(torch.stack(means).mean() - whole.scalar) > 1e-3


@pytest.mark.parametrize(
    "bad",
    [
        {"beta": 0.0},
        {"alpha": -0.1},
        {"gamma": -1.0, "loss_type": "tpo-l"},
        {"gamma": 0.5},
        {"gamma": 0.5, "loss_type": "ipo"},
        {"label_smoothing": 0.5},
        {"label_smoothing": -0.1},
        {"label_smoothing": 0.1, "loss_type": "hinge"},
        {"label_smoothing": 0.1, "loss_type": "ipo"},
        {"loss_type": "dpo"},
    ],
    ids=str,
)
def test_refusals(bad: dict[str, Any]) -> None:
    with pytest.raises(PrefoptError, match=r"triple-tpo\.(beta|alpha|gamma|label_smoothing|loss_type) = "):
        get_method("triple-tpo", **bad)


# ---- TRL


def trl_loss(logits: Tensor, ids: Tensor, mask: Tensor, alpha: float, **settings: Any) -> tuple[Tensor, dict[str, Any]]:
    trainer = pytest.importorskip("trl.experimental.tpo.tpo_trainer", reason="TRL is in the extra `bench`").TPOTrainer
    same = lambda x: x
    me = types.SimpleNamespace(
        model=torch.nn.Identity(),
        tpo_alpha=alpha,
        accelerator=types.SimpleNamespace(gather=same, gather_for_metrics=same),
        _metrics={"train": collections.defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **({"label_smoothing": 0.0, "tpo_l_gamma": 0.0} | settings),
    )
    inputs = {"input_ids": ids, "completion_mask": mask, "attention_mask": torch.ones_like(ids)}
    model = lambda **_: types.SimpleNamespace(logits=logits)
    return trainer._compute_loss(me, model, inputs, False), me._metrics["train"]


@pytest.mark.parametrize("alpha", [1.0, 0.05, 0.0])
@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_trl(case: dict[str, Any], beta: float, alpha: float) -> None:
    pairs, width, words, g = 4, 9, 11, torch.Generator().manual_seed(7)
    rows = pairs * (3 if alpha else 2)
    ids = torch.randint(1, words, (rows, width), generator=g)
    start = torch.randint(1, 4, (rows, 1), generator=g)
    t = torch.arange(width)
    mask = ((t >= start) & (t < start + torch.randint(1, 6, (rows, 1), generator=g))).long()
    logits = (3 * torch.randn(rows, width, words, generator=g, dtype=torch.float64)).requires_grad_()
    settings = {"loss_type": case["loss_type"], "label_smoothing": case["label_smoothing"], "beta": beta}
    theirs, logged = trl_loss(logits, ids, mask, alpha, tpo_l_gamma=case.get("gamma", 0.0), **settings)

    logps = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    two = slice(0, 2 * pairs)
    extras = {"gold": Responses.of(logps[2 * pairs :], mask=mask[2 * pairs :, 1:])} if alpha else {}
    r = Responses.of(logps[two], mask=mask[two, 1:], pairs="halves", extras=extras)
    loss = get_method("triple-tpo", alpha=alpha, beta=beta, check=False, **case)(r)
    torch.testing.assert_close(loss.scalar, theirs, rtol=1e-12, atol=1e-12)
    mine, want = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss.scalar, theirs))
    torch.testing.assert_close(mine, want, rtol=1e-10, atol=1e-13)
    for side, got in zip(("chosen", "rejected"), loss.rewards, strict=True):
        assert logged[f"rewards/{side}"][0] == pytest.approx(got.mean().item())
