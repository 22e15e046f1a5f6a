"""The format task: a valid answer is `(`, two to six letters, `)`, and the model has hardly ever seen one.

A prompt is two of ten letters; a model that was never fine-tuned writes four to eight characters, of which about three
in a hundred answers are valid. The reward of a valid answer depends on prompt and letters, that of another is 0.
"""

from prefopt.worlds.formatted.make import DATA, TOKENS, build, prompts
from prefopt.worlds.formatted.truth import LETTERS, MARKS, reward, valid

TRUTHS = {"reward": reward, "valid": valid}

__all__ = ["DATA", "LETTERS", "MARKS", "TOKENS", "TRUTHS", "build", "prompts", "reward", "valid"]
