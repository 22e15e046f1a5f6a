"""The exact reward of the rated task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean

LETTERS = "abcdefghijklmnop"


def _table() -> dict[str, dict[str, float]]:
    """How much a letter of the prompt likes a letter of the answer; of random letters as much as not."""
    rng = random.Random("rated: who likes what")  # noqa: S311
    rows = {p: {c: rng.gauss(0, 1) for c in LETTERS} for p in LETTERS}
    return {p: {c: x - fmean(row.values()) for c, x in row.items()} for p, row in rows.items()}


LIKES = _table()


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The sum over the answer's letters of how much the prompt's letters like them, on average; 0 for an empty one."""
    return [
        sum(fmean(LIKES[p][c] for p in prompt) for c in response)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
