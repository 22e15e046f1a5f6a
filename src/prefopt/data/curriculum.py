"""The order in which Curry-DPO (2403.07230) learns from ranked lists: the best response against every other, from large
gaps to small ones, in stages. Pure: lists of numbers in, lists of indices out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from prefopt.errors import PrefoptError

TIED = "a tie of all scores"
FEW = "fewer pairs than min_pairs"
Scope = Literal["local", "global"]
Criterion = Literal["score", "logp"]


class RankedPair(NamedTuple):
    """The best response of a prompt and a worse one, by their positions; a large gap is easy."""

    prompt: int
    chosen: int
    rejected: int
    gap: float


@dataclass(frozen=True)
class Curriculum:
    """`stages`: the pairs of each, easy first, in the order that they have before shuffling. `dropped`: reason -> the
    prompts that give no pair."""

    stages: list[list[RankedPair]]
    dropped: dict[str, list[int]]


def curriculum(
    scores: Sequence[Sequence[float]],
    stages: int = 3,
    *,
    criterion: Criterion = "score",
    scope: Scope = "local",
    logps: Sequence[Sequence[float]] | None = None,
    min_pairs: int = 1,
) -> Curriculum:
    """Pairs of the best against all others, in stages from easy to hard.

    scores: per prompt one number per response, higher is better (for ranks give their negatives).
    criterion: what the gap is: the difference of `score`, or of the starting model's `logp` of the whole responses
        (then `logps`, shaped as `scores`; a gap may be negative, which is hardest).
    scope: `local` sorts the pairs of each prompt and gives one to each stage (more pairs than stages: contiguous
        parts, the larger ones first); `global` sorts all pairs together and cuts them in contiguous parts.
    min_pairs: prompts with fewer pairs are dropped; by default a prompt with n < stages pairs fills the first n.
    Equal gaps keep the order of prompts, then of responses. Raises PrefoptError for what is not finite or does not fit,
    and where a stage is left without pairs.
    """
    _check(scores, stages, criterion, scope, logps, min_pairs)
    dropped: dict[str, list[int]] = {TIED: [], FEW: []}
    prompts: list[list[RankedPair]] = []
    for i, q in enumerate(scores):
        measure = q if logps is None or criterion == "score" else logps[i]
        pairs = best_against_rest(i, q, measure)
        if len(pairs) >= max(1, min_pairs):
            prompts.append(sorted(pairs, key=_easy_first))
        else:
            dropped[FEW if pairs else TIED].append(i)
    made = _local(prompts, stages) if scope == "local" else _global(prompts, stages)
    if empty := [s + 1 for s, stage in enumerate(made) if not stage]:
        total = sum(map(len, prompts))
        raise PrefoptError(
            f"stage {empty[0]} of {stages} has no pair: {len(prompts)} of {len(scores)} prompts give {total} pairs"
            + (f", at most {max(map(len, prompts), default=0)} each" if scope == "local" else "")
            + "; lower stages, or give longer lists"
        )
    return Curriculum(made, {reason: found for reason, found in dropped.items() if found})


def best_against_rest(prompt: int, scores: Sequence[float], measure: Sequence[float]) -> list[RankedPair]:
    """(best, r) for every r with a lower score, in the order of responses; of several best the first. The gap is that of
    `measure`."""
    best = max(range(len(scores)), key=scores.__getitem__)
    worse = [r for r, q in enumerate(scores) if q < scores[best]]
    return [RankedPair(prompt, best, r, measure[best] - measure[r]) for r in worse]


def parts(n: int, count: int) -> list[range]:
    """0 .. n-1 in `count` contiguous ranges whose sizes differ by at most one, the larger ones first."""
    size, more = divmod(n, count)
    starts = [s * size + min(s, more) for s in range(count + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


def _easy_first(pair: RankedPair) -> float:
    return -pair.gap  # Python's sort is stable


def _local(prompts: Sequence[Sequence[RankedPair]], stages: int) -> list[list[RankedPair]]:
    cuts = [parts(len(pairs), stages) for pairs in prompts]  # n <= stages: the first n hold one pair each
    return [[pairs[j] for pairs, cut in zip(prompts, cuts, strict=True) for j in cut[s]] for s in range(stages)]


def _global(prompts: Sequence[Sequence[RankedPair]], stages: int) -> list[list[RankedPair]]:
    pooled = sorted(sorted((p for pairs in prompts for p in pairs), key=lambda p: p[:3]), key=_easy_first)
    return [[pooled[j] for j in cut] for cut in parts(len(pooled), stages)]


def _check(
    scores: Sequence[Sequence[float]],
    stages: int,
    criterion: str,
    scope: str,
    logps: Sequence[Sequence[float]] | None,
    min_pairs: int,
) -> None:
    for name, value, known in (("criterion", criterion, ("score", "logp")), ("scope", scope, ("local", "global"))):
        if value not in known:
            raise PrefoptError(f"{name} = {value!r}: must be {' or '.join(known)}")
    for name, count in (("stages", stages), ("min_pairs", min_pairs)):
        if count < 1:
            raise PrefoptError(f"{name} = {count}: must be at least 1")
    if criterion == "logp" and logps is None:
        raise PrefoptError("criterion = 'logp' needs the starting model's log-probabilities of all responses (logps)")
    if criterion == "score" and logps is not None:
        raise PrefoptError("logps have no effect with criterion = 'score': leave them out")
    if logps is not None and [len(x) for x in logps] != [len(x) for x in scores]:
        raise PrefoptError("logps must hold one number for every score")
    for what, rows in (("scores", scores), ("logps", logps or [])):
        for i, row in enumerate(rows):
            if len(row) < 2:
                raise PrefoptError(f"prompt {i + 1} has {len(row)} responses: a pair needs two")
            if not all(map(math.isfinite, row)):
                raise PrefoptError(f"prompt {i + 1} has {what} that are not finite: {list(row)}")
