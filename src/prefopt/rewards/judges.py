"""Judges: callables (prompts, a, b) -> P(a is better), always asked in both orders, with a cache."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import PrefoptError
from prefopt.rewards.callables import accepts, ask, load_function, source_hash
from prefopt.rewards.images import names_scorer
from prefopt.rewards.load import ARGUMENTS as REWARD_ARGUMENTS
from prefopt.rewards.load import Reward, load_reward
from prefopt.rollout.text import prompt_text

Judgments = Callable[[list, list, list], Sequence[float]]
ARGUMENTS = ("prompts", "answers_a", "answers_b")


@dataclass(frozen=True)
class Judge:
    """A judge with a name; `identity` (name and source) keys the cache; `fair` ones need no second order."""

    name: str
    function: Judgments
    identity: str
    fair: bool = False

    def __call__(self, prompts: Sequence[Any], a: Sequence[Any], b: Sequence[Any]) -> list[float]:
        """P(a is better) in [0, 1] for each triple; NaN where the judge gave none (None or NaN)."""
        if not len(prompts) == len(a) == len(b):
            raise PrefoptError(
                f"judge {self.name!r}: {len(prompts)} prompts, {len(a)} and {len(b)} answers; give one each"
            )
        answer = ask(self.function, f"judge {self.name!r}", [prompt_text(p) for p in prompts], list(a), list(b))
        return _probabilities(answer, len(prompts), self.name)

    def both_orders(
        self, prompts: Sequence[Any], a: Sequence[Any], b: Sequence[Any], cache: JudgeCache | None = None
    ) -> tuple[list[float], list[float]]:
        """P(a is better) as judged with a first, and as judged with b first; each [N]."""
        if self.fair:
            first = self(prompts, a, b)
            return first, first
        ask = cache.ask if cache is not None else Judge.__call__
        first = ask(self, prompts, a, b)
        second = ask(self, prompts, b, a)
        return first, [1 - p for p in second]


def judge_from_reward(reward: Reward, *, tie: float = 0.0) -> Judge:
    """Prefers the answer with the higher reward; rewards that differ by no more than `tie` are a draw (1/2)."""

    def compare(prompts: list, a: list, b: list) -> list[float]:
        values = reward([*prompts, *prompts], [*a, *b], missing=True)
        gaps = [x - y for x, y in zip(values[: len(a)], values[len(a) :], strict=True)]
        return [math.nan if math.isnan(g) else 0.5 if abs(g) <= tie else float(g > 0) for g in gaps]

    return Judge(f"reward {reward.name}", compare, f"reward {reward.name} tie {tie}", fair=True)


def load_judge(spec: str | Path | Callable[..., Any]) -> Judge:
    """The judge that `spec` names: a function of (prompts, a, b), or any reward, made into one by comparison."""
    if isinstance(spec, Judge):
        return spec
    if isinstance(spec, Reward):
        return judge_from_reward(spec)
    if callable(spec):
        return _from_callable(spec, getattr(spec, "__name__", type(spec).__name__))
    text = str(spec)
    if "#" in text or ":" not in text or Path(text).expanduser().is_dir() or names_scorer(text):
        return judge_from_reward(load_reward(spec))
    return _from_callable(load_function(text, None, "judge"), text)


def _from_callable(function: Callable[..., Any], name: str) -> Judge:
    if accepts(function, len(ARGUMENTS)):
        return Judge(name, function, f"{name} {source_hash(function)}")
    if accepts(function, len(REWARD_ARGUMENTS)):
        return judge_from_reward(Reward(name, function))
    raise PrefoptError(
        f"judge {name!r} must take (prompts, answers_a, answers_b), or be a reward of (prompts, responses)"
    )


class JudgeCache:
    """Judgments on disk (sqlite), by a hash of the judge's identity, the prompt and the two answers in their order."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        with closing(self._open()) as base, base:
            base.execute("create table if not exists judgments (key text primary key, p real)")

    def ask(self, judge: Judge, prompts: Sequence[Any], a: Sequence[Any], b: Sequence[Any]) -> list[float]:
        """Judgments, asked only where not known; a missing judgment (NaN) is asked again next time."""
        texts = map(prompt_text, prompts)
        keys = [self._key(judge.identity, *triple) for triple in zip(texts, a, b, strict=True)]
        with closing(self._open()) as base, base:
            known: dict[str, float] = {}
            for key in set(keys):
                row = base.execute("select p from judgments where key = ?", (key,)).fetchone()
                if row is not None:
                    known[key] = row[0]
        new = {key: i for i, key in enumerate(keys) if key not in known}
        if new:
            rows = list(new.values())
            answers = judge([prompts[i] for i in rows], [a[i] for i in rows], [b[i] for i in rows])
            known |= dict(zip(new, answers, strict=True))
            with closing(self._open()) as base, base:
                fresh = [(key, known[key]) for key in new if not math.isnan(known[key])]
                base.executemany("insert or replace into judgments values (?, ?)", fresh)
        return [known[key] for key in keys]

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)

    @staticmethod
    def _key(*parts: Any) -> str:
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _probabilities(values: Any, count: int, name: str) -> list[float]:
    try:
        numbers = [math.nan if v is None else float(v) for v in values]
    except (TypeError, ValueError) as error:
        raise PrefoptError(f"judge {name!r} must return a list of numbers: {error}") from error
    if len(numbers) != count:
        raise PrefoptError(
            f"judge {name!r} returned {len(numbers)} values for {count} questions; it must return one each"
        )
    for i, p in enumerate(numbers):
        if not (math.isnan(p) or 0 <= p <= 1):
            raise PrefoptError(f"judge {name!r} returned {p} for question {i}; it must return P(a is better) in [0, 1]")
    return numbers
