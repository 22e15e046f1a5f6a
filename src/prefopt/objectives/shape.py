"""How a configuration changes the reward of a method: divergence link, length rule, token weights, comparison.

Each is a *part*: a name with hyperparameters, checked like a method's. `compose.py` joins parts to a method.
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import PrefoptError
from . import links, words
from .hyper import Fraction, Inside, Real, Smoothing, describe, validate
from .scores import Rule, Scores

if TYPE_CHECKING:
    from .responses import Responses


@dataclass(frozen=True)
class Part:
    """One choice: `record` makes it again. `apply`: what it does (see the kinds below)."""

    kind: str
    name: str
    hyper: Mapping[str, Any]
    apply: Any = field(compare=False)

    def record(self) -> Any:
        return {"name": self.name, **self.hyper} if self.hyper else self.name


@dataclass(frozen=True)
class Tail:
    """The length rule of LD-DPO: positions beyond the pair's shorter response count with `alpha`."""

    alpha: float


TokenWeight = Callable[["Responses", Scores], Tensor]  # (the view, what is weighed) -> weights [R, T], constants


@dataclass(frozen=True)
class Shape:
    """What the batch knows of the parts: it hands a `Rule` to every log-ratio that a method reads."""

    link: Callable[[Tensor], Tensor] | None = None
    length: str | Tail | None = None
    token_weight: TokenWeight | None = None
    referenced: bool = True  # the reward is a log-ratio, else the policy's log-probability

    def rule(self, view: Responses, scores: Scores, what: str) -> Rule | None:
        """For the policy's scores or the log-ratio of a view. Nothing is refused before it is reduced."""
        if what == "policy" and self.referenced:
            return Rule(refusal=APART) if self.length or self.token_weight else None
        link = self.link if what == "log_ratio" else None
        weight = None if self.token_weight is None else self.token_weight(view, scores)
        if not isinstance(self.length, Tail):
            return Rule(link, self.length, weight)  # type: ignore[arg-type]
        if view.public is None:
            return Rule(refusal=ALONE)
        alpha = scores.values.new_full((), self.length.alpha)
        kept = torch.where(scores.position <= view.public[:, None], 1.0, alpha)
        return Rule(link, "sum", kept if weight is None else kept * weight)


APART = "it takes the log-probabilities of policy and reference apart, so there is no one reward to change"
ALONE = "it judges a response without its partner, and this length rule compares the two (take sum or mean)"


# ---- what there is


def _link(f: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
    return lambda: f


def _alpha_divergence(*, alpha: Inside) -> Any:
    return lambda R: links.alpha_divergence(R, alpha)


def _ld(*, alpha: Fraction) -> Any:
    return Tail(alpha)


def _decay(*, gamma: Inside) -> Any:
    """gamma^(t-1): early tokens decide."""
    return lambda view, scores: gamma ** (scores.position - 1).clamp(min=0).to(scores.values.dtype)


def _entropy() -> Any:
    """The policy's entropy at each position over its mean in the response: tokens without a choice do not count."""

    def weight(view: Responses, scores: Scores) -> Tensor:
        h = view.score("entropy").values.to(scores.values.dtype).abs()  # abs: rounding below 0
        mean = h.sum(-1, keepdim=True) / (scores.count > 0).sum(-1, keepdim=True).clamp(min=1)
        return h / mean.clamp(min=torch.finfo(h.dtype).tiny)

    return weight


def _sigmoid(*, label_smoothing: Smoothing = 0.0) -> Any:
    return words.smoothed(label_smoothing)


def _robust(*, label_smoothing: Smoothing) -> Any:
    return words.robust(label_smoothing)


def _squared(*, target: Real) -> Any:
    return words.squared(target)


PARTS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "link": {
        "reverse_kl": _link(links.reverse_kl),
        "forward_kl": _link(links.forward_kl),
        "jsd": _link(links.jsd),
        "alpha_divergence": _alpha_divergence,
    },
    "length": {"sum": lambda: "sum", "mean": lambda: "mean", "ld": _ld},
    "token_weight": {"decay": _decay, "entropy": _entropy},
    "compare": {"sigmoid": _sigmoid, "robust": _robust, "hinge": lambda: words.hinge, "squared": _squared},
}
KINDS = tuple(PARTS)


def make(kind: str, given: Any, who: str) -> Part:
    """The part that a configuration names: `jsd`, or `{name: alpha_divergence, alpha: 0.3}`. Errors name `who.kind`."""
    named = {"name": given} if isinstance(given, str) else given
    known = PARTS[kind]
    if not isinstance(named, Mapping) or not isinstance(named.get("name"), str):
        raise PrefoptError(
            f"{who}.{kind} = {given!r}: must be a name, or a name with its settings ({', '.join(known)})"
        )
    name, settings = named["name"], {k: v for k, v in named.items() if k != "name"}
    if name not in known:
        why = links.NO_LINK.get(name) if kind == "link" else None
        raise PrefoptError(f"{who}.{kind} = {name!r}: must be one of {', '.join(known)}" + (f"; {why}" if why else ""))
    factory = known[name]
    keys = {p.name: p.default for p in inspect.signature(factory).parameters.values()}
    for key in settings:
        if key not in keys:
            close = difflib.get_close_matches(key, keys, 1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(keys) or 'none'}"
            raise PrefoptError(f"{who}.{kind}: {name} has no setting '{key}'{hint}")
    hints = typing.get_type_hints(factory, include_extras=True)
    hyper = {}
    for key, default in keys.items():
        if key not in settings and default is inspect.Parameter.empty:
            raise PrefoptError(f"{who}.{kind}: {name} needs '{key}' ({describe(hints[key])})")
        hyper[key] = validate(f"{who}.{kind}", key, settings.get(key, default), hints[key])
    return Part(kind, name, MappingProxyType(hyper), factory(**hyper))


def own(kind: str, apply: Any) -> Part:
    """A part from a function of the caller's own."""
    return Part(kind, getattr(apply, "__name__", "own"), MappingProxyType({}), apply)
