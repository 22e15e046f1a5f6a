"""The reviews world: short film reviews by a small Llama, with exact rewards.

`build()` gives the folder; the rewards have the signature (prompts, responses) -> list of floats and can be named on
the command line, as in `prefopt.worlds.reviews:reward`. What each measures is said in `truth.py`.
"""

from prefopt.worlds.reviews.make import build
from prefopt.worlds.reviews.truth import (
    OBJECTIVES,
    brevity,
    fluency,
    length,
    objectives,
    politeness,
    reward,
    sentiment,
    topic,
)

__all__ = [
    "OBJECTIVES",
    "brevity",
    "build",
    "fluency",
    "length",
    "objectives",
    "politeness",
    "reward",
    "sentiment",
    "topic",
]
