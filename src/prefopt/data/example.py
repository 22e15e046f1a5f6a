"""One example: a prompt with k responses and what is known about them. Everything in prefopt starts from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""A chat turn: `role` (system, user, assistant, tool), `content` (text or a list of parts), and optionally
`tool_calls`, `reasoning_content` (thinking) and `train` (bool: whether its tokens are scored)."""

Turns = str | list[Message]
"""A prompt or a response of a text example: plain text, or chat messages. One example never mixes the two."""

NOTE_AXES: dict[str, str] = {
    "label": "R",  # bool: desirable or not (unpaired data)
    "score": "R",  # a rating, higher is better
    "rank": "R",  # 1 is best
    "scores/*": "R",  # one objective of several, `scores/NAME`; a missing rating is nan
    "margin": "P",  # by how much the first of the pair is better
    "gold_score": "P",  # the rating of the gold response, on the scale of `score`
    "weight": "P",  # how much the pair (or, unpaired, the response) counts; >= 0
    "label_probability": "P",  # soft label: the probability that the first of the pair is better, in [0, 1]
    "annotator": "P",  # int, a stable enumeration of the column's values
    "domain": "P",  # int, likewise
    "user": "P",  # int, likewise
    "scenario": "P",  # int, likewise: whose samples the two sides are, "on-off" and so on
    "reward_score": "R",  # a reward model's score (read where a method asks for it, like all below)
    "win_probability": "R",  # against the policy, in [0, 1]
    "unsafe": "R",  # 0 or 1, or the probability of it
    "cost": "R",  # what a constraint bounds
    "from_reference": "R",  # 0 or 1: a sample of the reference
    "on_policy": "R",  # 0 or 1: a sample of the policy, which may belong to no pair
    "age": "P",  # how long before now the pair was labelled
    "dispersion": "P",  # how much annotators agree on the prompt
    "wrong_step": "P",  # number of the step where the rejected answer goes wrong
    "phi": "R",  # target preference of a list, in [0, 1]: share of comparisons won (or made of reward_scores)
    "reward_scores": "R N",  # of several reward models, which vote
    "margin_rewards": "R N",  # rewards of the other objectives
    "source_sums": "R N",  # log-probabilities under other models ...
    "source_counts": "R N",  # ... and how many tokens each of them counts
    "gold_source_sums": "P N",  # the same of the gold answer
    "gold_source_counts": "P N",
    "step_index": "R T",  # int, 1-based index of the step that a token belongs to, 0 outside of all steps
    "value": "R",  # label of a ranked list, made of its scores, see data.list_labels
    "graded_valid": "R K",  # int, whether a graded version may be used as its level
    "step_score": "R S",  # one score per step
}
"""Canonical annotations and their axes: R one per response, P one per pair (one per response in unpaired data),
T one per token of a response, S one per step of a response, N a list as long in every row."""

ASKED = frozenset({"age", "dispersion", "wrong_step"})
"""Numbers of a pair that are read only where a method asks for them."""

ENUMERATED = frozenset({"annotator", "domain", "user", "scenario"})
"""Notes whose values are names in the file and small integers in the batch."""


@dataclass(frozen=True)
class Example:
    """A prompt, its responses and their annotations.

    `responses` are texts or chat messages; for images anything that `images.load_image` takes. `pairs` holds
    (better, worse) indices into `responses` and is empty for unpaired data, and for lists until
    `pairing.pair_up` was asked. Notes per pair have one entry per pair, notes per response one per response.
    `steps` are the texts of the steps of each response, `graded` its versions with less and less of its content (the
    first is the response itself), where the file has them.
    """

    prompt: Turns
    responses: tuple[Any, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    gold: Any = None
    tools: list[Any] | None = None
    images: tuple[Any, ...] = ()
    videos: tuple[str, ...] = ()
    steps: tuple[tuple[str, ...], ...] | None = None
    graded: tuple[tuple[str, ...] | None, ...] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    captions: tuple[str, ...] = ()  # of each response, where a method denoises it under one of its own
    remarks: tuple[str, ...] = ()  # what the reader noticed, for the doctor: "diverges early", ...
    file: str = ""
    row: int = 0  # 1-based

    @property
    def origin(self) -> str:
        """Where the example comes from, for messages."""
        return f"{self.file} row {self.row}"


def axes(note: str) -> str | None:
    """The axes of a canonical note, None for a name that only one method knows."""
    return NOTE_AXES.get("scores/*" if note.startswith("scores/") else note)
