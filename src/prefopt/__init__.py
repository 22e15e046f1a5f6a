"""prefopt: preference optimisation for language, vision-language, image and video models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import PrefoptError

if TYPE_CHECKING:
    from .objectives.compose import annotated, swap
    from .objectives.loss import (
        Loss,
        Term,
        Update,
        compare,
        over_groups,
        over_pairs,
        over_responses,
        over_tokens,
        prefer,
    )
    from .objectives.method import Method, get_method, method, require
    from .objectives.responses import Responses
    from .objectives.scores import Scores

__version__ = "0.1.0"

__all__ = [
    "Loss",
    "Method",
    "PrefoptError",
    "Responses",
    "Scores",
    "Term",
    "Update",
    "annotated",
    "compare",
    "get_method",
    "method",
    "over_groups",
    "over_pairs",
    "over_responses",
    "over_tokens",
    "prefer",
    "require",
    "swap",
]

_HOMES = {
    "compose": ("annotated", "swap"),
    "loss": (
        "Loss", "Term", "Update", "compare", "over_groups", "over_pairs", "over_responses", "over_tokens", "prefer",
    ),
    "method": ("Method", "get_method", "method", "require"),
    "responses": ("Responses",),
    "scores": ("Scores",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: torch takes seconds, and `prefopt --help` needs none of it."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".objectives.{module}", __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
