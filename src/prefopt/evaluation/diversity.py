"""How different the samples of one prompt are from each other.

All functions take samples as sequences of hashable tokens (words, or token ids).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from prefopt.errors import PrefoptError
from prefopt.evaluation.estimate import Estimate, mean

Tokens = Sequence[Hashable]


def ngrams(tokens: Tokens, n: int) -> Counter:
    """Counts of the n-grams of a sample; a sample shorter than n has none."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def distinct(samples: Sequence[Tokens], n: int) -> float:
    """Distinct n-grams / n-grams, pooled over the samples of one prompt; NaN if none is long enough."""
    pooled = _pooled(samples, n)
    return len(pooled) / pooled.total() if pooled else math.nan


def ngram_entropy(samples: Sequence[Tokens], n: int) -> float:
    """-sum p ln p (nats) of the n-grams pooled over the samples of one prompt; NaN if none is long enough."""
    pooled = _pooled(samples, n)
    total = pooled.total()
    return -sum(c / total * math.log(c / total) for c in pooled.values()) if pooled else math.nan


def self_bleu(samples: Sequence[Tokens]) -> float:
    """Mean over samples of BLEU-4 against the other samples of the prompt; 1 if all are equal, 0 if disjoint."""
    if len(samples) < 2:
        raise PrefoptError(f"self-BLEU compares the samples of one prompt: it needs at least 2, got {len(samples)}")
    scores = [bleu(s, [o for j, o in enumerate(samples) if j != i]) for i, s in enumerate(samples)]
    return sum(scores) / len(scores)


def bleu(sample: Tokens, references: Sequence[Tokens]) -> float:
    """BLEU-4: modified precision with the largest reference count, uniform weights, always four orders.

    No common word: 0. No common n-gram for n >= 2: the number of matches is 0.1. Brevity penalty
    min(1, exp(1 - r/len)) with the closest reference length r, ties to the shorter.
    """
    log_precision = 0.0
    for n in range(1, 5):
        counts = ngrams(sample, n)
        ceiling: Counter = Counter()
        for reference in references:
            ceiling |= ngrams(reference, n)
        matches = float((counts & ceiling).total())
        if matches == 0 and n == 1:
            return 0.0
        log_precision += math.log((matches or 0.1) / max(1, counts.total())) / 4
    closest = min((len(r) for r in references), key=lambda length: (abs(length - len(sample)), length))
    return math.exp(log_precision + min(0.0, 1 - closest / len(sample)))


def diversity(samples: Sequence[Sequence[Tokens]]) -> dict[str, Estimate]:
    """The measures above for every prompt's samples, then mean and standard error over prompts.

    Keys distinct_1..3, ngram_entropy_1..3, and self_bleu where prompts have at least two samples.
    """
    measures: dict[str, Estimate] = {}
    for n in (1, 2, 3):
        measures[f"distinct_{n}"] = mean([distinct(s, n) for s in samples], reason=f"no sample of {n} words")
        measures[f"ngram_entropy_{n}"] = mean([ngram_entropy(s, n) for s in samples], reason=f"no sample of {n} words")
    if any(len(s) > 1 for s in samples):
        measures["self_bleu"] = mean(
            [self_bleu(s) if len(s) > 1 else math.nan for s in samples], reason="fewer than two samples"
        )
    return measures


def _pooled(samples: Sequence[Tokens], n: int) -> Counter:
    return sum((ngrams(s, n) for s in samples), Counter())
