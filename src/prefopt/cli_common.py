"""What the verbs of the command line share: where they print, the arguments that several take, how they end."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

out = Console()
err = Console(stderr=True)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="section.key=value")]
DataPath = Annotated[str, typer.Argument(help="file, folder or hub name")]
DataKeys = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="keys of the data section, e.g. limit=100")
]
Rows = Annotated[Path, typer.Option("--output", "-o", help="JSONL; given again, an unfinished build goes on")]
Seed = Annotated[int, typer.Option(help="of all that is drawn: the same seed, the same result")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
User = Annotated[str | None, typer.Option(help="ppd: for whom, NAME or NAME=SHARE,NAME=SHARE")]
UserPairs = Annotated[str | None, typer.Option(help="ppd: for whoever chose these few pairs")]
PromptOnly = Annotated[
    bool, typer.Option("--prompt-only", help="ppd: the negative branch of guidance does not know the user")
]


def data_config(path: str, overrides: list[str] | None) -> Any:
    """The data section alone; keys may be given with or without their `data.`."""
    from .config import make, override

    keys = [o if o.startswith("data.") else f"data.{o}" for o in overrides or []]
    return make(override({"method": "dpo", "model": "-", "data": path, "output": "-"}, keys)).data


def leave_processes(code: int) -> None:
    """Close what connects several processes, as torch asks of a process before it ends, and end this one.

    At once, once all is flushed: a thread of gloo's that lets go of its last tensor while the interpreter shuts down, or
    that nobody has joined, aborts the process (exit code -6, now and then, on a busy machine).
    """
    if "torch.distributed" not in sys.modules:
        return
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    several = dist.get_world_size() > 1
    dist.destroy_process_group()
    if several:
        atexit._run_exitfuncs()  # logs, progress bars, trackers
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
