"""Captioned 32x32 pictures by a small latent diffusion model, and a truth that looks at the pixels.

"a red circle in the upper left", "two blue squares on the right": 96 captions of colour, shape, place and count. The
model draws them visibly right often, but not always; pairs are its own pictures, labelled by the truth through a noisy
Bradley-Terry judge. `reward(prompts, images)` is the truth; `parts` gives its four objectives.
"""

from .building import build
from .pipelines import tiny_pipeline
from .truth import colour, count, parts, place, reward, shape

__all__ = ["build", "colour", "count", "parts", "place", "reward", "shape", "tiny_pipeline"]
