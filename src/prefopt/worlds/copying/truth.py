"""The exact rewards of the copy task. Each takes (prompts, responses) and returns one number per response.

name           range    what it measures
share          [0, 1]   share of the answer's letters that occur in the prompt; 0 for an empty answer. The length of
                        an answer does not enter
coverage       [0, 1]   share of the prompt's letters that occur in the answer
noise          [0, 1]   share of the answer's letters that do not occur in the prompt; 0 for an empty answer
covered        [-1, 1]  coverage - noise: longer answers cover more
concise        [-1, 1]  coverage - 1/32 of a point for each letter: the prompt's letters are keywords, length costs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

LETTERS = "abcdefghijklmnopq"


def share(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Share of the answer's letters that occur in the prompt."""
    return _each(prompts, responses, lambda p, r: sum(c in p for c in r) / len(r) if r else 0.0)


def coverage(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Share of the prompt's letters that occur in the answer."""
    return _each(prompts, responses, lambda p, r: sum(c in r for c in p) / len(p))


def noise(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Share of the answer's letters that do not occur in the prompt."""
    return _each(prompts, responses, lambda p, r: sum(c not in p for c in r) / len(r) if r else 0.0)


def covered(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Coverage less noise."""
    return [a - b for a, b in zip(coverage(prompts, responses), noise(prompts, responses), strict=True)]


def concise(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Coverage less a price for each letter."""
    return _each(prompts, responses, lambda p, r: sum(c in r for c in p) / len(p) - len(r) / 32)


def _each(prompts: Sequence[str], responses: Sequence[str], score: Callable[[str, str], float]) -> list[float]:
    return [score(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
