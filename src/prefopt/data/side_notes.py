"""Columns about each response: chosen_NAME and rejected_NAME beside a pair, NAME as a list beside a list of responses.

They are read only where a method asks for them, and then every row must have them, whole: a number that is missing would
be a wrong number in the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefopt.data import fields
from prefopt.data.example import Example, axes
from prefopt.data.fields import Unreadable, short
from prefopt.data.messages import is_empty
from prefopt.data.row_fields import Fields


def log_probability(value: Any, name: str) -> float:
    result = fields.number(value, name)
    if result > 0:
        raise Unreadable(f"{name!r} is {result:g}, expected a log-probability of 0 or less")
    return result


def token_count(value: Any, name: str) -> float:
    result = fields.number(value, name)
    if result < 1 or result != int(result):
        raise Unreadable(f"{name!r} is {result:g}, expected a number of tokens of 1 or more")
    return result


SIDE_NOTES: dict[str, Callable[[Any, str], float]] = {
    "reward_score": fields.number,
    "phi": fields.probability,
    "reward_scores": fields.number,
    "margin_rewards": fields.number,
    "source_sums": log_probability,
    "source_counts": token_count,
    "win_probability": fields.probability,
    "unsafe": fields.probability,
    "cost": fields.number,
    "from_reference": fields.probability,
    "on_policy": fields.probability,
}
"""Name -> how one number of it is read."""
MEASURED = frozenset({"win_probability", "unsafe", "cost", "from_reference", "on_policy"})
"""Those that no verb of ours makes."""
GOLD_NOTES = {f"gold_{name}": SIDE_NOTES[name] for name in ("source_sums", "source_counts")}
"""The same of the gold answer: one list for the row."""
COLUMNS = frozenset(f"{side}{name}" for name in SIDE_NOTES for side in ("", "chosen_", "rejected_")) | set(GOLD_NOTES)
_TOGETHER = (("source_sums", "source_counts"), ("gold_source_sums", "gold_source_counts"))


def how_to_give_note(name: str) -> str:
    """What a user does to have such an annotation."""
    if name == "phi":
        return (
            "add a column 'phi', a list of numbers in [0, 1] beside the responses, or 'reward_scores', for each response the "
            "scores of all reward models, which vote; prefopt data build scores --add reward_scores=... makes them"
        )
    if name == "user_embedding|user":
        return (
            "add a column 'user' and name in data.users the folder that prefopt data build users makes of the pairs, or a "
            "column 'user_embedding' (numbers, or a list of lists of them)"
        )
    made = "source" if name.removeprefix("gold_") in ("source_sums", "source_counts") else name
    verb = f"; prefopt data build scores --add {made + 's' if made == 'source' else made}=... makes them"
    if name in GOLD_NOTES:
        return f"add a column {name!r}, a list of numbers beside the gold answer{verb}"
    if name in SIDE_NOTES:
        verb = "" if name in MEASURED else verb
        return f"add the columns 'chosen_{name}' and 'rejected_{name}' (lists of responses: '{name}'){verb}"
    return f"add a column {name!r}, or map one to it with data.columns.{name}"


def read_side_notes(f: Fields, responses: Sequence[Any], wanted: Iterable[str]) -> dict[str, list[Any]]:
    """Those of `wanted` that the row has; one entry per response (one for the row, if of the gold answer)."""
    notes: dict[str, list[Any]] = {}
    for name in sorted(set(wanted) & {*SIDE_NOTES, *GOLD_NOTES}):
        if name in GOLD_NOTES:
            if f.has(name):
                notes[name] = [_entry(f.get(name), name, name, GOLD_NOTES[name])]
        elif (values := _values(f, name, len(responses))) is not None:
            empty = list(map(is_empty, responses))
            notes[name] = [
                _entry(v, column, name, SIDE_NOTES[name]) if not (v is None and nothing) else _nothing(name, values)
                for (column, v), nothing in zip(values, empty, strict=True)
            ]
            _alike(notes[name], name)
    for sums, counts in _TOGETHER:
        for a, b in zip(notes.get(sums, ()), notes.get(counts, ()), strict=False):
            if len(a) != len(b):
                raise Unreadable(f"{sums!r} has {len(a)} numbers for a response, {counts!r} {len(b)}: one a source")
    return notes


def _values(f: Fields, name: str, count: int) -> list[tuple[str, Any]] | None:
    """(column, value) of each response."""
    sides = (f"chosen_{name}", f"rejected_{name}")
    given = [c for c in (name, *sides) if f.has(c)]
    if not given:
        return None
    if name in given and len(given) > 1:
        raise Unreadable(f"has {name!r} and {given[1]!r}, which say the same: keep one of them")
    if name in given:
        whole = [f.get(name)] if count == 1 and not isinstance(f.get(name), (list, tuple)) else f.items(name, count)
        return [(f"{name}[{i}]", v) for i, v in enumerate(whole)]
    if count != 2:
        raise Unreadable(f"has {given[0]!r} and {count} responses: give {name!r}, a list with an entry for each")
    return [(c, f.need(c)) for c in sides]


def _entry(value: Any, column: str, name: str, read: Callable[[Any, str], float]) -> Any:
    if axes(name) in ("R", "P"):
        return read(value, column)
    values = fields.items(value, column)
    if not values:
        raise Unreadable(f"{column!r} is an empty list", "missing")
    return [read(v, f"{column}[{i}]") for i, v in enumerate(values)]


def _nothing(name: str, values: list[tuple[str, Any]]) -> Any:
    """In place of what nobody can say about an empty answer, which is left out later."""
    if axes(name) == "R":
        return 0.0
    return next(([0.0] * len(v) for _, v in values if isinstance(v, (list, tuple))), [])


def _alike(values: list[Any], name: str) -> None:
    sizes = {len(v) for v in values if isinstance(v, list)}
    if len(sizes) > 1:
        raise Unreadable(f"{name!r} has {' and '.join(map(str, sorted(sizes)))} numbers for different responses")


@dataclass
class Widths:
    """How many numbers such lists have: as many in every row."""

    first: dict[str, tuple[int, str]] = field(default_factory=dict)  # note -> numbers, where

    def check(self, example: Example) -> Example:
        """The example, or Unreadable if its lists are not as long as those before."""
        for name, values in example.notes.items():
            if (axes(name) or "").endswith(" N") and values and values[0]:
                n, where = self.first.setdefault(name, (len(values[0]), example.origin))
                if len(values[0]) != n:
                    raise Unreadable(f"{name!r} has {len(values[0])} numbers for a response, and {n} in {where}")
        return example


@dataclass
class Agreement:
    """Whether reward scores agree with the labels of the pairs."""

    pairs: int = 0
    right: int = 0
    ties: int = 0

    def see(self, example: Example) -> None:
        scores = example.notes.get("reward_score")
        if scores is None:
            return
        for better, worse in example.pairs:
            self.pairs += 1
            self.right += scores[better] > scores[worse]
            self.ties += scores[better] == scores[worse]

    def remarks(self) -> list[str]:
        """What should worry about them."""
        if self.pairs and self.ties == self.pairs:
            return [f"'reward_score' is the same on both sides of all {self.pairs} pairs: is the reward model trained?"]
        if self.pairs and self.right + self.ties / 2 < self.pairs / 2:
            share = short((self.right + self.ties / 2) / self.pairs, 5)
            return [f"'reward_score' agrees with {share} of the {self.pairs} labels: is its sign reversed?"]
        return []
