"""Target preferences of a list from the votes of several reward models (Syn-Pic, 2410.18013)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prefopt.data.example import Example
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.data.lists import ALL_EQUAL


def votes(scores: Sequence[Sequence[float]]) -> list[float]:
    """phi_i = share of the comparisons that response i wins: sum_l sum_{j != i} [R_l(i) > R_l(j)] / (n (k - 1)).

    scores [k][n]: of n reward models for each of k responses, in any units; a tie gives nobody a win.
    """
    k, n = len(scores), len(scores[0])
    wins = [sum(a > b for other in scores for a, b in zip(own, other, strict=True)) for own in scores]
    return [w / (n * (k - 1)) for w in wins]


def with_phi(example: Example) -> Example:
    """The example with a note `phi`: the file's own, else the votes of `reward_scores`, which it no longer carries.

    Raises Unreadable for a list of one, TeachesNothing where all are equal.
    """
    if len(example.responses) < 2:
        raise Unreadable(f"is a list of {len(example.responses)}, and the method ranks at least two", "missing")
    notes = dict(example.notes)
    scores = notes.pop("reward_scores", None)
    if "phi" not in notes and scores is not None:
        notes["phi"] = votes(scores)
    if "phi" in notes and len(set(notes["phi"])) == 1:
        raise TeachesNothing(ALL_EQUAL)
    return replace(example, notes=notes)
