"""The toy language: six letters in answer to one, and a reward that counts good and bad letters.

Twelve letters a to l (tokens 0 to 11); a prompt is one of them, an answer is exactly six. The reference is a
transformer of one block that has learned a Markov chain. `build()` gives the folder, `reward` the truth.

An answer has no end token: it is *cut* at six letters, by `max_new_tokens=6` when it is sampled and by
`data.max_length=7` (`DATA`) when it is trained on, which takes the end token off that every answer gets. The tokenizer
must have one, so the model has a thirteenth row; its logit is held near -80 by a bias of the last norm, so that it
takes no part in any sum over the vocabulary. The model has seven positions: a run that forgets `DATA` is refused.
"""

from prefopt.worlds.language.make import DATA, TOKENS, build, prompts
from prefopt.worlds.language.truth import LETTERS, reward

TRUTHS = {"reward": reward}

__all__ = ["DATA", "LETTERS", "TOKENS", "TRUTHS", "build", "prompts", "reward"]
