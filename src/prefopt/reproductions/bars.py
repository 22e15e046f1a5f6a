"""One picture for reproductions that compare a handful of runs: a bar for each, a dot for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .claim import Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase


def bars(
    seeds: Sequence[Measurements], names: Mapping[str, str], panels: Mapping[str, str], colours: Mapping[str, str]
) -> Figure:
    """A panel for each number (key -> title), in it a bar for each run (key of the measurements -> what it is called).

    colours: the beginning of a run's key -> its colour, the longest that fits.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0 * len(panels) + 0.5, 3.3), layout="constrained")
    bars_in(figure, seeds, names, panels, colours)
    return figure


def bars_in(
    figure: FigureBase,
    seeds: Sequence[Measurements],
    names: Mapping[str, str],
    panels: Mapping[str, str],
    colours: Mapping[str, str],
) -> None:
    """`bars` as one row of a larger figure."""
    for axes, (key, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for x, name in enumerate(names):
            values = [seed[name][key] for seed in seeds]
            axes.bar(x, np.mean(values), width=0.64, color=_colour(name, colours), alpha=0.75)
            axes.plot([x] * len(values), values, "o", color="#222222", markersize=3)
        axes.set_xticks(range(len(names)), list(names.values()), fontsize=7, rotation=35, ha="right")
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)


def _colour(name: str, colours: Mapping[str, Any]) -> str:
    fits = [start for start in colours if name.startswith(start)]
    return colours[max(fits, key=len)] if fits else "#8a8a8a"
