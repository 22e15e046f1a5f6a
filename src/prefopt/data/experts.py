"""The best images of a data set, whoever's pair or list they stood in: what is to be imitated (2510.18353)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..errors import PrefoptError
from .example import Example


def best_images(examples: Sequence[Example], count: int, paths: Sequence[str]) -> list[Example]:
    """The `count` images with the highest `score`, each an example of its own without pairs, in their order in the data.

    An image that stands in several pairs of one prompt counts once; equal scores: the earlier one. Raises PrefoptError
    where no image has a score.
    """
    found: dict[tuple[str, str], tuple[float, Example]] = {}
    for e in examples:
        scores = e.notes.get("score") or [math.nan] * len(e.responses)
        for response, score in zip(e.responses, scores, strict=True):
            key = (str(e.prompt), repr(response))
            if score == score and key not in found:
                found[key] = (score, replace(e, responses=(response,), pairs=(), notes={"score": (score,)}))
    if not found:
        raise PrefoptError(
            f"{', '.join(paths)}: data.top = {count} keeps the best images, and none has a score: give columns "
            "chosen_score and rejected_score, scores, or score (prefopt data build scores makes them with a scorer)"
        )
    ranked = sorted(enumerate(found.values()), key=lambda x: -x[1][0])[:count]
    return [example for _, (_, example) in sorted(ranked, key=lambda x: x[0])]
