"""Triples: a gold response to imitate beside a chosen and a rejected one to contrast (Triple TPO)."""

from __future__ import annotations

import math
from dataclasses import replace

from prefopt.data.config import DataConfig
from prefopt.data.example import Example
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.data.messages import is_empty, same
from prefopt.data.pairing import keep_responses, order, pair_up

GOLD_TIE = "a tie of gold and chosen"
PAIR_TIE = "a tie of chosen and rejected"
GOLD_IS_CHOSEN = "gold identical to chosen"


def as_triple(example: Example, config: DataConfig) -> Example:
    """A ranked list as a triple: the best response is gold, that of rank `data.chosen_rank` chosen, the last rejected.

    Empty responses, unrated ones and repetitions of a better one are left out of the ranking. Raises TeachesNothing
    where too few are left or scores tie, and Unreadable where nothing orders the list or it brings a gold response.
    """
    if example.gold is not None:
        raise Unreadable("has 'gold', and data.pairing = triple would make another of its list: leave one of them out")
    values = order(example, config)
    if values is None:
        raise Unreadable("has several responses and nothing that orders them (scores, ranks or pairs)", "missing")
    ranked = _distinct(example, values)
    if len(ranked) <= config.chosen_rank:
        raise TeachesNothing(f"fewer than {config.chosen_rank + 1} distinct responses")
    gold, chosen, rejected = ranked[0], ranked[config.chosen_rank - 1], ranked[-1]
    if values[gold] == values[chosen]:
        raise TeachesNothing(GOLD_TIE)
    if values[chosen] == values[rejected]:
        raise TeachesNothing(PAIR_TIE)
    made = pair_up(keep_responses(example, [gold, chosen, rejected]), config)
    return replace(made, gold=example.responses[gold])


def _distinct(example: Example, values: list[float]) -> list[int]:
    """Indices of the rated responses that say something of their own, best first; of equals the first."""
    ranked: list[int] = []
    for i in sorted((i for i, v in enumerate(values) if not math.isnan(v)), key=lambda i: -values[i]):
        if not is_empty(example.responses[i]) and not any(
            same(example.responses[i], example.responses[j]) for j in ranked
        ):
            ranked.append(i)
    return ranked


def check_order(example: Example) -> None:
    """Raises Unreadable where a triple's own scores contradict it, TeachesNothing where they tie."""
    gold, score = example.notes.get("gold_score"), example.notes.get("score")
    for number, (better, worse) in enumerate(example.pairs):
        if score is None or any(math.isnan(score[i]) for i in (better, worse)):
            continue
        _check(score[better], score[worse], "chosen", "rejected", PAIR_TIE)
        if gold is not None:
            _check(gold[number], score[better], "gold", "chosen", GOLD_TIE)


def _check(above: float, below: float, better: str, worse: str, tie: str) -> None:
    if above < below:
        raise Unreadable(f"scores its {better} response {above:g} and its {worse} one {below:g}: they are mis-ordered")
    if above == below:
        raise TeachesNothing(tie)
