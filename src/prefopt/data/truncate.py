"""Truncation of an example as a whole: one prompt for all its responses, one room for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefopt.data.config import DataConfig
from prefopt.data.fields import TeachesNothing

PROMPT_OVER = "a prompt over the limit"
OVER_LENGTH = "longer than max_length"


@dataclass(frozen=True)
class Cut:
    """What stays: the first `kept_start` tokens of the prompt, those from `prompt_start` to `prompt_end`, and of every
    response at most `room`. `one_side` says that some responses were cut and others not.
    """

    kept_start: int
    prompt_start: int
    prompt_end: int
    room: int
    prompt_cut: bool
    responses_cut: int
    one_side: bool

    def prompt(self, ids: Sequence[int]) -> list[int]:
        return [*ids[: self.kept_start], *ids[self.prompt_start : self.prompt_end]]


def plan(prompt: int, responses: Sequence[int], config: DataConfig, *, bos: bool) -> Cut | None:
    """What to cut of an example with these lengths in tokens; None where it fits.

    The prompt gives way first, down to `max_prompt_length` tokens (default: half of `max_length`), by default from its
    start, its BOS kept; then every response is cut to the room that is left, which is the same for all and never zero.
    Raises TeachesNothing where the prompt alone fills `max_length` and `max_prompt_length` does not say how far it may
    be cut, and for everything too long under `truncation: drop`.
    """
    limit = config.max_length
    longest = max(responses, default=0)
    if limit is None:
        if config.max_prompt_length and prompt > config.max_prompt_length:
            limit = config.max_prompt_length + longest  # only the prompt is limited
        else:
            return None
    if prompt + longest <= limit:
        return None
    if prompt >= limit and (config.truncation == "drop" or config.max_prompt_length is None):
        raise TeachesNothing(PROMPT_OVER)
    if config.truncation == "drop":
        raise TeachesNothing(OVER_LENGTH)
    floor = min(prompt, config.max_prompt_length or max(1, limit // 2))
    kept = max(floor, min(prompt, limit - longest), 1 + bos if bos and prompt > 1 else 1)
    room = limit - kept
    if room < 1:
        raise TeachesNothing(PROMPT_OVER)
    start = int(bos) if config.truncation == "keep_end" and kept < prompt else 0
    first = prompt - (kept - start) if config.truncation == "keep_end" else 0
    last = prompt if config.truncation == "keep_end" else kept
    cut = sum(n > room for n in responses)
    return Cut(start, first, last, room, kept < prompt, cut, 0 < cut < len(responses))
