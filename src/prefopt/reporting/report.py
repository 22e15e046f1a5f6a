"""`prefopt report`: one HTML file that tells what a run did. It needs nothing beside itself: no network, no scripts."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from prefopt.files import write_atomically
from prefopt.reporting import sections
from prefopt.reporting.figures import outcome_figures, training_figures
from prefopt.reporting.health import findings
from prefopt.reporting.run_folder import Run, read_run
from prefopt.rollout.text import prompt_text


def write_report(run_folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a run (by default to report.html in its folder) and returns its path.

    Parts that the run does not have (no evaluation yet, no images, ...) are left out.
    PrefoptError if the folder holds no run, or one of its files is broken.
    """
    run = read_run(Path(run_folder))
    path = Path(out) if out is not None else run.folder / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render(run))
    return path


def render(run: Run) -> str:
    """The report as HTML text."""
    environment = Environment(
        loader=PackageLoader("prefopt.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": sections.number, "signed": sections.signed, "prompt": prompt_text}
    style = environment.loader.get_source(environment, "style.css")[0]  # type: ignore[union-attr]
    return environment.get_template("report.html.j2").render(style=style, **context(run))


def context(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    evaluation = run.evaluation
    return {
        "title": run.folder.resolve().name,
        "headline": headline(run),
        "facts": facts(run),
        "tiles": sections.tiles(evaluation),
        "findings": findings(run),
        "judged": bool(run.metrics or evaluation),
        "notes": evaluation.get("notes") or [],
        "outcome": outcome_figures(run),
        "training": training_figures(run),
        "samples": sections.chosen_samples(run.samples),
        "sample_count": len(run.samples),
        "images": sections.image_rows(run),
        "details": sections.details(evaluation),
        "settings": sections.flat(evaluation.get("settings") or {}),
        "learnt": sections.learnt(run.record),
        "exported": (run.record.get("exported") or {}).get("file", ""),
        "data": sections.data_summary(run.record),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
        "versions": sections.flat(run.record.get("versions") or {}),
    }


def headline(run: Run) -> str:
    """The result in one sentence."""
    method = _method(run).upper() or "This run"
    reward = run.evaluation.get("reward") or {}
    start, after, gain = (reward.get(k) or {} for k in ("start", "policy", "gain"))
    if start.get("value") is None or after.get("value") is None:
        return f"{method}: what happened in this run"
    low, high = gain.get("ci") or (gain.get("value") or 0.0,) * 2
    words = f"the mean reward from {sections.number(start['value'])} to {sections.number(after['value'])}"
    if low > 0:
        return f"{method} raised {words}"
    if high < 0:
        return f"{method} lowered {words}"
    return f"{method} took {words}, which may be chance"


def facts(run: Run) -> list[tuple[str, str]]:
    """Short facts under the headline: method, model, data, when, how long."""
    record, config = run.record, run.config
    model = record.get("model") or config.get("model") or {}
    data = config.get("data") or {}
    steps = max((int(r["step"]) for r in run.metrics), default=None)
    found = [
        ("Method", _method(run)),
        ("Model", _path(model)),
        ("Data", _path(data)),
        ("Steps", f"{steps:,}" if steps else ""),
        ("Status", str(record.get("status") or "")),
        ("Started", _time(record.get("started"))),
        ("Took", _duration(record.get("started"), record.get("finished"))),
    ]
    return [(name, text) for name, text in found if text]


def _method(run: Run) -> str:
    method = run.record.get("method") or run.config.get("method") or ""
    return str(method.get("name", "")) if isinstance(method, dict) else str(method)


def _path(section: Any) -> str:
    path = section.get("path") or section.get("name") or "" if isinstance(section, dict) else section
    # the last two parts: the last alone is often just "model" or "train.jsonl"
    names = ["/".join(Path(str(p)).parts[-2:]) for p in (path if isinstance(path, list) else [path]) if p]
    return ", ".join(names)


def _moment(value: Any) -> datetime | None:
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value)
        return datetime.fromisoformat(str(value)) if value else None
    except ValueError:
        return None


def _time(value: Any) -> str:
    moment = _moment(value)
    return f"{moment:%d %b %Y, %H:%M}" if moment else ""


def _duration(start: Any, end: Any) -> str:
    a, b = _moment(start), _moment(end)
    if a is None or b is None:
        return ""
    seconds = int((b - a).total_seconds())
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
