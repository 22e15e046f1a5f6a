"""The page of a study: one HTML file that needs nothing beside itself, made from results.json alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..errors import PrefoptError
from ..files import write_atomically
from ..reporting.health import Finding
from ..reporting.sections import Tile, number, signed
from ..reporting.svg import standalone
from .figures import study_figures
from .plan import short
from .summary import rising
from .table import Table

SHOWN_FAILURES = 6


def write_study_report(table: Table, path: Path) -> Path:
    """Writes the page, and its figures as files of their own beside it; returns the page's path. PrefoptError if no run
    has ended yet."""
    if not table.rows:
        raise PrefoptError(f"{path.parent}: no run of the study has ended yet, there is nothing to report")
    path.parent.mkdir(parents=True, exist_ok=True)
    page, style = context(table), _environment().get_template("style.css").render()
    write_atomically(path, _environment().get_template("study.html.j2").render(style=style, **page))
    drawn = path.parent / "figures"
    drawn.mkdir(exist_ok=True)
    for figure in (figure for figures in page["figures"].values() for figure in figures):
        write_atomically(drawn / f"{_file_name(figure.title)}.svg", standalone(figure.svg, style))
    return path


def _file_name(title: str) -> str:
    return "-".join(re.findall(r"[a-z]+", title.lower()))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("prefopt.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": _or_dash(number), "signed": _or_dash(signed), "percent": _or_dash(_percent)}
    return environment


def context(table: Table) -> dict[str, Any]:
    """Everything that the template shows."""
    found = table.summary()
    methods: dict[str, Any] = found["methods"]
    return {
        "title": table.name,
        "headline": headline(table, methods),
        "facts": facts(table),
        "tiles": tiles(table, methods),
        "findings": findings(table, methods),
        "figures": study_figures(table, found),
        "ranking": ranking(methods, table.starts.get(table.main[0], {}).get(table.score)),
        "reward": table.score == "reward",
        "score": "reward" if table.score == "reward" else "win rate",
        "percentiles": [f"{p:g}" for p in table.percentiles],
        "thresholds": [f"{d:g}" for d in table.thresholds],
        "scenarios": found.get("scenarios") or {},
        "start_names": list(table.configuration["starts"]),
        "start_scores": {s: numbers.get(table.score) for s, numbers in table.starts.items()},
        "sizes": found.get("sizes") or {},
        "size_names": sorted(table.sizes, key=rising),
        "rows": [{**row, "setting": _setting(row["point"])} for row in table.scored()],
        "config": yaml.safe_dump(table.configuration, sort_keys=False, allow_unicode=True),
        "versions": table.versions,
    }


def headline(table: Table, methods: Mapping[str, Any]) -> str:
    """The result in one sentence: the best setting, and the method that is best untuned."""
    if not methods:
        return f"{table.name}: no run at the main start has ended yet"
    best = max(methods, key=lambda m: methods[m]["best_point"]["score"])
    steady = max(methods, key=lambda m: methods[m]["percentiles"].get("0.5", methods[m]["mean"]))
    what, top = ("reward" if table.score == "reward" else "win rate"), methods[best]["best_point"]["score"]
    start = table.starts.get(table.main[0], {}).get(table.score)
    since = f" from {number(start)}" if start is not None else ""
    words = f"{best} at its best setting brings the {what}{since} to {number(top)}"
    if len(methods) == 1:
        return words
    middle = methods[steady]["percentiles"].get("0.5", methods[steady]["mean"])
    if steady == best:
        return f"{words}, and is the best untuned too ({number(middle)} at the median)"
    return f"{words}; untuned, {steady} does best ({number(middle)} at the median)"


def facts(table: Table) -> list[tuple[str, str]]:
    configuration = table.configuration
    data = configuration.get("data") or {}
    path = data.get("path", "") if isinstance(data, dict) else data
    spent = sum(row["seconds"] or 0 for row in table.rows)
    found = [
        ("Methods", str(len(configuration["methods"]))),
        ("Runs", f"{len(table.rows)} of {table.planned}"),
        ("Seeds", ", ".join(map(str, configuration["seeds"]))),
        ("Data", "/".join(Path(str(path)).parts[-2:])),
        ("Measured by", str(configuration["evaluation"]["reward"] or configuration["evaluation"]["judge"])),
        ("Time in runs", f"{spent / 60:.0f} min" if spent >= 90 else f"{spent:.0f} s"),
        ("Date", table.date),
    ]
    return [(name, text) for name, text in found if text]


def tiles(table: Table, methods: Mapping[str, Any]) -> list[Tile]:
    """The headline numbers."""
    if not methods:
        return []
    word = "reward" if table.score == "reward" else "win rate"
    start = table.starts.get(table.main[0], {})
    best = max(methods, key=lambda m: methods[m]["best_point"]["score"])
    steady = min(methods, key=lambda m: methods[m]["std"])
    point = methods[best]["best_point"]
    found = []
    if start.get(table.score) is not None:
        found.append(
            Tile("Start model", number(start[table.score]), f"mean {word}, {number(start['length'])} tokens per answer")
        )
    kl = f", KL {number(point['kl'])}" if "kl" in point else ""
    found.append(Tile(f"Best {word}", number(point["score"]), f"{best}{kl}", tone="good"))
    if "win_chosen" in point:
        found.append(
            Tile(
                "Wins against chosen",
                _percent(point["win_chosen"]),
                f"{best}'s answers against the held-out chosen ones",
            )
        )
    if methods[steady]["runs"] > 1:
        found.append(Tile("Steadiest", number(methods[steady]["std"]), f"{steady}: least spread over its runs (std)"))
    ended = sum(row["status"] == "finished" for row in table.rows)
    lost = len(table.rows) - ended
    note = (
        "all finished"
        if ended == table.planned
        else f"{lost} failed or diverged, {table.planned - len(table.rows)} still to do"
    )
    found.append(Tile("Runs", f"{ended}", note, after=f"of {table.planned}", tone="" if not lost else "bad"))
    return found


def findings(table: Table, methods: Mapping[str, Any]) -> list[Finding]:
    """What a reader should know before believing the figures; methods: as `Table.summary` tells of them."""
    found = []
    missing = table.planned - len(table.rows)
    if missing:
        found.append(
            Finding(
                "Not finished", f"{missing} of {table.planned} runs have no result yet; start the study again to go on."
            )
        )
    lost = [row for row in table.rows if row["status"] != "finished"]
    for row in lost[:SHOWN_FAILURES]:
        found.append(
            Finding(f"{row['label']} {_setting(row['point'])} {row['status']}", f"Seed {row['seed']}: {row['error']}")
        )
    if len(lost) > SHOWN_FAILURES:
        found.append(
            Finding("More failures", f"{len(lost) - SHOWN_FAILURES} further runs did not finish; the table names them.")
        )
    start = table.starts.get(table.main[0], {}).get(table.score)
    if start is not None:
        below = [m for m, line in methods.items() if line["best_point"]["score"] < start]
        if below:
            text = f"{', '.join(below)}: even the best setting tried here scores below the start model."
            found.append(Finding("Worse than before", text))
    found += [Finding("Note", text[:1].upper() + text[1:] + ".") for text in table.warnings]
    models = {(row["start"], row.get("model")) for row in table.rows if row.get("model")}
    if len({start for start, _ in models}) < len(models):
        found.append(
            Finding(
                "Different models", "Runs of the same start were trained from different weights: do not compare them."
            )
        )
    return found


def ranking(methods: Mapping[str, Any], start: float | None) -> list[dict[str, Any]]:
    """One line a method, the best setting first; `share` of the best one's gain over the start, for its bar."""
    order = sorted(methods, key=lambda m: -methods[m]["best_point"]["score"])
    scores = [methods[m]["best_point"]["score"] for m in order]
    low, high = min(scores, default=0.0) if start is None else start, max(scores, default=1.0)
    found = []
    for label in order:
        point = methods[label]["best_point"]
        share = max(0.0, (point["score"] - low) / (high - low)) if high > low else 0.0
        error = point["score_se"] if point["seeds"] > 1 else point.get("reward_se")
        line = {"label": label, "setting": _setting(point["point"]), "share": f"{100 * share:.0f}%", "error": error}
        found.append({**methods[label], **line, "point": point})
    return found


def _setting(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix('train.')} {short(value)}" for key, value in point.items())


def _percent(x: float) -> str:
    return f"{x:.0%}"


def _or_dash(show: Any) -> Any:
    return lambda x: show(x) if isinstance(x, int | float) and x == x else "–"
