"""The plots of a report: curves of the training, and distributions before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from prefopt.reporting.run_folder import Row
from prefopt.reporting.svg import COLOURS, draw

Line = tuple[str, str]  # metric, colour


def curves(
    metrics: Sequence[Row],
    lines: Sequence[Line],
    *,
    name: str,
    title: str,
    level: float | None = None,
    log: bool = False,
    smooth: bool = True,
) -> Markup | None:
    """Metrics over the steps: pale as logged, strong when smoothed, dots where they were measured on held-out data.

    `level` draws a reference line. None if no line has at least two finite points.
    """
    series = [(colour, *points(metrics, key), *points(metrics, f"eval_{key}")) for key, colour in lines]
    series = [s for s in series if len(s[1]) > 1 or len(s[3]) > 1]
    if not series:
        return None

    def paint(axes: Axes) -> None:
        if level is not None:
            axes.axhline(level, color=COLOURS["muted"], linewidth=0.9, dashes=(3, 3))
        for colour, steps, values, eval_steps, eval_values in series:
            tint = COLOURS[colour]
            soft = smoothed(values) if smooth else values
            if smooth and len(values) > 12:
                axes.plot(steps, values, color=tint, alpha=0.25, linewidth=0.9)
            axes.plot(steps, soft, color=tint)
            axes.plot(eval_steps, eval_values, "o", color=tint, markersize=4.5, markeredgecolor=COLOURS["paper"])
        if log and all(v.min() > 0 and v.max() > 30 * v.min() for _, _, v, _, _ in series if len(v)):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(x=0.015)

    return draw(name, paint, title=title)


def points(metrics: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of a metric."""
    found = [(row["step"], row[key]) for row in metrics if isinstance(row.get(key), int | float)]
    found = [(s, v) for s, v in found if math.isfinite(v)]
    return np.array([s for s, _ in found], dtype=float), np.array([v for _, v in found], dtype=float)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a twelfth of the curve, with a shorter window at the ends."""
    half = len(values) // 24
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half, len(values) - 1) + 1
    return (total[high] - total[low]) / (high - low)


def distributions(
    before: Sequence[float | None], after: Sequence[float | None], *, name: str, title: str, unit: str
) -> Markup | None:
    """Two histograms on common bins, each with a mark at its mean."""
    a, b = (np.array([v for v in side if v is not None and math.isfinite(v)]) for side in (before, after))
    if len(a) < 2 or len(b) < 2:
        return None
    both = np.concatenate([a, b])
    whole = bool(np.all(both == np.round(both)))
    edges = _edges(both, whole)

    def paint(axes: Axes) -> None:
        for values, colour in ((a, "before"), (b, "after")):
            share = np.histogram(values, edges)[0] / len(values) * 100
            axes.stairs(share, edges, fill=True, color=COLOURS[colour], alpha=0.28)
            axes.stairs(share, edges, color=COLOURS[colour], linewidth=1.4)
        top = axes.get_ylim()[1]
        for values, colour in ((a, "before"), (b, "after")):
            axes.plot([values.mean()] * 2, [0, top * 1.03], color=COLOURS[colour], linewidth=1.2, dashes=(3, 2))
        axes.set_ylim(0, top * 1.05)
        axes.set_xlabel(unit)
        axes.set_ylabel("% of answers")
        axes.margins(x=0.01)

    return draw(name, paint, title=title)


def _edges(values: np.ndarray, whole: bool, most: int = 32) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if whole:
        width = max(1, math.ceil((high - low + 1) / most))
        return np.arange(low - 0.5, high + width + 0.5, width)
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, min(most, max(8, int(math.sqrt(len(values)) * 1.5))) + 1)


def reward_against_kl(places: Sequence[dict]) -> Markup | None:
    """Points {label, kl, reward, kl_error, reward_error}: the start, checkpoints in between, and the end."""
    places = [p for p in places if p["kl"] is not None and p["reward"] is not None]
    if len(places) < 2:
        return None

    def paint(axes: Axes) -> None:
        x, y = [p["kl"] for p in places], [p["reward"] for p in places]
        axes.plot(x, y, color=COLOURS["line"], linewidth=1.4, zorder=1)
        for i, place in enumerate(places):
            colour = COLOURS["before" if i == 0 else "after"]
            xerr, yerr = place.get("kl_error") or 0, place.get("reward_error") or 0
            axes.errorbar(place["kl"], place["reward"], yerr, xerr, color=colour, linewidth=1.3, zorder=2)
            axes.plot(place["kl"], place["reward"], "o", color=colour, markersize=7 if i in (0, len(places) - 1) else 5,
                      markeredgecolor=COLOURS["paper"], zorder=3)  # fmt: skip
            axes.annotate(place["label"], (place["kl"], place["reward"]), (8, -7), textcoords="offset points",
                          color=COLOURS["ink"], va="top")  # fmt: skip
        axes.set_xlabel("KL from the start model (nats per answer)")
        axes.set_ylabel("mean reward")
        axes.margins(x=0.12, y=0.25)
        axes.set_xlim(right=axes.get_xlim()[1] * 1.08)

    return draw("frontier", paint, title="Mean reward against KL from the start model")


def verdicts(wins: int, ties: int, losses: int) -> Markup | None:
    """How often the trained model's answer was judged better, equal and worse."""
    counts = [("better", wins, "after"), ("equal", ties, "before"), ("worse", losses, "worse")]
    total = wins + ties + losses
    if total == 0:
        return None

    def paint(axes: Axes) -> None:
        for row, (label, count, colour) in enumerate(counts):
            axes.barh(row, count / total * 100, height=0.56, color=COLOURS[colour], alpha=0.85)
            axes.annotate(f"{count:,}", (count / total * 100, row), (7, 0), textcoords="offset points", va="center",
                          color=COLOURS["ink"], fontweight="bold")  # fmt: skip
            axes.annotate(
                label, (0, row), (-9, 0), textcoords="offset points", va="center", ha="right", color=COLOURS["ink"]
            )
        axes.invert_yaxis()
        axes.set_yticks([])
        axes.set_xlim(0, 108)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(bottom=False)
        axes.set_xlabel("% of comparisons")

    return draw("verdicts", paint, title=f"Judged better {wins} times, equal {ties}, worse {losses}")
