"""Ranked lists as methods take them: a label for every response, the best response first, steps of their own."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prefopt.data.config import DataConfig
from prefopt.data.example import Example, axes
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.data.messages import said
from prefopt.data.pairing import keep_responses, order
from prefopt.errors import PrefoptError

TOO_SHORT = "a list of fewer than two rated answers"
ALL_EQUAL = "a list of equal scores"


def as_list(example: Example, config: DataConfig) -> Example:
    """The example with a note `value`, one label in [0, 1] for each response (`data.list_labels`), the best one first.

    Responses without a rating are left out; a pair without scores is a list of two. Raises TeachesNothing where fewer
    than two are left or all are equal, and Unreadable for scores outside `data.score_range`, or a first response that is
    not the best where `data.best_first` says that it must be.
    """
    values = order(example, config)
    if values is None and len(example.pairs) == 1:
        better, worse = example.pairs[0]
        example = reordered(example, [better, worse])
        return replace(example, notes={**example.notes, "value": [1.0, 0.0]})
    if values is None:
        raise Unreadable("has several responses and nothing that orders them (scores, ranks or pairs)", "missing")
    rated = [i for i, v in enumerate(values) if not math.isnan(v)]
    if len(rated) < 2:
        raise TeachesNothing(TOO_SHORT)
    values = [values[i] for i in rated]
    example = keep_responses(example, rated)
    if max(values) == min(values):
        raise TeachesNothing(ALL_EQUAL)
    if values[0] < max(values):
        if config.best_first == "error":
            raise Unreadable(
                "its first answer is not the one with the highest score (data.best_first = sort sorts them)"
            )
        by_score = sorted(range(len(values)), key=values.__getitem__, reverse=True)
        example, values = reordered(example, by_score), [values[i] for i in by_score]
    labels = _labels(
        values, config, ranked="score" not in example.notes and "rank" in example.notes, where=example.origin
    )
    return replace(example, notes={**example.notes, "value": labels})


def _labels(values: Sequence[float], config: DataConfig, ranked: bool, where: str) -> list[float]:
    if config.list_labels == "rank":
        levels = sorted(set(values))
        return [levels.index(v) / (len(levels) - 1) for v in values]
    if ranked:
        raise PrefoptError(f"{where}: the list has ranks, which have no unit: set data.list_labels = rank")
    low, high = config.score_range if config.list_labels == "range" else (min(values), max(values))
    if min(values) < low or max(values) > high:
        raise Unreadable(
            f"has scores from {min(values):g} to {max(values):g}, outside data.score_range = [{low:g}, {high:g}]: declare "
            "their range, or set data.list_labels to minmax or rank"
        )
    return [(v - low) / (high - low) for v in values]


def reordered(example: Example, to: Sequence[int]) -> Example:
    """The example with its responses in another order; everything about them follows."""
    place = {old: new for new, old in enumerate(to)}
    notes: dict[str, Any] = {}
    for name, value in example.notes.items():
        per_response = (axes(name) or "").startswith("R") or (axes(name) is None and len(value) == len(to))
        notes[name] = [value[i] for i in to] if per_response else value
    return replace(
        example,
        responses=tuple(example.responses[i] for i in to),
        pairs=tuple((place[a], place[b]) for a, b in example.pairs),
        notes=notes,
        steps=example.steps and tuple(example.steps[i] for i in to),
        graded=example.graded and tuple(example.graded[i] for i in to),
        captions=tuple(example.captions[i] for i in to) if example.captions else (),
    )


def with_steps(example: Example, marker: str | None) -> Example:
    """The example with the steps of its responses: those of the file, else a step begins where `marker` matches.

    A response without any match is one step. Raises Unreadable where there are neither steps nor a marker.
    """
    if example.steps is not None:
        return example
    if marker is None:
        raise Unreadable(
            "has no 'steps', which the method needs: give lists of steps, or data.step_marker, a regular expression "
            "for where a step begins",
            "missing",
        )
    pattern = re.compile(marker, re.MULTILINE)
    texts = [r if isinstance(r, str) else said(r[-1]) for r in example.responses]
    return replace(example, steps=tuple(tuple(split_steps(t, pattern)) for t in texts))


def split_steps(text: str, marker: re.Pattern[str]) -> list[str]:
    """The text cut before every match; what holds only white space belongs to the step after it."""
    steps, start = [], 0
    for match in marker.finditer(text):
        if text[start : match.start()].strip():
            steps.append(text[start : match.start()])
            start = match.start()
    rest = text[start:]
    if rest.strip() or not steps:
        return [*steps, rest]
    return [*steps[:-1], steps[-1] + rest]
