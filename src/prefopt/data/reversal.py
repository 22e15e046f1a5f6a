"""Preferences turned round (`data.swap_preferences`): what people like less becomes what is learnt.

A network trained so is the negative branch of two-network guidance (Diffusion-NPO, 2505.11245), or the far end of an
ablation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from prefopt.data.example import Example

OF_PAIRS = frozenset({"margin", "weight", "label_probability", "annotator", "domain", "user"})
"""Notes that say of a pair the same when its sides are exchanged: how far apart, how much, how sure, whose."""

_NEGATED = ("score", "reward_score")
KINDS = frozenset({"pairs", "pairs|label", "pairs|demonstrations", "label", "prompts"})
KNOWN = OF_PAIRS | KINDS | {*_NEGATED, "rank", "win_probability", "scenario", "user_embedding|user"}


def without_reverse(needs: Iterable[str]) -> list[str]:
    """Needs of a method of which nobody can say what their opposite is: gold answers, ratings of single steps, ..."""
    return sorted(n for n in needs if n not in KNOWN and not n.startswith("scores/"))


def swapped(example: Example) -> Example:
    """The example with its preferences turned round: pairs exchanged, labels inverted, scores negated, ranks reversed."""
    notes = {name: [_turned(name, v, len(values)) for v in values] for name, values in example.notes.items()}
    return replace(example, pairs=tuple((worse, better) for better, worse in example.pairs), notes=notes)


def _turned(name: str, value: Any, count: int) -> Any:
    if name == "label":
        return not value
    if name in _NEGATED or name.startswith("scores/"):
        return -value
    if name == "rank":
        return count + 1 - value
    if name == "win_probability":
        return 1 - value
    return "-".join(reversed(value.split("-"))) if name == "scenario" else value
