"""The figures of a study's page, each with the sentence that says what is seen and what good looks like."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
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
from .window import Window, marker

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
        own: Any = self.start.get(table.score)
        self.scores = Window.of([r["score"] for r in self.rows], [own] if _known(own) else [])

    def window(self, x: str) -> Window:
        """What is shown of one of the runs' numbers."""
        own: Any = 0.0 if x == "kl" else self.start.get(x)
        return Window.of([r[x] for r in self.rows if _known(r.get(x))], [own] if _known(own) else [])

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
                    self._line(axes, method, self.colour(method), 1.6)
            self._start(axes, x)
            axes.set_xlabel(label)
            axes.set_ylabel(self.score)
            axes.margins(x=0.03, y=0.08)

        return draw(name, paint, title=title, width=WIDE, height=4.6)

    def _cloud(self, axes: Axes, method: str, x: str, colour: str | None = None, size: float = 5.5) -> None:
        across = self.window(x)
        for r in sorted(self.of(method), key=lambda r: r["central"]):
            if r["status"] == "finished" and _known(r.get(x)):
                mark = marker(across.side(r[x]), self.scores.side(r["score"]))
                axes.plot(across.clip(r[x]), self.scores.clip(r["score"]), mark, color=colour or self.colour(method),
                          markersize=size, markeredgecolor=COLOURS["paper"], markeredgewidth=0.7, zorder=3)  # fmt: skip

    def _line(self, axes: Axes, method: str, colour: str, width: float) -> None:
        """The frontier of a method, where it has one inside what is shown."""
        across = self.window("kl")
        line = [(kl, score) for kl, score in summary.frontier(self.of(method)) if not across.side(kl)]
        line = [(kl, score) for kl, score in line if not self.scores.side(score)]
        if line:
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=width, alpha=0.8, zorder=2)

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
        """Each method's runs before the grey cloud of all methods' settings (means over seeds)."""
        if len(self.order) < 2 or not any(_known(r.get("kl")) for r in self.rows):
            return None
        across = self.window("kl")
        settings = [p for p in summary.per_point(self.rows) if p["finished"] and "kl" in p]
        places = [(across.clip(p["kl"]), self.scores.clip(p["score"])) for p in settings]
        cloud = _dots(places, (across.high - across.low) / 400)

        def paint(axes: Axes, method: str) -> None:
            axes.plot(*cloud, color=COLOURS["line"], linewidth=3, zorder=1)
            tint = self.colour(method) if self.colours[method] != OTHER else COLOURS["after"]
            self._line(axes, method, tint, 1.3)
            self._cloud(axes, method, "kl", tint, 5)
            self._start(axes, "kl", 4)
            _heading(axes, method)

        return self.panels(self.order, "frontiers", f"{self.score} against KL, one panel a method", paint)

    def spread(self) -> Markup:
        """Every run's score by method, the best median first: middle half, median, failed runs as crosses."""
        order = sorted(self.order, key=lambda m: -float(np.median([r["score"] for r in self.of(m)])))

        def paint(axes: Axes) -> None:
            for y, method in enumerate(order):
                scores = np.array([self.scores.clip(r["score"]) for r in self.of(method)])
                low, middle, high = np.percentile(scores, [25, 50, 75])
                axes.plot([scores.min(), scores.max()], [y, y], color=COLOURS["line"], linewidth=1.4, zorder=1)
                axes.plot([low, high], [y, y], color=self.colour(method), linewidth=7, alpha=0.28, zorder=2)
                axes.plot(middle, y, "|", color=COLOURS["ink"], markersize=14, markeredgewidth=2, zorder=4)
                for row in self.of(method):
                    self._run(axes, row, y)
            if _known(self.start.get(self.table.score)):
                axes.axvline(
                    self.start[self.table.score], color=COLOURS["muted"], linewidth=0.9, dashes=(3, 3), zorder=0
                )
            self._lanes(axes, order)

        return draw(
            "spread", paint, title=f"{self.score} of all runs by method", width=WIDE, height=0.8 + 0.27 * len(order)
        )

    def _lanes(self, axes: Axes, methods: Sequence[str]) -> None:
        """A line for each method, from the top, along the score."""
        axes.set_yticks(range(len(methods)), methods)
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(self.score)

    def _run(self, axes: Axes, row: Row, y: float) -> None:
        x = self.scores.clip(row["score"])
        if row["status"] == "finished":
            mark = marker(self.scores.side(row["score"]), 0)
            axes.plot(x, y, mark, color=self.colour(row["label"]), markersize=5 if mark == "o" else 7,
                      markeredgewidth=0.6, markeredgecolor=COLOURS["paper"], zorder=3)  # fmt: skip
        else:
            axes.plot(x, y, "x", color=COLOURS["worse"], markersize=7, markeredgewidth=2, zorder=3)

    def percentiles(self) -> Markup | None:
        """Score of the run at each percentile of a method's runs, where there are three or more."""
        order = [m for m in self.order if self.methods[m]["runs"] > 2]
        if not order:
            return None
        places = np.linspace(0, 100, summary.CURVE)

        def paint(axes: Axes) -> None:
            for method in reversed(order):
                other = self.colours[method] == OTHER
                curve = [self.scores.clip(score) for score in self.methods[method]["curve"]]
                axes.plot(places, curve, color=self.colour(method), alpha=0.35 if other else 1,
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
            runs = [
                (place[repr(r["point"][key])], self.scores.clip(r["score"]))
                for r in self.of(method)
                if key in r["point"]
            ]
            axes.plot(*zip(*runs, strict=True), "o", color=tint, markersize=3.5, alpha=0.4, markeredgewidth=0)
            means = [(place[repr(v["value"])], self.scores.clip(v["mean"])) for v in values]
            axes.plot(*zip(*means, strict=True), "-o", color=tint, markersize=4.5)
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
            self._start_lines(axes.axvline, starts)
            for y, method in enumerate(order):
                points = [found[method]["starts"][s] for s in starts]
                scores = [p["score"] for p in points]
                axes.plot([min(scores), max(scores)], [y, y], color=COLOURS["line"], linewidth=2, zorder=1)
                for i, p in enumerate(points):
                    axes.errorbar(p["score"], y, xerr=_error(p), fmt="o", color=COLOURS[f"s{i + 1}"], markersize=7.5,
                                  markeredgecolor=COLOURS["paper"], elinewidth=1.4, zorder=3)  # fmt: skip
            self._lanes(axes, order)

        return draw(
            "scenarios", paint, title=f"{self.score} from each start", width=WIDE, height=0.8 + 0.27 * len(order)
        )

    def _start_lines(self, line: Callable[..., Any], starts: Collection[str]) -> None:
        """These start models' own scores, in their colours."""
        for i, (start, numbers) in enumerate(self.table.starts.items()):
            own: Any = numbers.get(self.table.score)
            if start in starts and _known(own):
                line(own, color=COLOURS[f"s{i + 1}"], linewidth=1, dashes=(3, 3), zorder=0)

    def sizes(self) -> Markup | None:
        """Each method's central setting over the number of rows, one line for each start."""
        found: dict[str, dict[str, Any]] = self.found.get("sizes") or {}
        if not found:
            return None
        order = [m for m in self.order if m in found]
        places = {size: i for i, size in enumerate(sorted(self.table.sizes, key=summary.rising))}
        colours = {start: COLOURS[f"s{i + 1}"] for i, start in enumerate(self.table.starts)}

        def paint(axes: Axes, method: str) -> None:
            self._start_lines(axes.axhline, found[method])
            for start, points in found[method].items():
                x, y = [places[p["size"]] for p in points], [p["score"] for p in points]
                axes.errorbar(x, y, yerr=[_error(p) for p in points], fmt="-o", color=colours[start], markersize=5,
                              elinewidth=1.2, zorder=3)  # fmt: skip
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
    sized: Any = {s for curves in (found.get("sizes") or {}).values() for s in curves}
    made: dict[str, list[tuple[str, str, Markup | None, Legend]]] = {
        "frontier": [
            (f"{word.capitalize()} against KL",
             "Every run, and each method's frontier: what no other of its runs beats with as little KL. The square is the "
             "start model. Good: high, and to the left. Triangles at an edge are runs that lie far beyond it.",
             p.against("kl", "frontier", f"{word} against KL", kl, True), p.legend),
            ("Method by method",
             "The same, one panel a method, before all methods' settings in grey (means over seeds); all panels have the "
             "same axes.", p.frontiers(), ()),
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
             "Score of the run at each percentile of a method's runs, for methods with three or more. Flat and high: the "
             "choice matters little.",
             p.percentiles(), p.legend),
            ("Over each setting",
             "Mean over all other settings and seeds; dots are runs. Flat: the setting matters little in this range.",
             p.sensitivity(), ()),
        ],
        "scenarios": [
            ("From several starts",
             "Each method's central setting, the same from every start, with the standard error over seeds; dashed lines are "
             "the start models themselves.",
             p.scenarios(), starts),
        ],
        "sizes": [
            ("Over the size of the data",
             "Each method's central setting on the first rows of the data (every subset holds the smaller ones), with the "
             "standard error over seeds; dashed: the start models.",
             p.sizes(), starts if len(sized) > 1 else ()),
        ],
    }  # fmt: skip
    return {
        section: [Figure(title, text, svg, legend) for title, text, svg, legend in figures if svg is not None]
        for section, figures in made.items()
    }


def _dots(points: Sequence[tuple[float, float]], length: float) -> tuple[list[float], list[float]]:
    """The points as one line of dashes of this length, which with round ends look like dots: in a page they take a
    tenth of what as many markers take. (Dashes of no length are left out by matplotlib.)"""
    across = [v for x, _ in points for v in (x, x + length, math.nan)]
    return across, [v for _, y in points for v in (y, y, math.nan)]


def _error(point: Mapping[str, Any]) -> float:
    """Standard error over seeds; nothing is drawn where there is one seed."""
    return point["score_se"] if _known(point["score_se"]) else 0.0


def _heading(axes: Axes, title: str, beside: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=COLOURS["ink"], pad=4)
    if beside:
        axes.set_title(beside, loc="right", fontsize=8.5, color=COLOURS["muted"], pad=4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
