"""Ranked lists for builders of pairs: read whole, ordered, without what teaches nothing; and pairs of them as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from prefopt.data.config import DataConfig
from prefopt.data.curriculum import TIED
from prefopt.data.encode import Encoded, Encoder
from prefopt.data.example import Example, axes
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.data.messages import same
from prefopt.data.pairing import keep_responses, order
from prefopt.data.rule import Ledger
from prefopt.data.source import read_examples


class Ranked(NamedTuple):
    """A list of responses in which something beats something; scores: higher is better."""

    example: Example
    scores: list[float]
    encoded: Encoded | None = None  # in tokens, where the reader was given an encoder


def read_ranked(config: DataConfig, paths: Sequence[str], encoder: Encoder | None = None) -> list[Ranked]:
    """The lists of these files by the rule for rows; those whose scores all tie are dropped and counted.

    Raises PrefoptError for rows with fewer than two responses, without an order or with a missing score, and where too
    many teach nothing.
    """
    ledger, found = Ledger(), []
    for example in read_examples(config, list(paths), ledger):
        with ledger.row(example):
            ranked = _ranked(example, config)
            found.append(ranked if encoder is None else ranked._replace(encoded=encoder(ranked.example)))
    ledger.stop_if_unreadable()
    ledger.stop_if_too_many_dropped(config.max_dropped)
    ledger.report(", ".join(paths))
    return found


def _ranked(example: Example, config: DataConfig) -> Ranked:
    """The list and its scores, without repetitions of the best response."""
    values = order(example, config)
    if len(example.responses) < 2:
        raise Unreadable(f"has {len(example.responses)} responses, and pairs need ranked lists", "missing")
    if values is None:
        raise Unreadable("has nothing that orders its responses: scores or ranks", "missing")
    if any(v != v for v in values):
        raise Unreadable("has a response without a score", "missing")
    best = max(range(len(values)), key=values.__getitem__)
    kept = [i for i, y in enumerate(example.responses) if i == best or not same(y, example.responses[best])]
    if not any(values[i] < values[best] for i in kept):
        raise TeachesNothing(TIED)
    return Ranked(keep_responses(example, kept), [values[i] for i in kept])


def pair_row(ranked: Ranked, chosen: int, rejected: int, **more: Any) -> dict[str, Any]:
    """A pair of the list in the layout `pairs`, with what is known of it and where it comes from."""
    example = ranked.example
    row = {
        "prompt": example.prompt,
        "chosen": example.responses[chosen],
        "rejected": example.responses[rejected],
        "chosen_score": ranked.scores[chosen],
        "rejected_score": ranked.scores[rejected],
        **more,
        "from": example.origin,
    }
    row |= {n: v[0] for n, v in example.notes.items() if axes(n) == "P" and len(v) == 1}
    given = {"gold": example.gold, "tools": example.tools, "chat_template_kwargs": dict(example.template_kwargs)}
    return row | {name: value for name, value in given.items() if value}
