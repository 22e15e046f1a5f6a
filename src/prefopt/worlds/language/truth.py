"""The exact reward of the toy language."""

from __future__ import annotations

from collections.abc import Sequence

LETTERS = "abcdefghijkl"
GOOD_IF_EVEN, BAD_IF_EVEN = "ab", "cd"


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Number of good letters minus number of bad ones, in [-6, 6] for the six letters of an answer.

    After a, c, e, g, i, k (tokens of even number) a and b are good and c and d bad; after the others it is reversed.
    """
    return [_reward(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _reward(prompt: str, response: str) -> float:
    first, second = (sum(map(response.count, letters)) for letters in (GOOD_IF_EVEN, BAD_IF_EVEN))
    return float(first - second if LETTERS.index(prompt) % 2 == 0 else second - first)
