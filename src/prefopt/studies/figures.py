"""The figures of a study's page, each with the sentence that says what is seen and what good looks like."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from ..reporting.figures import Figure, Legend
from ..reporting.svg import COLOURS, draw, draw_figure
from . import summary
from .plan import short
from .table import Table

SERIES = 8  # methods that get a colour of their own; the others are grey
WIDE = 12.0  # inches: across the page
ACROSS = 4  # small panels side by side
OTHER = "before"

Row = Mapping[str, Any]


class Painter:
    """What all figures of one study share: its rows, the order of its methods, and their colours."""

    def __init__(self, table: Table, found: Mapping[str, Any]):
        self.table, self.found = table, found
        self.score = {"reward": "reward", "win_start": "win rate against the start"}[table.score]
        self.rows = [r for r in table.scored() if (r["start"], r["size"]) == table.main]
        self.methods: dict[str, Any] = found["methods"]
        self.order = sorted(self.methods, key=lambda m: -self.methods[m]["best"])
        self.colours = {m: f"s{i + 1}" if i < SERIES else OTHER for i, m in enumerate(self.order)}
        self.start: dict[str, Any] = table.starts.get(table.main[0], {})

    def of(self, label: str) -> list[Row]:
        return [row for row in self.rows if row["label"] == label]

    def colour(self, label: str) -> str:
        return COLOURS[self.colours[label]]

    @property
    def legend(self) -> Legend:
        named = tuple((self.colours[m], m) for m in self.order[:SERIES])
        return (*named, (OTHER, "others")) if len(self.order) > SERIES else named

    def against(self, x: str, name: str, title: str, label: str, envelope: bool) -> Markup | None:
        """The score of every run over one of its numbers; with the start model as a square."""
        if not any(_known(r.get(x)) for r in self.rows):
            return None

        def paint(axes: Axes) -> None:
            for method in reversed(self.order):
                self._cloud(axes, method, x)
                if envelope and self.colours[method] != OTHER:
                    line = summary.frontier(self.of(method))
                    axes.plot(*zip(*line, strict=True), color=self.colour(method), linewidth=1.6, alpha=0.8, zorder=2)
            self._start(axes, x)
            axes.set_xlabel(label)
            axes.set_ylabel(self.score)
            axes.margins(x=0.03, y=0.08)

        return draw(name, paint, title=title, width=WIDE, height=4.6)

    def _cloud(self, axes: Axes, method: str, x: str, colour: str | None = None, size: float = 5.5) -> None:
        tint = colour or self.colour(method)
        points = [
            (r[x], r["score"], r["central"]) for r in self.of(method) if r["status"] == "finished" and _known(r.get(x))
        ]
        for central in (False, True):
            xs, ys = [p[0] for p in points if p[2] == central], [p[1] for p in points if p[2] == central]
            axes.plot(xs, ys, "o", color=tint, markersize=size, markeredgecolor=COLOURS["paper"], markeredgewidth=0.7,
                      alpha=0.95, zorder=3)  # fmt: skip

    def _start(self, axes: Axes, x: str, marker: float = 7) -> None:
        score: Any = self.start.get(self.table.score)
        place: Any = 0.0 if x == "kl" else self.start.get(x)
        if _known(score) and _known(place):
            axes.plot(place, score, "s", color=COLOURS["ink"], markersize=marker, zorder=4)

    def panels(self, labels: Sequence[Any], name: str, title: str, paint: Callable[[Axes, Any], None], each: float = 1.75,
               share: bool = True) -> Markup:  # fmt: skip
        """One small panel for each label; `share`: all with the same axes."""
        down = math.ceil(len(labels) / ACROSS)

        def whole(canvas: Canvas) -> None:
            canvas.get_layout_engine().set(h_pad=0.1, w_pad=0.1)  # type: ignore[union-attr,call-arg]
            grid = canvas.subplots(down, ACROSS, sharex=share, sharey=True, squeeze=False)
            for axes, label in zip(grid.flat, labels, strict=False):
                axes.locator_params(nbins=4)
                paint(axes, label)
            for axes in list(grid.flat)[len(labels) :]:
                axes.set_visible(False)
            for column in range(ACROSS):  # the last visible panel of a column carries the x labels
                last = (len(labels) - 1 - column) // ACROSS
                if last >= 0:
                    grid[last, column].tick_params(labelbottom=True)

        return draw_figure(name, whole, title=title, width=WIDE, height=each * down + 0.45)

    def frontiers(self) -> Markup | None:
        """Each method's runs before the grey cloud of all."""
        if len(self.order) < 2 or not any(_known(r.get("kl")) for r in self.rows):
            return None
        everything = [(r["kl"], r["score"]) for r in self.rows if r["status"] == "finished"]

        def paint(axes: Axes, method: str) -> None:
            axes.plot(*zip(*everything, strict=True), "o", color=COLOURS["line"], markersize=3, zorder=1)
            line = summary.frontier(self.of(method))
            tint = self.colour(method) if self.colours[method] != OTHER else COLOURS["after"]
            if line:
                axes.plot(*zip(*line, strict=True), color=tint, linewidth=1.3, zorder=2)
            self._cloud(axes, method, "kl", tint, 5)
            self._start(axes, "kl", 4)
            _heading(axes, method)

        return self.panels(self.order, "frontiers", f"{self.score} against KL, one panel a method", paint)

    def spread(self) -> Markup:
        """Every run's score by method, the best median first: middle half, median, failed runs as crosses."""
        order = sorted(self.order, key=lambda m: -float(np.median([r["score"] for r in self.of(m)])))

        def paint(axes: Axes) -> None:
            for y, method in enumerate(order):
                scores = np.array([r["score"] for r in self.of(method)])
                low, middle, high = np.percentile(scores, [25, 50, 75])
                axes.plot([scores.min(), scores.max()], [y, y], color=COLOURS["line"], linewidth=1.4, zorder=1)
                axes.plot([low, high], [y, y], color=self.colour(method), linewidth=7, alpha=0.28, zorder=2)
                axes.plot(middle, y, "|", color=COLOURS["ink"], markersize=14, markeredgewidth=2, zorder=4)
                for row in self.of(method):
                    ended = row["status"] == "finished"
                    axes.plot(row["score"], y, "o" if ended else "x", color=self.colour(method) if ended else COLOURS["worse"],
                              markersize=5 if ended else 7, markeredgewidth=0.6 if ended else 2,
                              markeredgecolor=COLOURS["paper"] if ended else COLOURS["worse"], zorder=3)  # fmt: skip
            if _known(self.start.get(self.table.score)):
                axes.axvline(
                    self.start[self.table.score], color=COLOURS["muted"], linewidth=0.9, dashes=(3, 3), zorder=0
                )
            axes.set_yticks(range(len(order)), order)
            axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
            axes.set_ylim(len(order) - 0.4, -0.6)
            axes.grid(axis="x")
            axes.grid(visible=False, axis="y")
            axes.set_xlabel(self.score)

        return draw(
            "spread", paint, title=f"{self.score} of all runs by method", width=WIDE, height=0.8 + 0.27 * len(order)
        )

    def percentiles(self) -> Markup | None:
        """Score of the run at each percentile of a method's grid."""
        if max(self.methods[m]["runs"] for m in self.order) < 3:
            return None
        places = np.linspace(0, 100, summary.CURVE)

        def paint(axes: Axes) -> None:
            for method in reversed(self.order):
                other = self.colours[method] == OTHER
                axes.plot(places, self.methods[method]["curve"], color=self.colour(method), alpha=0.35 if other else 1,
                          linewidth=1.1 if other else 1.9)  # fmt: skip
            axes.set_xlabel("percentile of the method's runs")
            axes.set_ylabel(self.score)
            axes.margins(x=0.01)

        return draw(
            "percentiles", paint, title=f"{self.score} by percentile of a method's runs", width=WIDE, height=3.8
        )

    def sensitivity(self) -> Markup | None:
        """One panel for each setting that a method varies: mean over everything else, dots are runs."""
        wanted = [
            (m, key) for m in self.order for key, values in self.methods[m]["marginals"].items() if len(values) > 1
        ]
        if not wanted:
            return None

        def paint(axes: Axes, what: tuple[str, str]) -> None:
            method, key = what
            values = self.methods[method]["marginals"][key]
            numeric = all(isinstance(v["value"], int | float) and not isinstance(v["value"], bool) for v in values)
            log = numeric and min(v["value"] for v in values) > 0
            place = {repr(v["value"]): v["value"] if log else i for i, v in enumerate(values)}
            tint = self.colour(method) if self.colours[method] != OTHER else COLOURS["after"]
            runs = [(place[repr(r["point"][key])], r["score"]) for r in self.of(method) if key in r["point"]]
            axes.plot(*zip(*runs, strict=True), "o", color=tint, markersize=3.5, alpha=0.4, markeredgewidth=0)
            axes.plot(
                [place[repr(v["value"])] for v in values], [v["mean"] for v in values], "-o", color=tint, markersize=4.5
            )
            if log:
                axes.set_xscale("log")
            axes.set_xticks([place[repr(v["value"])] for v in values], [short(v["value"])[:14] for v in values])
            axes.minorticks_off()
            axes.margins(x=0.12, y=0.1)
            _heading(axes, method, key)

        return self.panels(wanted, "sensitivity", f"{self.score} over each setting", paint, each=1.9, share=False)

    def scenarios(self) -> Markup | None:
        """Each method's central setting from every start."""
        found: dict[str, Any] = self.found.get("scenarios") or {}
        if not found:
            return None
        starts = list(self.table.starts)
        order = sorted(found, key=lambda m: -found[m]["starts"][starts[0]]["score"])

        def paint(axes: Axes) -> None:
            for i, start in enumerate(starts):
                own: Any = self.table.starts[start].get(self.table.score)
                if _known(own):
                    axes.axvline(own, color=COLOURS[f"s{i + 1}"], linewidth=1, dashes=(3, 3), zorder=0)
            for y, method in enumerate(order):
                scores = [found[method]["starts"][s]["score"] for s in starts]
                axes.plot([min(scores), max(scores)], [y, y], color=COLOURS["line"], linewidth=2, zorder=1)
                for i, score in enumerate(scores):
                    axes.plot(
                        score,
                        y,
                        "o",
                        color=COLOURS[f"s{i + 1}"],
                        markersize=7.5,
                        markeredgecolor=COLOURS["paper"],
                        zorder=3,
                    )
            axes.set_yticks(range(len(order)), order)
            axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
            axes.set_ylim(len(order) - 0.4, -0.6)
            axes.grid(axis="x")
            axes.grid(visible=False, axis="y")
            axes.set_xlabel(self.score)

        return draw(
            "scenarios", paint, title=f"{self.score} from each start", width=WIDE, height=0.8 + 0.27 * len(order)
        )

    def sizes(self) -> Markup | None:
        """Each method's central setting over the number of rows."""
        found: dict[str, Any] = {m: p for m, p in (self.found.get("sizes") or {}).items() if len(p) > 1}
        if not found:
            return None
        order = [m for m in self.order if m in found]
        known = [s for s in self.table.sizes if s is not None]
        places = {s: i for i, s in enumerate([*sorted(known), *([None] if None in self.table.sizes else [])])}

        def paint(axes: Axes, method: str) -> None:
            for other in order:
                axes.plot([places[p["size"]] for p in found[other]], [p["score"] for p in found[other]], color=COLOURS["line"],
                          linewidth=1, zorder=1)  # fmt: skip
            tint = self.colour(method) if self.colours[method] != OTHER else COLOURS["after"]
            axes.plot([places[p["size"]] for p in found[method]], [p["score"] for p in found[method]], "-o", color=tint,
                      markersize=5, zorder=3)  # fmt: skip
            if _known(self.start.get(self.table.score)):
                axes.axhline(
                    self.start[self.table.score], color=COLOURS["muted"], linewidth=0.9, dashes=(3, 3), zorder=0
                )
            axes.set_xticks(list(places.values()), ["all" if s is None else f"{s:,}" for s in places])
            axes.margins(x=0.08)
            _heading(axes, method)

        return self.panels(order, "sizes", f"{self.score} over rows of data, one panel a method", paint)


def study_figures(table: Table, found: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """Section -> its figures; a figure that lacks its data is left out."""
    p = Painter(table, found)
    word = p.score
    kl = "KL from the start model (nats per answer)"
    starts: Legend = tuple((f"s{i + 1}", s) for i, s in enumerate(table.starts))
    made: dict[str, list[tuple[str, str, Markup | None, Legend]]] = {
        "frontier": [
            (f"{word.capitalize()} against KL",
             "Every run, and each method's frontier: what no other of its runs beats with as little KL. The square is the "
             "start model. Good: high, and to the left.",
             p.against("kl", "frontier", f"{word} against KL", kl, True), p.legend),
            ("Method by method",
             "The same, one panel a method, before all runs in grey; all panels have the same axes.", p.frontiers(), ()),
            (f"Length against {word}",
             "A method that gains by writing more moves to the right with its score. The square is the start model.",
             p.against("length", "length", f"{word} against length", "tokens per answer, end token included", False), p.legend),
        ],
        "robustness": [
            ("All runs of every method",
             "Dots are runs, bars the middle half, ticks the median, crosses runs that did not finish (they count as the "
             "worst seen); the dashed line is the start model. Sorted by the median: how good a method is when it is not tuned.",
             p.spread(), ()),
            ("How good is a setting picked at random",
             "Score of the run at each percentile of a method's runs. Flat and high: the choice matters little.",
             p.percentiles(), p.legend),
            ("Over each setting",
             "Mean over all other settings and seeds; dots are runs. Flat: the setting matters little in this range.",
             p.sensitivity(), ()),
        ],
        "scenarios": [
            ("From several starts",
             "Each method's central setting, the same from every start; dashed lines are the start models themselves.",
             p.scenarios(), starts),
        ],
        "sizes": [
            ("Over the size of the data",
             "Each method's central setting on the first rows of the data: every subset holds the smaller ones. Grey: the "
             "other methods; dashed: the start model.",
             p.sizes(), ()),
        ],
    }  # fmt: skip
    return {
        section: [Figure(title, text, svg, legend) for title, text, svg, legend in figures if svg is not None]
        for section, figures in made.items()
    }


def _heading(axes: Axes, title: str, beside: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=COLOURS["ink"], pad=4)
    if beside:
        axes.set_title(beside, loc="right", fontsize=8.5, color=COLOURS["muted"], pad=4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
