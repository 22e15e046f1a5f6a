"""What a model says about responses: additive numbers per position, and how many elements each one sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..errors import PrefoptError

ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
"""How far two computations of one model may differ at a position: kernels and batches of other shapes round otherwise."""


@dataclass(frozen=True)
class Rule:
    """How the numbers of a response become one, where a configuration says otherwise than the method (compose.py)."""

    link: Callable[[Tensor], Tensor] | None = None  # applied to every reduction: f'(ratio) of f-DPO
    length: Literal["sum", "mean"] | None = None  # instead of what the method takes
    weight: Tensor | None = None  # [R, T], of each position
    refusal: str = ""  # why these numbers must not be reduced


@dataclass(frozen=True)
class Scores:
    """Additive numbers per position, and how many elements each one is the sum of.

    Text: log-probabilities, count = 0/1 mask. Denoising: minus the summed squared error of a frame,
    count = C*H*W. A whole-sequence number (another tokenizer, a stored sum): T = 1, count = its own
    token count. Where count is 0 the value is junk: it is dropped here, once, and nowhere else.
    """

    values: Tensor  # [R, T]
    count: Tensor  # [R, T], >= 0
    rule: Rule | None = None

    def __post_init__(self) -> None:
        # half precision cannot count past 2048 (bfloat16: 256) nor sum what it can hold
        count, values = full_precision(self.count), full_precision(self.values)
        object.__setattr__(self, "count", count)
        object.__setattr__(self, "values", torch.where(count > 0, values, 0.0))

    def like(self, values: Tensor, count: Tensor | None = None) -> Scores:
        """The same positions with other numbers."""
        return Scores(values, self.count if count is None else count, self.rule)

    def sum(self) -> Tensor:
        """[R] total of each response: its log-probability."""
        return self._reduced("sum")

    def mean(self) -> Tensor:
        """[R] total divided by each response's own length."""
        return self._reduced("mean")

    def each_mean(self) -> Tensor:
        """[R, T] each position divided by the elements that it sums."""
        return self.values / self.count.clamp(min=1)

    @property
    def length(self) -> Tensor:
        """[R] number of elements (text: scored tokens)."""
        return self.count.sum(-1)

    @property
    def positions(self) -> Tensor:
        """[R] number of scored positions (text: the length)."""
        return (self.count > 0).sum(-1)

    def rounding(self) -> Tensor:
        """[R] differences of sums that are no larger say nothing (a mean's: divided by `positions`)."""
        return ROUNDING[self.values.dtype] * self.positions

    @property
    def position(self) -> Tensor:
        """[R, T] 1-based index of each scored position inside its response."""
        return (self.count > 0).cumsum(-1)

    def where(self, keep: Tensor) -> Scores:
        """Only the positions where `keep` [R, T] is true."""
        return self.like(self.values * keep, self.count * keep)

    def segments(self, index: Tensor, k: int) -> Scores:
        """[R, T] -> [R, k]: sums over the positions of segment 0 .. k-1; a negative index is no segment."""
        if self.rule is not None:
            raise PrefoptError("it compares parts of responses: a rule for whole responses does not reach them")
        return self.like(into_segments(self.values, index, k), into_segments(self.count, index, k))

    def detach(self) -> Scores:
        return self.like(self.values.detach())

    def __getitem__(self, rows: Tensor) -> Scores:
        part = self.like(self.values[rows], self.count[rows])
        if self.rule is None or self.rule.weight is None:
            return part
        return replace(part, rule=replace(self.rule, weight=self.rule.weight[rows]))

    def __add__(self, other: Scores) -> Scores:
        return self.like(self.values + other._aligned(self))

    def __sub__(self, other: Scores) -> Scores:
        return self.like(self.values - other._aligned(self))

    def __mul__(self, factor: Tensor | float) -> Scores:
        return self.like(self.values * factor)

    __rmul__ = __mul__

    def __neg__(self) -> Scores:
        return self.like(-self.values)

    def _aligned(self, other: Scores) -> Tensor:
        """The values, if they stand at the other's positions: broadcasting a total over tokens would be silent."""
        if self.values.shape != other.values.shape:
            raise PrefoptError(
                f"scores of shapes {list(other.values.shape)} and {list(self.values.shape)} do not stand at the same "
                "[responses, positions]: give both per token or both as totals, or reduce first (a.sum() - b.sum())"
            )
        return self.values

    def _reduced(self, how: str) -> Tensor:
        rule = self.rule or Rule()
        if rule.refusal:
            raise PrefoptError(rule.refusal)
        total = (self.values if rule.weight is None else self.values * rule.weight).sum(-1)
        x = total / self.length.clamp(min=1) if (rule.length or how) == "mean" else total
        return x if rule.link is None else rule.link(x)


def full_precision(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def into_segments(x: Tensor, index: Tensor, k: int) -> Tensor:
    """[R, T, ...] -> [R, k, ...]: sums over the positions of segment 0 .. k-1 (index [R, T]; negative: no segment)."""
    at = torch.where(index >= 0, index, k).view(*index.shape, *[1] * (x.dim() - 2)).expand_as(x)
    return x.new_zeros(len(x), k + 1, *x.shape[2:]).scatter_add(1, at, x)[:, :k]
