"""Methods of the tests: everything that the interface allows and the registered methods may not use yet."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from prefopt import Loss, Method, Responses, Update, over_groups, over_pairs, over_responses, over_tokens, prefer
from prefopt.objectives.hyper import Fraction, NonNegative, Positive
from prefopt.objectives.loss import compare
from prefopt.objectives.method import Family, family
from prefopt.objectives.words import bradley_terry, lambda_weight


def toy(fn):
    """A family that is not registered."""
    return Family(fn.__name__.replace("_", "-"), fn, "", "")


def ema(old, total, n):
    return torch.where(n > 0, 0.9 * old + 0.1 * total / n.clamp(min=1), old)


@toy
def shifted(r: Responses, *, beta: Positive = 0.5) -> Loss:
    """A running mean of margins, advanced once a step."""
    mean = r.state("mean", lambda: torch.zeros((), dtype=torch.float64))
    w, l = r.pairs()
    gap = beta * (w.policy.sum() - l.policy.sum())
    moved = {"mean": Update(gap.detach().sum(), gap.new_full((), len(gap)), ema)}
    return Loss(preference=compare(gap - mean, bradley_terry), rewards=(gap, -gap), updates=moved)


@toy
def judged(r: Responses, *, beta: Positive = 0.5, hidden: Fraction = 0.5) -> Loss:
    """Parameters of its own, on an annotation."""
    net = r.module("net", lambda: nn.Linear(3, 1))
    trust = hidden * torch.sigmoid(net(r.note("features", "R K").to(net.weight.dtype)))[:, 0]
    return Loss(value=over_responses(-trust * logsigmoid(beta * r.log_ratio.mean())))


@toy
def reweighed(r: Responses, *, base: Method = family("dpo")(), rate: Fraction = 0.2) -> Loss:
    """A stateful wrapper that runs what it wraps twice, once with the labels turned round."""
    level = r.state("level", lambda: torch.full((2,), 0.5, dtype=torch.float64))
    out = base(r)
    gap = (base(r.swapped()).per("pairs") - out.per("pairs")).detach()
    who = r.note("annotator", "P", dtype=int, below=2, default=lambda: torch.zeros(len(gap), dtype=torch.long))
    w = torch.sigmoid(gap + torch.logit(level[who]))
    seen = torch.nn.functional.one_hot(who, 2).to(w.dtype)
    moved = Update(w @ seen, seen.sum(0), lambda old, s, n: (1 - rate) * old + rate * (s + 1) / (n + 2))
    return out.weighted(w).replace(updates={**out.updates, "level": moved})


@toy
def listed(r: Responses, *, beta: Positive = 1.0) -> Loss:
    """A ranked list, ragged; a term over groups."""
    phi = r.note("score", "R")
    s = beta * r.policy.mean()
    gap = lambda_weight(phi, r.rank(phi))
    return Loss(ranking=over_groups(r.beats(phi) * gap * -logsigmoid(s[:, None] - s), r), rewards=s)


@toy
def segmented(r: Responses, *, beta: Positive = 0.3, sft: NonNegative = 0.1) -> Loss:
    """Segments of a response with their own labels; ties drop out of sum and count; a second normaliser."""
    w, l = r.pairs()
    parts = [y.log_ratio.segments(y.note("step", "R T", dtype=int, below=3), 3).values for y in (w, l)]
    sign = r.note("winner", "P K", dtype=int, below=3) - 1
    logit = beta * sign * (parts[0] - parts[1])
    keep = (sign != 0).any(-1)
    values = (bradley_terry(logit) * (sign != 0)).sum(-1) / (sign != 0).sum(-1).clamp(min=1)
    return Loss(segments=over_pairs(values, keep), nll=sft * over_tokens(-w.policy))


@toy
def sided(r: Responses, *, beta: Positive = 0.3) -> Loss:
    """Pointwise: sides of pairs, or of labelled rows; two terms whose counts differ."""
    good, bad = r.sides()
    up, down = good.log_ratio.sum(), bad.log_ratio.sum()
    terms = {"good": over_responses(-logsigmoid(beta * up)), "bad": over_responses(-logsigmoid(-beta * down))}
    return Loss(rewards=(beta * up, beta * down), metrics={"up": up}, **terms)


@toy
def golden(r: Responses, *, beta: Positive = 0.3) -> Loss:
    """An extra with gradient, a step-wide mean of one without, an optional annotation, another model's scores."""
    w, l = r.pairs()
    z = r.step_mean("anchor", r.extra("mismatched", grad=False).log_ratio.sum())
    old = r.score("old").mean()
    trust = r.note("trust", "P", default=lambda: torch.ones(len(w.policy.sum()), dtype=torch.float64))
    gold = over_tokens(-r.extra("gold").policy)
    out = prefer(beta * w.log_ratio.sum() - z, beta * l.log_ratio.sum() - old.mean().detach() * 0, gold=gold)
    return out.weighted(trust)


TOYS: dict[str, Method] = {
    "shifted": shifted(),
    "judged": judged(),
    "reweighed(dpo)": reweighed(),
    "reweighed(orpo)": reweighed(base="orpo"),
    "reweighed(shifted)": reweighed(base=shifted()),
    "reweighed(reweighed(shifted))": reweighed(base=reweighed(base=shifted(), rate=0.1)),
    "listed": listed(),
    "segmented": segmented(),
    "sided": sided(),
    "golden": golden(),
}
