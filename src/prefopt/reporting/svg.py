"""Matplotlib figures as inline SVG that follows the page: its fonts, and its colours in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Drawn with stand-ins, which become the style sheet's variables: the page, not the plot, decides on the colours.
COLOURS = {
    "ink": "#010203",
    "muted": "#020304",
    "line": "#030405",
    "after": "#040506",
    "before": "#050607",
    "worse": "#060708",
    "paper": "#070809",
    **{f"s{i}": f"#08{i:02x}0a" for i in range(1, 9)},  # series of a comparison
}
WIDTH, HEIGHT = 6.0, 2.75  # inches; one SVG unit is a point, so text is about as large as the page's small print

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.left": False,
    "xtick.major.size": 3,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
}


def draw(
    name: str, paint: Callable[[Axes], None], *, title: str, height: float = HEIGHT, width: float = WIDTH
) -> Markup:
    """The SVG that `paint` draws on one pair of axes; `name` makes its ids unique, `title` is for screen readers."""

    def whole(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.locator_params(axis="y", nbins=5)
        paint(axes)

    return draw_figure(name, whole, title=title, height=height, width=width)


def draw_figure(
    name: str, paint: Callable[[Figure], None], *, title: str, height: float = HEIGHT, width: float = WIDTH
) -> Markup:
    """`draw` for `paint`s that lay out axes themselves."""
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_inline(buffer.getvalue(), name, title))  # noqa: S704  (drawn here; the title is escaped)


def standalone(svg: Markup, style: str) -> str:
    """An inline figure as a file of its own: in the light colours of the page's style sheet, on its paper."""
    colours = dict(re.findall(r"--([\w-]+):\s*(#[0-9a-fA-F]+)", style.split("}")[0]))
    text = re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], str(svg))
    look = f"background: {colours['paper']}; font-family: system-ui, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return text.replace("<svg ", f'<svg {spaces} style="{look}" ', 1)


def _inline(text: str, name: str, title: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend)[\w.]*"', "", text)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', text, count=1
    )
    text = re.sub(r"font: (?:\d+ )?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r'(["#(])([mpc][0-9a-f]{10})\b', rf"\1{name}-\2", text)
    for colour, stand_in in COLOURS.items():
        text = text.replace(stand_in, f"var(--{colour})")
    return text
