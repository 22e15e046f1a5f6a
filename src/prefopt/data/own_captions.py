"""A caption for every response: where a row has them, and what to worry about in them (DCPO, 2502.06023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from prefopt.data import fields
from prefopt.data.example import Example
from prefopt.data.fields import Unreadable
from prefopt.data.row_fields import Fields

SIDES = (
    ("caption_chosen", "caption_rejected"),
    ("chosen_caption", "rejected_caption"),
    ("caption_0", "caption_1"),
)
CAPTION_COLUMNS = frozenset({"captions", *(c for sides in SIDES for c in sides)})
HOW = "give caption_chosen and caption_rejected, caption_0 and caption_1, or 'captions', one for each response"


def with_captions(example: Example, f: Fields) -> Example:
    """The example with the captions of its responses. Raises Unreadable where one is missing, empty or no text."""
    count = len(example.responses)
    if f.has("captions"):
        given = [(f"captions[{i}]", v) for i, v in enumerate(f.items("captions", count))]
    else:
        sides = next((s for s in SIDES if any(c in f.values for c in s)), None)
        if sides is None:
            raise Unreadable(f"has no caption of its own for each response, which the method needs: {HOW}", "missing")
        if count != 2:
            raise Unreadable(f"has {sides[0]!r} and {count} responses: {HOW}")
        given = [(c, f.need(c)) for c in sides]
    captions = tuple(fields.text(value, name) for name, value in given)
    for (name, _), caption in zip(given, captions, strict=True):
        if not caption.strip():
            raise Unreadable(f"{name!r} is empty, expected a caption", "missing")
    return replace(example, captions=captions)


def look_at_captions(
    examples: Sequence[Example], tokens: Callable[[list[str]], list[Any]]
) -> tuple[dict[str, int], list[str]]:
    """How many pairs have captions that say the same, as they are and as the model reads them; and remarks on it.

    tokens: captions -> what the text encoders see of each (cut to their length).
    """
    sides = [(e.captions[a], e.captions[b]) for e in examples for a, b in e.pairs]
    seen = dict(zip(said := sorted({c for s in sides for c in s}), tokens(said), strict=True)) if sides else {}
    same = sum(a == b for a, b in sides)
    cut = sum(seen[a] == seen[b] for a, b in sides) - same
    counts = {"pairs": len(sides), "identical": same, "identical_after_truncation": cut}
    remarks = []
    if sides and same == len(sides):
        remarks.append(f"the two captions are identical in all {same} pairs: this is Diffusion-DPO")
    elif same:
        remarks.append(f"the two captions are identical in {same} of {len(sides)} pairs")
    if cut:
        remarks.append(
            f"{cut} of {len(sides)} pairs have captions that differ only beyond what the text encoder reads: shorten them"
        )
    return counts, remarks
