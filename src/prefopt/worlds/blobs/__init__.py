"""One bright blob on 8x8 grey pixels by a tiny diffusion model, and a truth that measures it.

"a blob in the upper left": four places, and if asked three degrees of brightness ("a dim blob in the upper left"). A
blob may have any brightness, and the truth likes the bright and clean ones, so there is always something to prefer, and
a whole experiment takes seconds. `reward(prompts, images)` is the truth; `parts` gives what it is made of.
"""

from .building import SAMPLING, build
from .pipelines import tiny_pipeline
from .truth import CEILING, LEVELS, PLACES, blob, caption, captions, read, reward

__all__ = [
    "CEILING",
    "LEVELS",
    "PLACES",
    "SAMPLING",
    "blob",
    "build",
    "caption",
    "captions",
    "read",
    "reward",
    "tiny_pipeline",
]
