"""Blobs that differ in hue, brightness and size, and users who like them differently: for everyone there is one who
likes the opposite, so that the average taste is no taste at all.

`build()` gives pairs with a `user`; `tastes(world)` says what each user truly likes, `liking(taste, prompts, images)` how
much; `encode(shots)` embeds a user by a few pairs, as a vision-language model would.
"""

from .building import SAMPLING, build, tastes
from .truth import PLACES, blob, captions, encode, features, liking

__all__ = ["PLACES", "SAMPLING", "blob", "build", "captions", "encode", "features", "liking", "tastes"]
