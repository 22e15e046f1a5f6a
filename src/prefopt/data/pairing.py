"""Ranked lists to pairs, pairs to labelled responses, and what scores say about pairs made from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

from prefopt.data.config import DataConfig, Pairing
from prefopt.data.example import Example, axes
from prefopt.data.fields import Unreadable
from prefopt.errors import PrefoptError


def pair_up(example: Example, config: DataConfig) -> Example:
    """The example with its pairs: those of the file, or made from its scores or ranks as `data.pairing` says.

    Equal scores make no pair. Notes per pair follow; margins and soft labels come from scores where the file gives
    none. Raises PrefoptError where a list of more than two responses meets no choice of pairing, and Unreadable where
    nothing orders the responses.
    """
    if "label" in example.notes and not example.pairs:
        return example
    values = order(example, config)
    pairs = example.pairs or tuple(_made(example, values, config))
    notes = dict(example.notes)
    for name in [n for n in notes if (axes(n) or "").startswith("P") and len(notes[n]) == 1]:
        notes[name] = notes[name] * len(pairs)
    if values is not None and (config.objective or "score" in notes or not example.pairs):
        notes |= {
            k: v for k, v in _from_scores(values, pairs, config, ranked=_by_rank(example)).items() if k not in notes
        }
    return replace(example, pairs=pairs, notes=notes)


def order(example: Example, config: DataConfig) -> list[float] | None:
    """What orders the responses, higher is better (nan: unknown): the chosen objective, the score, or the rank."""
    notes = example.notes
    several = {n.removeprefix("scores/"): v for n, v in notes.items() if n.startswith("scores/")}
    if config.objective == "mean" and several:
        return [_mean(column) for column in zip(*several.values(), strict=True)]
    if config.objective:
        if config.objective not in several:
            raise Unreadable(
                f"has no scores for the objective {config.objective!r} (data.objective); it has "
                f"{', '.join(several) or 'none'}",
                "missing",
            )
        return several[config.objective]
    if "score" in notes:
        return list(notes["score"])
    if "rank" in notes:
        return [-r for r in notes["rank"]]
    if several and not example.pairs:
        if len(several) == 1:
            return next(iter(several.values()))
        raise PrefoptError(
            f"{example.origin}: the responses have scores for several objectives ({', '.join(several)}) and the method "
            "needs one order: set data.objective to one of them or to mean"
        )
    return None


def _by_rank(example: Example) -> bool:
    return "score" not in example.notes and "rank" in example.notes


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def _made(example: Example, values: list[float] | None, config: DataConfig) -> list[tuple[int, int]]:
    count = len(example.responses)
    if count < 2:
        return []
    if values is None:
        raise Unreadable("has several responses and nothing that orders them (scores, ranks or pairs)", "missing")
    if config.pairing is None and count > 2:
        raise PrefoptError(
            f"{example.origin}: the method needs pairs and the row is a list of {count} responses: set data.pairing to "
            f"one of {', '.join(get_args(Pairing))}"
        )
    ranked = sorted((i for i in range(count) if not math.isnan(values[i])), key=lambda i: -values[i])
    return [(a, b) for a, b in _candidates(ranked, config.pairing or "all") if values[a] > values[b]]


def _candidates(ranked: list[int], pairing: str) -> list[tuple[int, int]]:
    if len(ranked) < 2:
        return []
    if pairing == "best_worst":
        return [(ranked[0], ranked[-1])]
    if pairing == "best_rest":
        return [(ranked[0], other) for other in ranked[1:]]
    if pairing == "adjacent":
        return list(pairwise(ranked))
    if pairing == "triple":  # of gold, chosen and rejected (triples.as_triple)
        return [(ranked[-2], ranked[-1])]
    return [(a, b) for i, a in enumerate(ranked) for b in ranked[i + 1 :]]


def _from_scores(
    values: list[float], pairs: Sequence[tuple[int, int]], config: DataConfig, ranked: bool
) -> dict[str, Any]:
    """Margin and soft label of each pair from the scores of its sides; ranks have no unit and give neither."""
    if ranked or any(math.isnan(values[i]) for p in pairs for i in p):
        return {}
    notes: dict[str, Any] = {"margin": [values[a] - values[b] for a, b in pairs]}
    if config.soft_labels:
        soft = preference if config.soft_labels == "probability" else _logistic
        notes["label_probability"] = [soft(values[a], values[b]) for a, b in pairs]
    return notes


def preference(first: float, second: float) -> float:
    """P(first beats second) where each number is the probability of beating one common opponent.

    Bradley-Terry: the odds against the opponent divide. Raises Unreadable for numbers outside [0, 1].
    """
    if not (0 <= first <= 1 and 0 <= second <= 1):
        raise Unreadable(
            f"has the scores {first:g} and {second:g}; data.soft_labels: probability needs scores in [0, 1]"
        )
    win, loss = first * (1 - second), second * (1 - first)
    return 0.5 if win + loss == 0 else win / (win + loss)


def _logistic(first: float, second: float) -> float:
    gap = first - second
    return 1 / (1 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1 + math.exp(gap))


def keep_responses(example: Example, kept: Sequence[int]) -> Example:
    """The example with these responses only; pairs and notes follow, pairs that lose a side go."""
    if len(kept) == len(example.responses):
        return example
    place = {old: new for new, old in enumerate(kept)}
    alive = [i for i, p in enumerate(example.pairs) if p[0] in place and p[1] in place]
    count = len(example.responses)
    unpaired = not example.pairs
    notes: dict[str, Any] = {}
    for name, value in example.notes.items():
        per_response = (axes(name) or "").startswith("R") or (unpaired and len(value) == count)
        if axes(name) is None and not unpaired:
            per_response = len(value) == count and len(value) != len(example.pairs)
        chosen = kept if per_response and len(value) == count else alive if len(value) == len(example.pairs) else None
        notes[name] = value if chosen is None else [value[i] for i in chosen]
    pairs = tuple((place[a], place[b]) for a, b in (example.pairs[i] for i in alive))
    steps = example.steps and tuple(example.steps[i] for i in kept)
    graded = example.graded and tuple(example.graded[i] for i in kept)
    responses = tuple(example.responses[i] for i in kept)
    captions = tuple(example.captions[i] for i in kept) if example.captions else ()
    own: dict[str, Any] = {"steps": steps, "graded": graded, "captions": captions}
    return replace(example, responses=responses, pairs=pairs, notes=notes, **own)


def to_labelled(example: Example) -> Example:
    """Unpaired responses of a paired example.

    A response is desirable where it wins more of its pairs than it loses, undesirable where it loses more, and left
    out where it does neither. Weights and names per pair become those of its responses.
    """
    if not example.pairs:
        return example
    balance = [0] * len(example.responses)
    first_pair: dict[int, int] = {}
    for number, (better, worse) in enumerate(example.pairs):
        balance[better] += 1
        balance[worse] -= 1
        first_pair.setdefault(better, number)
        first_pair.setdefault(worse, number)
    kept = [i for i, b in enumerate(balance) if b]
    notes = {
        n: [v[first_pair[i]] for i in kept]
        for n, v in example.notes.items()
        if axes(n) == "P" and n not in ("margin", "label_probability")
    }
    slim = keep_responses(example, kept)
    notes |= {n: v for n, v in slim.notes.items() if axes(n) != "P"}
    return replace(slim, pairs=(), notes=notes | {"label": [balance[i] > 0 for i in kept]})
