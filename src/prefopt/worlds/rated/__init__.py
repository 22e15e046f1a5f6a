"""The rated task: four answers to each prompt, rated with noise; the reward is a sum of letters that the prompt likes.

Sixteen letters; a prompt is three of them, an answer six to ten. The model has learned a Markov chain that knows nothing
of the reward; ratings are the true reward plus noise of 0.6 of its spread.
"""

from prefopt.worlds.rated.make import DATA, TOKENS, build, prompts
from prefopt.worlds.rated.truth import LETTERS, reward

TRUTHS = {"reward": reward}

__all__ = ["DATA", "LETTERS", "TOKENS", "TRUTHS", "build", "prompts", "reward"]
