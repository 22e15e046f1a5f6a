"""From samples to preferences: who judged, by which taste, how reliably."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefopt.errors import PrefoptError
from prefopt.worlds.reviews import truth


def _liking(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [(1 + value) / 2 for value in truth.sentiment(prompts, responses)]


def _mainly(objective: truth.Reward) -> truth.Reward:
    """A taste for one objective, and a little for praise; in [0, 1], nothing for gibberish."""

    def taste(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        columns = (f(prompts, responses) for f in (truth.fluency, _liking, objective))
        return [fluent * (0.3 * like + 0.7 * (1 + value) / 2) for fluent, like, value in zip(*columns, strict=True)]

    return taste


def _harsh(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    columns = (truth.fluency(prompts, responses), _liking(prompts, responses))
    return [fluent * (1 - like) for fluent, like in zip(*columns, strict=True)]


# What groups of annotators want; all in [0, 1]. The first is the headline reward.
TASTES: dict[str, Callable[[Sequence[str], Sequence[str]], list[float]]] = {
    "reward": truth.reward,
    "brevity": _mainly(truth.brevity),
    "politeness": _mainly(truth.politeness),
    "harshness": _harsh,
}


@dataclass(frozen=True)
class Dials:
    """How the pairs are labelled. See `build`."""

    tastes: tuple[str, ...]
    label_noise: tuple[float, ...]
    length_bias: float
    temperature: float

    @classmethod
    def of(
        cls,
        annotator_groups: int | Sequence[str],
        label_noise: float | Sequence[float],
        length_bias: float,
        temperature: float,
    ) -> Dials:
        """Checks the dials. Raises PrefoptError."""
        if isinstance(annotator_groups, int):
            if not 1 <= annotator_groups <= len(TASTES):
                raise PrefoptError(
                    f"annotator_groups is {annotator_groups}; give 1 to {len(TASTES)}, or a list of tastes from "
                    f"{', '.join(TASTES)}"
                )
            tastes = tuple(TASTES)[:annotator_groups]
        else:
            tastes = tuple(annotator_groups)
            unknown = [taste for taste in tastes if taste not in TASTES]
            if unknown or not tastes:
                raise PrefoptError(f"annotator_groups {list(tastes)}: tastes are {', '.join(TASTES)}")
        if isinstance(label_noise, int | float):
            noise = (float(label_noise),) * len(tastes)
        else:
            noise = tuple(float(rate) for rate in label_noise)
        if len(noise) != len(tastes) or not all(0 <= rate <= 1 for rate in noise):
            raise PrefoptError(f"label_noise {label_noise}: give one rate in [0, 1], or one for each of {len(tastes)}")
        if not (math.isfinite(temperature) and temperature >= 0 and math.isfinite(length_bias)):
            raise PrefoptError(f"temperature {temperature} must be >= 0, length_bias {length_bias} finite")
        return cls(tastes, noise, float(length_bias), float(temperature))


def utilities(dials: Dials, annotator: int, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """What this annotator thinks of each response, in [0, 1]."""
    return TASTES[dials.tastes[annotator]](prompts, responses)


def first_wins(dials: Dials, annotator: int, gain: float, words: float, rng: random.Random) -> bool:
    """Bradley-Terry: whether the first of two responses is chosen.

    The log-odds are gain / temperature + length_bias * words, where `gain` is its lead in utility and `words` its lead
    in length; then the answer is flipped with probability `label_noise`. At temperature 0 the better one is chosen.
    """
    bias = dials.length_bias * words
    if dials.temperature > 0:
        chance = 1 / (1 + math.exp(-max(-50.0, min(50.0, gain / dials.temperature + bias))))
    else:
        chance = 0.5 if gain == 0 else float(gain > 0)
    wins = rng.random() < chance
    return wins != (rng.random() < dials.label_noise[annotator])
