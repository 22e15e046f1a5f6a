"""What the verbs of the command line share: where they print, the arguments that several take."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

out = Console()
err = Console(stderr=True)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="section.key=value")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def data_config(path: str, overrides: list[str] | None) -> Any:
    """The data section alone; keys may be given with or without their `data.`."""
    from .config import make, override

    keys = [o if o.startswith("data.") else f"data.{o}" for o in overrides or []]
    return make(override({"method": "dpo", "model": "-", "data": path, "output": "-"}, keys)).data
