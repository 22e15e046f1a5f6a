"""One picture for reproductions that compare a handful of runs: a bar for each, a dot for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .claim import Measurements

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
            bar(axes, x, [seed[name][key] for seed in seeds], _colour(name, colours))
        axes.set_xticks(range(len(names)), list(names.values()), fontsize=7, rotation=35, ha="right")
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)


def bar(
    axes: Axes, x: float, values: Sequence[float], colour: str, width: float = 0.64, label: str | None = None
) -> None:
    """The mean over seeds as a bar, each seed as a dot."""
    axes.bar(x, np.mean(values), width=width, color=colour, alpha=0.75, label=label)
    axes.plot([x] * len(values), values, "o", color="#222222", markersize=3)


def bars_over_start(
    seeds: Sequence[Measurements], names: Mapping[str, str], colours: Mapping[str, str], start: str = "base"
) -> Figure:
    """Bars of true reward, win rate over the start and implicit accuracy, of which the start has a half."""
    even = {"win_rate": 0.5, "implicit_accuracy": 0.5}
    whole = [{**seed, start: even | dict(seed[start])} for seed in seeds]
    panels = {"reward": "true reward", "win_rate": "win rate over the start", "implicit_accuracy": "implicit accuracy"}
    return bars(whole, names, panels, colours)


def _colour(name: str, colours: Mapping[str, Any]) -> str:
    fits = [start for start in colours if name.startswith(start)]
    return colours[max(fits, key=len)] if fits else "#8a8a8a"
