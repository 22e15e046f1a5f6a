"""Types of hyperparameters, and how a value is checked against its type."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from ..errors import PrefoptError


@dataclass(frozen=True)
class Within:
    """An interval, closed unless said otherwise."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, x: float) -> bool:
        above = x > self.low if self.open_low else x >= self.low
        below = x < self.high if self.open_high else x <= self.high
        return math.isfinite(x) and above and below

    def __str__(self) -> str:
        left = "(" if self.open_low or self.low == -math.inf else "["
        right = ")" if self.open_high or self.high == math.inf else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True)
class Never:
    """Beside a Literal: values that one may expect and that cannot be, with the reason."""

    reasons: Mapping[str, str]


@dataclass(frozen=True)
class CountOf:
    """A whole number; where it is not given (none), as many as the data has names in this annotation."""

    note: str


@dataclass(frozen=True)
class OfData:
    """A number; where it is not given (none), the least or the largest of this annotation in the training data."""

    note: str
    largest: bool = False


@dataclass(frozen=True)
class Grades:
    """Numbers from 0 on, each larger than the one before, none above 1; or none at all."""

    def holds(self, x: Sequence[float]) -> bool:
        rises = all(a < b for a, b in pairwise(x))
        return not x or (len(x) > 1 and rises and x[0] == 0 and x[-1] <= 1)

    def __str__(self) -> str:
        return "a list of at least two rising numbers, the first 0, the last at most 1; or an empty list"


Real = Annotated[float, Within()]
Positive = Annotated[float, Within(0, open_low=True)]
NonNegative = Annotated[float, Within(0)]
Fraction = Annotated[float, Within(0, 1)]
BelowOne = Annotated[float, Within(0, 1, open_high=True)]
Inside = Annotated[float, Within(0, 1, True, True)]
Smoothing = Annotated[float, Within(0, 0.5, open_high=True)]
Share = Annotated[float, Within(0, 1, open_low=True)]
Rising = Annotated[tuple[float, ...], Grades()]
Annotators = Annotated[int | None, CountOf("annotator")]
LeastReward = Annotated[float | None, OfData("reward_score")]
LargestReward = Annotated[float | None, OfData("reward_score", largest=True)]


def validate(method: str, key: str, value: Any, hint: Any) -> Any:
    """`value` as its declared type, or PrefoptError naming method, key, value and what would be right."""

    def fail(why: str) -> typing.NoReturn:
        raise PrefoptError(f"{method}.{key} = {value!r}: {why}")

    if typing.get_origin(hint) is Annotated and isinstance(rule := hint.__metadata__[0], Never):
        choices = typing.get_args(hint.__origin__)
        if value not in choices:
            why = rule.reasons.get(value) if isinstance(value, str) else None
            fail(f"must be one of {', '.join(map(str, choices))}" + (f"; {value}: {why}" if why else ""))
        return value
    if typing.get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], CountOf):
        if value is not None and (type(value) is not int or value < 1):
            fail("must be a whole number of at least 1, or none")
        return value
    if typing.get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], OfData):
        return None if value is None else validate(method, key, value, Real)
    if typing.get_origin(hint) is Annotated and isinstance(rule := hint.__metadata__[0], Grades):
        numbers = validate(method, key, value, hint.__origin__)
        if not rule.holds(numbers):
            fail(f"must be {rule}")
        return numbers
    if typing.get_origin(hint) is Annotated:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            fail("must be a number")
        if not hint.__metadata__[0].holds(value):
            fail(f"must be in {hint.__metadata__[0]}")
        return float(value)
    if typing.get_origin(hint) is Literal:
        if value not in (choices := typing.get_args(hint)):
            fail(f"must be one of {', '.join(map(str, choices))}")
        return value
    if typing.get_origin(hint) is tuple:
        each = Real if (inner := typing.get_args(hint)[0]) is float else inner
        if not isinstance(value, (list, tuple)):
            fail(f"must be a {describe(hint)}")
        return tuple(validate(method, key, v, each) for v in value)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            fail("must be a section of keys")
        return dict(value)
    if type(None) in typing.get_args(hint):
        return None if value is None else validate(method, key, value, typing.get_args(hint)[0])
    if hint in (bool, int, str) and type(value) is not hint:
        fail(f"must be {'true or false' if hint is bool else 'a whole number' if hint is int else 'text'}")
    return value


def describe(hint: Any) -> str:
    """The type of a hyperparameter in words: "in (0, inf)", "one of sigmoid, hinge"."""
    if typing.get_origin(hint) is Annotated and isinstance(rule := hint.__metadata__[0], CountOf):
        return f"whole number, or none: as many as the data has names in '{rule.note}'"
    if typing.get_origin(hint) is Annotated and isinstance(rule := hint.__metadata__[0], OfData):
        return f"number, or none: the {'largest' if rule.largest else 'least'} '{rule.note}' of the training data"
    if typing.get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], Never):
        return describe(hint.__origin__)
    if typing.get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], Grades):
        return str(hint.__metadata__[0])
    if typing.get_origin(hint) is Annotated:
        return f"number in {hint.__metadata__[0]}"
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "list of texts" if typing.get_args(hint)[0] is str else "list of numbers"
    if typing.get_origin(hint) is dict:
        return "a section of keys"
    if type(None) in typing.get_args(hint):
        return f"{describe(typing.get_args(hint)[0])}, or none"
    return {bool: "true or false", int: "whole number", str: "text"}.get(hint, "a method")
