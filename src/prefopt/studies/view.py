"""What a study says on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table as Shown

from ..reporting.sections import number
from .config import StudyConfig
from .plan import plan, short
from .run import Outcome
from .table import read_table


def render_plan(study: StudyConfig, outcome: Outcome) -> Iterator[Any]:
    """Runs by method, and what stands in the way of a fair comparison."""
    table = Shown("method", "settings", "runs", "varied", box=None, header_style="bold")
    runs = plan(study)
    for label, line in study.methods.items():
        own = [run for run in runs if run.label == label]
        values = {key: dict.fromkeys(short(p[key]) for p in line.tried()) for key in line.tried()[0]}
        varied = "; ".join(f"{key} {', '.join(v)}" for key, v in values.items())
        table.add_row(label, str(len(line.tried())), str(len(own)), varied or "-")
    yield table
    for warning in outcome.warnings:
        yield f"[yellow]note:[/yellow] {escape(warning)}"
    yield f"{outcome.planned} runs, {outcome.finished + outcome.failed} of them done; dry run: nothing was trained or written"


def render_outcome(study: StudyConfig, outcome: Outcome) -> Iterator[Any]:
    """The ranking, what failed, and where the page is."""
    found = read_table(outcome.folder / "results.json")
    methods = found.summary()["methods"]
    table = Shown("method", f"best {found.score}", "median", "KL", "tokens", "setting", box=None, header_style="bold")
    for label in sorted(methods, key=lambda m: -methods[m]["best_point"]["score"]):
        line, point = methods[label], methods[label]["best_point"]
        shown = ", ".join(f"{key} {short(value)}" for key, value in point["point"].items())
        middle = sorted(line["curve"])[len(line["curve"]) // 2]
        cells = [
            number(point["score"]),
            number(middle),
            *(number(point[k]) if k in point else "-" for k in ("kl", "length")),
        ]
        table.add_row(label, *cells, shown)
    yield table
    if outcome.failed:
        yield f"[yellow]{outcome.failed} runs failed or diverged[/yellow]: they are in the table; --retry does failed ones again"
    if outcome.missing:
        yield f"{outcome.missing} of {outcome.planned} runs have no result yet: start the same command again to go on"
    yield f"table: {outcome.folder / 'results.csv'}"
    yield f"report: {outcome.report}"
