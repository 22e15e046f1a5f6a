"""What a method answers: named terms, each with its own normaliser, and what one wants to see beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import PrefoptError
from .scores import Scores
from .words import bradley_terry

if TYPE_CHECKING:
    from .responses import Responses

LEAST = 1e-9
"""What a term without a single addend is divided by; its values are 0."""
Comparison = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """One addend of the loss, unreduced. Its scalar is `values.sum() / count`.

    `count` adds up over micro-batches and processes and depends on the data only, never on scores: the
    trainer counts a whole optimiser step before the first forward, so accumulation is exact.
    """

    values: Tensor
    count: Tensor  # scalar
    over: str  # pairs | responses | tokens | groups | ...: what the mean is taken over
    logit: Tensor | None = None  # a comparison remembers its argument ...
    compare: Comparison | None = None  # ... and its shape, so that either can be exchanged
    keep: Tensor | None = None  # [P] pairs that count (a tie teaches nothing)
    weight: Tensor | float = 1.0  # ... and what the comparison was multiplied with: it outlives an exchange

    def __add__(self, other: Term) -> Term:
        """Two sums under one normaliser (ORPO's prompt and completion tokens)."""
        joined = torch.cat([self.values.flatten(), other.values.flatten()])
        return Term(joined, self.count + other.count, self.over)

    def __mul__(self, weight: Tensor | float) -> Term:
        """A weight on the loss."""
        return dataclasses.replace(self, values=self.values * weight, weight=self.weight * weight)

    __rmul__ = __mul__

    def mean(self) -> Tensor:
        return self.values.sum() / self.count.clamp(min=LEAST).to(self.values.dtype)


def _number(values: Tensor, keep: Tensor | None) -> Tensor:
    return values.new_full((), len(values)) if keep is None else keep.sum().to(values.dtype)


def _kept(values: Tensor, keep: Tensor | None) -> Tensor:
    return values if keep is None else torch.where(keep, values, 0.0)  # what is left out may be inf or NaN


def over_pairs(values: Tensor, keep: Tensor | None = None) -> Term:
    """A mean over pairs of values [P]; `keep` [P] bool leaves some out of both sum and count."""
    return Term(_kept(values, keep), _number(values, keep), "pairs")


def over_responses(values: Tensor, keep: Tensor | None = None) -> Term:
    """A mean over responses of values [R]; `keep` [R] bool as in `over_pairs`."""
    return Term(_kept(values, keep), _number(values, keep), "responses")


def over_tokens(scores: Scores) -> Term:
    """One mean over all positions of all responses (not a mean of means)."""
    return Term(scores.values, scores.count.sum().to(scores.values.dtype), "tokens")


def over_groups(matrix: Tensor, r: Responses) -> Term:
    """[R, R] values of (i, j), summed within each list: one number a list, placed at the list's first row."""
    same = r.same_group()
    first = same.int().argmax(1) == torch.arange(len(same), device=same.device)
    inside = torch.where(same, matrix, 0.0).sum(1)  # whatever stands between two lists is no pair
    values = torch.where(first, same.to(matrix.dtype) @ inside, 0.0)
    return Term(values, first.sum().to(matrix.dtype), "groups")


def compare(logit: Tensor, how: Comparison, keep: Tensor | None = None) -> Term:
    """A mean over pairs of how(logit) [P] that remembers both."""
    return dataclasses.replace(over_pairs(how(logit), keep), logit=logit, compare=how, keep=keep)


@dataclass(frozen=True)
class Update:
    """State in two phases: `sum` and `count` add up over an optimiser step, then `advance(old, sum, count)` once."""

    sum: Tensor
    count: Tensor
    advance: Callable[[Tensor, Tensor, Tensor], Tensor]


class Loss:
    """Named terms, the loss being the sum of their means.

    rewards: (chosen [P], rejected [P]) or one per response [R]; constants, for metrics.
    metrics: name -> tensor (averaged over its elements) or Term (averaged over its own count).
    health:  name -> scalar tensor, counted; non-zero is what the user should worry about.
    updates: name -> Update of a state that the method asked for.
    exports: name -> [P] constants (without pairs [R]), written for every training example at the end of a run.
    """

    def __init__(
        self,
        rewards: tuple[Tensor, Tensor] | Tensor | None = None,
        metrics: Mapping[str, Tensor | Term] | None = None,
        health: Mapping[str, Tensor] | None = None,
        updates: Mapping[str, Update] | None = None,
        exports: Mapping[str, Tensor] | None = None,
        **terms: Term,
    ):
        for name, term in terms.items():
            if not isinstance(term, Term):
                raise PrefoptError(
                    f"the loss term '{name}' is a {type(term).__name__}: say what it is averaged over with over_pairs, "
                    "over_responses, over_tokens or over_groups"
                )
        self.terms, self.rewards = terms, rewards
        self.metrics, self.health, self.updates = dict(metrics or {}), dict(health or {}), dict(updates or {})
        self.exports = dict(exports or {})

    def replace(self, terms: Mapping[str, Term] | None = None, **fields: Any) -> Loss:
        kept = {"rewards": self.rewards, "metrics": self.metrics, "health": self.health, "updates": self.updates}
        kept |= {"exports": self.exports}
        made: dict[str, Any] = {**kept, **fields, **(self.terms if terms is None else terms)}
        return Loss(**made)

    @property
    def scalar(self) -> Tensor:
        """The loss of this batch alone."""
        return torch.stack([t.mean() for t in self.terms.values()]).sum()

    def per(self, over: str) -> Tensor:
        """The sum of the terms that count per pair (response, ...): one value each."""
        found = [t.values for t in self.terms.values() if t.over == over]
        if not found:
            raise PrefoptError(f"needs a loss over {over}; the terms of the wrapped method are {self._described()}")
        return torch.stack(found).sum(0)

    def keep(self, over: str) -> Tensor | None:
        """Which of them count, as the first comparison over them says; None: all."""
        return next((t.keep for t in self.terms.values() if t.over == over and t.keep is not None), None)

    def others(self, over: str) -> dict[str, Term]:
        return {k: t for k, t in self.terms.items() if t.over != over}

    def weighted(self, weight: Tensor, over: str = "pairs") -> Loss:
        """Weights on the terms that count per `over`; the normaliser stays (a weight is not a count)."""
        self.per(over)
        for name, t in self.terms.items():
            if t.over == over and t.values.shape != weight.shape:
                raise PrefoptError(
                    f"weights {list(weight.shape)} over {over} do not fit the loss term '{name}' {list(t.values.shape)}"
                )
        return self.replace({k: t * weight if t.over == over else t for k, t in self.terms.items()})

    def recompared(
        self, how: Comparison | None = None, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0
    ) -> Loss:
        """The same logits under another comparison, scaled (a weight on the logit) or shifted (a margin)."""
        if not any(t.compare for t in self.terms.values()):
            raise PrefoptError(f"there is no comparison to change: the terms are {self._described()}")

        def again(t: Term) -> Term:
            if t.logit is None or t.compare is None:
                return t
            return compare(scale * t.logit - shift, how or t.compare, t.keep) * t.weight

        return self.replace({k: again(t) for k, t in self.terms.items()})

    def _described(self) -> str:
        return ", ".join(f"{k} (over {t.over})" for k, t in self.terms.items())


def prefer(
    reward_w: Tensor,
    reward_l: Tensor,
    how: Comparison = bradley_terry,
    margin: Tensor | float = 0.0,
    metrics: Mapping[str, Tensor | Term] | None = None,
    **terms: Term | None,
) -> Loss:
    """The usual answer: compare two rewards [P] (Bradley-Terry unless told otherwise), report them, add terms.

    A term that is None is left out.
    """
    preference = compare(reward_w - reward_l - margin, how)
    made: dict[str, Any] = {"preference": preference} | {k: t for k, t in terms.items() if t is not None}
    return Loss(rewards=(reward_w, reward_l), metrics=metrics, **made)
