"""Rewards: anything that gives each (prompt, response) a number; higher is better.

A reward is a callable (prompts: list[str], responses: list[str]) -> list[float], or a dict of such lists for several
objectives; conversations reach it as text, or as messages if it has an attribute `takes_messages`.
A specification names one: "module:function", "path/to/file.py:function", the folder of a sequence-classification model
with one label, or a scorer of pictures, "KIND:FOLDER" (see images.py). "#objective" behind it picks one of several
objectives.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import PrefoptError
from prefopt.rewards.callables import ask, check_signature, load_function
from prefopt.rollout.text import prompt_text

Values = Sequence[float] | Mapping[str, Sequence[float]]
ARGUMENTS = ("prompts", "responses")


@dataclass(frozen=True)
class Reward:
    """A reward function with a name, whose answers are checked: one finite number per response."""

    name: str
    function: Callable[[list, list], Values]
    objective: str | None = None

    def __call__(self, prompts: Sequence[Any], responses: Sequence[Any], *, missing: bool = False) -> list[float]:
        """The headline objective, one number per response; NaN is refused unless `missing` values are allowed."""
        values = self.objectives(prompts, responses, missing=missing)
        return values[self.headline(values)]

    def objectives(
        self, prompts: Sequence[Any], responses: Sequence[Any], *, missing: bool = False
    ) -> dict[str, list[float]]:
        """All objectives by name; a reward with a single one calls it "reward"."""
        if len(prompts) != len(responses):
            raise PrefoptError(f"{self.name}: {len(prompts)} prompts for {len(responses)} responses; give one each")
        whole = getattr(self.function, "takes_messages", False)
        said = list(prompts) if whole else [prompt_text(p) for p in prompts]
        answer = ask(self.function, f"reward {self.name!r}", said, list(responses))
        named = answer if isinstance(answer, Mapping) else {"reward": answer}
        if not named:
            raise PrefoptError(f"reward {self.name!r} returned an empty dict; it must name at least one objective")
        return {str(k): _numbers(v, len(responses), f"reward {self.name!r} ({k})", missing) for k, v in named.items()}

    def headline(self, values: Mapping[str, list[float]]) -> str:
        """Which of several objectives is meant: the one asked for, the only one, or the one called "reward"."""
        if self.objective is None and len(values) == 1:
            return next(iter(values))
        key = self.objective or "reward"
        if key not in values:
            raise PrefoptError(
                f"reward {self.name!r} has the objectives {', '.join(values)} but no {key!r}; "
                f"choose one with '{self.name.split('#')[0]}#NAME'"
            )
        return key


def load_reward(spec: str | Path | Callable[[list, list], Values], *, progress: bool = True) -> Reward:
    """The reward that `spec` names (see the module's docstring), or a callable wrapped as one."""
    if isinstance(spec, Reward):
        return spec
    if callable(spec):
        check_signature(spec, ARGUMENTS, "the reward function")
        return Reward(getattr(spec, "__name__", type(spec).__name__), spec)
    text = str(spec)
    place, _, objective = text.partition("#")
    from prefopt.rewards.images import SCORERS, load_scorer, names_scorer

    if names_scorer(place):
        return Reward(text, load_scorer(place), objective or None)
    if Path(place).expanduser().is_dir():
        from prefopt.rewards.model import RewardModel

        return Reward(text, RewardModel(Path(place).expanduser(), progress=progress), objective or None)
    if ":" not in place:
        raise PrefoptError(
            f'reward {text!r} is neither a folder of a reward model nor "module:function" nor "file.py:function" nor '
            f"a scorer of pictures ({', '.join(SCORERS)}: KIND:FOLDER)"
        )
    kind = place.partition(":")[0]
    if not kind.endswith(".py") and (close := difflib.get_close_matches(kind, SCORERS, 1, 0.8)):
        raise PrefoptError(f"reward {text!r}: there is no scorer '{kind}'; did you mean '{close[0]}'?")
    return Reward(text, load_function(place, ARGUMENTS, "reward"), objective or None)


def _numbers(values: Any, count: int, what: str, missing: bool) -> list[float]:
    try:
        numbers = [math.nan if v is None else float(v) for v in values]
    except (TypeError, ValueError) as error:
        raise PrefoptError(f"{what} must return a list of numbers, got {type(values).__name__}: {error}") from error
    if len(numbers) != count:
        raise PrefoptError(f"{what} returned {len(numbers)} values for {count} responses; it must return one each")
    bad = [i for i, v in enumerate(numbers) if not math.isfinite(v)]
    if bad and not missing:
        raise PrefoptError(
            f"{what} returned {numbers[bad[0]]} for response {bad[0]} ({len(bad)} of {count} not finite)"
        )
    return numbers
