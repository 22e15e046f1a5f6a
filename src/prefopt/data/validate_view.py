"""The doctor's report for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prefopt.data.validate import Report

_COLOUR = {"error": "bold red", "warn": "yellow", "info": "cyan"}


def render_report(report: Report) -> RenderableType:
    """A heading, a table of findings, and the verdict."""
    head = Text(f"{', '.join(report.paths)}: {report.rows} rows, read as {report.layout} ({report.modality}), "
                f"{report.usable} usable")  # fmt: skip
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for title, options in (("", {}), ("count", {"justify": "right"}), ("finding", {"overflow": "fold"}),
                           ("rows", {"overflow": "fold"})):  # fmt: skip
        table.add_column(title, **options)  # type: ignore[arg-type]
    for f in report.findings:
        what = f.title + (f": {f.detail}" if f.detail else "")
        more = ", ..." if f.count > len(f.rows) > 0 else ""
        table.add_row(Text(f.severity, _COLOUR[f.severity]), str(f.count), Text(what), ", ".join(f.rows) + more)
    numbers = Text(", ".join(f"{k} {v:,.3g}" if v < 1000 else f"{k} {v:,.0f}" for k, v in report.statistics.items()))
    words, colour = (
        ("sound: training may begin", "bold green")
        if report.sound
        else ("not sound: mend the errors first", "bold red")
    )
    verdict = Text(words, colour)
    return Group(head, *([table] if report.findings else []), numbers, verdict)
