"""What a method needs, in the words of the data package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def data_needs(needs: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """What the data has to hold, in the words of the data package."""
    wanted = {"gold"} if "extras:gold" in needs else set()
    for key, spec in needs.items():
        kind, _, name = key.partition(":")
        if kind != "notes" or name == "group" or spec.get("optional") or spec.get("fallback"):
            continue
        instead = spec.get("instead")
        wanted.add(f"{name}|{instead}" if instead else name)
    return wanted
