"""Verbs about image models alone: `prefopt merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_common import out


def merge(
    base: Annotated[str, typer.Argument(help="pipeline folder or hub name whose weights are moved")],
    negative: Annotated[str, typer.Argument(help="the network of dislikes: a pipeline, a LoRA's or a run's folder")],
    output: Annotated[Path, typer.Option("--output", "-o", help="a new pipeline folder")],
    positive: Annotated[str | None, typer.Option(help="the aligned model that will be guided")] = None,
    alpha: Annotated[float, typer.Option(help="share of the positive model's offset in the negative network")] = 1.0,
    beta: Annotated[float, typer.Option(help="share of the negative network's own offset")] = 1.0,
    guided: Annotated[
        bool, typer.Option("--guided", help="write a two-network pipeline: the positive model with the merged negative")
    ] = False,
) -> None:
    """Mix weights for two-network guidance: base + alpha (positive - base) + beta (negative - base)."""
    from .models.merging import merge_folders

    merge_folders(base, negative, output, positive=positive, alpha=alpha, beta=beta, guided=guided)
    how = f"prefopt.pipelines.load('{output}')" if guided else f"prefopt generate MODEL --negative {output}"
    out.print(f"merged into {output}; next: {how}", soft_wrap=True)
