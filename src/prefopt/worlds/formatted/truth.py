"""The exact rewards of the format task. Each takes (prompts, responses) and returns one number per response."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from statistics import fmean

LETTERS, MARKS = "abcdefghij", "()"
VALID = re.compile(rf"\(([{LETTERS}]{{2,6}})\)")
SCALE = 2.0  # of four letters' mean: rewards of random valid answers then spread by about 1


def _table() -> dict[str, dict[str, float]]:
    """How much a letter of the prompt likes a letter of the answer; of random letters as much as not."""
    rng = random.Random("formatted: who likes what")  # noqa: S311
    rows = {p: {c: rng.gauss(0, 1) for c in LETTERS} for p in LETTERS}
    return {p: {c: x - fmean(row.values()) for c, x in row.items()} for p, row in rows.items()}


LIKES = _table()


def valid(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """1 for `(`, two to six letters, `)` and nothing else; 0 for the rest."""
    return [float(VALID.fullmatch(r) is not None) for r in responses]


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Twice the mean over a valid answer's letters of how much the prompt's letters like them; 0 for the others."""
    return [_one(p, r) for p, r in zip(prompts, responses, strict=True)]


def _one(prompt: str, response: str) -> float:
    found = VALID.fullmatch(response)
    return SCALE * fmean(fmean(LIKES[p][c] for p in prompt) for c in found[1]) if found else 0.0
