"""Typed access to the fields of a row: every refusal says which field, what it holds and what was expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


class Unreadable(Exception):
    """The row is not what it claims to be: missing or null field, wrong type, malformed message. Stops a run.

    `kind` names the finding for the doctor: missing, type, message, image, parse.
    """

    def __init__(self, message: str, kind: str = "type"):
        super().__init__(message)
        self.kind = kind


class TeachesNothing(Exception):
    """The row can be read, but no method could learn from it. Dropped and counted; the text is the reason."""


def short(value: Any, length: int = 40) -> str:
    """A value for a message, in one short line."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def need(values: Mapping[str, Any], name: str) -> Any:
    """The field, which must be there and not null."""
    if not isinstance(values, Mapping):
        raise Unreadable(f"{short(values)} stands where an object with {name!r} is expected")
    if name not in values:
        raise Unreadable(f"{name!r} is missing", "missing")
    if values[name] is None:
        raise Unreadable(f"{name!r} is null", "missing")
    return values[name]


def text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Unreadable(f"{name!r} is {type(value).__name__} {short(value)}, expected text")
    return valid(value, name)


def valid(value: str, name: str) -> str:
    """The text, refused where it holds half a character (JSON can spell one, no tokenizer can read it)."""
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError as error:
        raise Unreadable(
            f"{name!r} holds {short(value[error.start])} at {error.start}, which is no character"
        ) from None
    return value


def number(value: Any, name: str) -> float:
    """A finite number; text that spells one is accepted, as CSV knows nothing else."""
    if not isinstance(value, bool):
        try:
            result = float(value)
            if math.isfinite(result):
                return result
        except (TypeError, ValueError):
            pass
    raise Unreadable(f"{name!r} is {short(value)}, expected a finite number")


def rating(value: Any, name: str) -> float:
    """A number, or nan where the rating is missing (null, nan, "N/A")."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    if isinstance(value, str) and value.strip().lower() in {"", "n/a", "na", "nan", "none", "null"}:
        return math.nan
    return number(value, name)


_WORDS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False, "yes": True, "no": False}


def boolean(value: Any, name: str) -> bool:
    """True or false, also as 1/0 or spelt out."""
    known = _WORDS.get(str(value).strip().lower())
    if known is None:
        raise Unreadable(f"{name!r} is {short(value)}, expected true or false")
    return known


def items(value: Any, name: str, length: int | None = None) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise Unreadable(f"{name!r} is {type(value).__name__} {short(value)}, expected a list")
    if length is not None and len(value) != length:
        raise Unreadable(f"{name!r} has {len(value)} entries for {length} responses")
    return list(value)


def probability(value: Any, name: str) -> float:
    result = number(value, name)
    if not 0 <= result <= 1:
        raise Unreadable(f"{name!r} is {result:g}, expected a probability between 0 and 1")
    return result


def weight(value: Any, name: str) -> float:
    result = number(value, name)
    if result < 0:
        raise Unreadable(f"{name!r} is {result:g}, expected a weight of 0 or more")
    return result
