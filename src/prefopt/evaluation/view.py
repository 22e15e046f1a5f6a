"""An evaluation as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table


def render_evaluation(found: Mapping[str, Any]) -> RenderableType:
    """Every estimate of evaluation.json with its 95 % interval, start beside policy where there are two."""
    table = Table("", "start", "policy", "difference", box=None, header_style="bold")
    for name, group in _groups({k: v for k, v in found.items() if k not in ("settings", "notes")}):
        if set(group) & {"start", "policy"}:
            table.add_row(name, *(_shown(group.get(side)) for side in ("start", "policy", "gain")))
        else:
            table.add_row(name, "", _shown(group), "")
    return Group(table, *found.get("notes", []))


def _groups(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in tree.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if not isinstance(value, Mapping):
            continue
        if "value" in value or set(value) & {"start", "policy"}:
            yield name, value
        else:
            yield from _groups(value, name)


def _shown(estimate: Mapping[str, Any] | None) -> str:
    if not isinstance(estimate, Mapping) or estimate.get("value") is None:
        return "-"
    ci = estimate.get("ci")
    return f"{estimate['value']:.4g}" + (f"  [{ci[0]:.3g}, {ci[1]:.3g}]" if ci else "")
