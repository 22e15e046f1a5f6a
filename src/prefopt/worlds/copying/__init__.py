"""The copy task: answer four letters by walking through them again and again, and know when to stop.

Seventeen letters a to q; a prompt is four different ones. The model has learned to go through the prompt's letters in
their order, right with a certain probability, for 2 to 12 letters. `build()` gives the folder; rewards are exact and
look at letters only, lengths count the end token too.

An answer has at most 16 tokens. One that has not ended by then is cut, when it is sampled (`max_new_tokens=16`) and
when it is trained on (`data.max_length=21`, `DATA`): it has no end token there either.
"""

from prefopt.worlds.copying.make import DATA, LENGTH_BIASED, LENGTH_NEUTRAL, TOKENS, build, prompts
from prefopt.worlds.copying.truth import LETTERS, concise, coverage, covered, noise, share

TRUTHS = {"share": share, "covered": covered}

__all__ = [
    "DATA",
    "LENGTH_BIASED",
    "LENGTH_NEUTRAL",
    "LETTERS",
    "TOKENS",
    "TRUTHS",
    "build",
    "concise",
    "coverage",
    "covered",
    "noise",
    "prompts",
    "share",
]
