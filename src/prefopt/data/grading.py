"""Graded versions of a response: its key phrases, found without any model, cut out step by step (2409.17791).

Key phrases are those of RAKE: runs of words between stop words and punctuation, each word worth the length of the runs
that it stands in divided by how often it occurs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from prefopt.data.stop_words import ENGLISH

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
"""Letters and digits; an apostrophe or a hyphen inside belongs to the word."""

Span = tuple[int, int]  # [start, end) in characters


@dataclass(frozen=True)
class Phrase:
    """A key phrase: its lower-cased words joined by blanks, where it occurs as a whole run, and its score."""

    text: str
    spans: tuple[Span, ...]
    score: float


def key_phrases(text: str, stop: frozenset[str] = ENGLISH) -> list[Phrase]:
    """The phrases of a text, the best first; of equal ones the first in the text."""
    runs: list[list[re.Match[str]]] = []
    end: int | None = None  # of the word before, if it belongs to a run
    for word in WORD.finditer(text):
        if _lower(word).replace("’", "'") in stop:
            end = None
            continue
        if end is None or text[end : word.start()].strip():
            runs.append([])
        runs[-1].append(word)
        end = word.end()
    frequency: Counter[str] = Counter()
    degree: Counter[str] = Counter()
    spans: dict[tuple[str, ...], list[Span]] = {}
    for run in runs:
        words = tuple(map(_lower, run))
        frequency.update(words)
        for w in words:
            degree[w] += len(words)
        spans.setdefault(words, []).append((run[0].start(), run[-1].end()))
    found = [
        Phrase(" ".join(words), tuple(at), sum(degree[w] / frequency[w] for w in words)) for words, at in spans.items()
    ]
    return sorted(found, key=lambda p: (-p.score, p.spans[0]))


def _lower(word: re.Match[str]) -> str:
    return word.group().lower()


def without(text: str, spans: Sequence[Span]) -> str:
    """The text without these pieces, white space collapsed to single blanks."""
    kept, cursor = [], 0
    for start, end in sorted(spans):
        kept.append(text[cursor:start])
        cursor = end
    return " ".join("".join([*kept, text[cursor:]]).split())


@dataclass(frozen=True)
class Grade:
    """One level of a response: its text, the pieces that were cut for it, and whether it may be used as this level."""

    text: str
    cut: tuple[Span, ...]
    valid: bool


def grades(text: str, ratios: Sequence[float], stop: frozenset[str] = ENGLISH) -> list[Grade]:
    """Level k is the text without the best floor(ratios[k] P + 1/2) of its P key phrases; none cut: the text itself.

    A level is not valid where its text is empty, or equal to another level's that fits its ratio better (the lower one
    of equally good). No level is, where there is no key phrase, or fewer than two would be left.
    """
    phrases = key_phrases(text, stop)
    counts = [math.floor(r * len(phrases) + 0.5) for r in ratios]
    cuts = [tuple(s for p in phrases[:n] for s in p.spans) for n in counts]
    texts = [without(text, cut) if cut else text for cut in cuts]
    share = [n / max(1, len(phrases)) for n in counts]
    valid = distinct(texts, [abs(r - s) for r, s in zip(ratios, share, strict=True)])
    return [Grade(t, c, v and bool(phrases)) for t, c, v in zip(texts, cuts, valid, strict=True)]


def distinct(texts: Sequence[object], misfit: Sequence[float] | None = None) -> list[bool]:
    """Which of several versions may be told apart: of equal ones the one with the least misfit (the first of equally
    good), of empty ones none, and none at all where fewer than two are left."""
    best: dict[object, int] = {}
    for k, text in enumerate(texts):
        if text and (text not in best or (misfit is not None and misfit[k] < misfit[best[text]] - 1e-12)):
            best[text] = k
    return [len(best) > 1 and best.get(text) == k for k, text in enumerate(texts)]


@dataclass(frozen=True)
class Grading:
    """Which graded versions a method asks for.

    ratios: share of the key phrases that is cut, one for each level, the first 0. degrade: text, a version is a text of
    its own; hidden, it is the response with the cut tokens left out of a mean. sides: of which responses.
    """

    ratios: tuple[float, ...]
    degrade: Literal["text", "hidden"] = "text"
    sides: Literal["both", "chosen", "rejected"] = "both"
    stop: frozenset[str] = field(default=ENGLISH, repr=False)
