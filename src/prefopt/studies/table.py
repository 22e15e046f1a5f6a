"""The table of a study: one row a run, as JSON (with the summary) and as CSV. The report is made from it alone."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import PrefoptError
from ..files import write_atomically
from ..training.folder import versions
from . import summary
from .config import StudyConfig
from .plan import PlannedRun
from .work import Place, read_start

PLACE = ("run", "label", "start", "size", "seed", "central", "status", "error", "seconds", "train_seconds", "steps")


@dataclass(frozen=True)
class Table:
    """Everything that was found: `rows` one a run, `starts` the start models' numbers, and how it was done."""

    name: str
    score: str
    planned: int
    rows: list[dict[str, Any]]
    starts: dict[str, dict[str, Any]]
    sizes: list[int | None]
    percentiles: list[float]
    thresholds: list[float]
    warnings: list[str]
    configuration: dict[str, Any]
    versions: dict[str, str]
    date: str

    @classmethod
    def of(
        cls, study: StudyConfig, runs: Sequence[PlannedRun], results: Sequence[dict[str, Any] | None], place: Place,
        warnings: Sequence[str],
    ) -> Table:  # fmt: skip
        """The results that are there; runs without one are left out (`planned` says how many there should be)."""
        starts: dict[str, dict[str, Any]] = {}
        for run in runs:
            if run.start not in starts and (path := place.start(run)).exists():
                starts[run.start] = _flat(read_start(path)["numbers"])
        rows = [_row(run, result) for run, result in zip(runs, results, strict=True) if result is not None]
        return cls(
            study.name, study.score, len(runs), rows, starts, list(study.sizes), list(study.percentiles),
            list(study.thresholds), list(warnings), study.model_dump(mode="json") | study.shared, versions(),
            time.strftime("%Y-%m-%d"),
        )  # fmt: skip

    @property
    def main(self) -> tuple[str, int | None]:
        """The start and size at which all settings were tried."""
        return next(iter(self.configuration["starts"])), self.sizes[0]

    def scored(self) -> list[dict[str, Any]]:
        return summary.scored(self.rows, self.score, self.starts)

    def summary(self) -> dict[str, Any]:
        """By method, by scenario and by size; see `summary.py`."""
        rows, (_, size) = self.scored(), self.main
        found: dict[str, Any] = {"methods": summary.methods(rows, self.main, self.percentiles, self.thresholds)}
        labels = list(self.configuration["starts"])
        if len(labels) > 1:
            found["scenarios"] = summary.scenarios(rows, labels, size)
        if len(self.sizes) > 1:
            own = {label: self.starts.get(label, {}).get(self.score) for label in labels}
            found["sizes"] = summary.sizes(rows, own, self.sizes)
        return found


def write_table(table: Table, folder: Path) -> None:
    """results.json and results.csv."""
    content = asdict(table) | {"summary": table.summary() if table.rows else {}}
    write_atomically(folder / "results.json", json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "results.csv", _csv(table.rows))


def read_table(path: Path) -> Table:
    """The table in a results.json; PrefoptError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("summary", None)
        return Table(**content)
    except (OSError, ValueError, TypeError) as error:
        raise PrefoptError(f"{path} is not the results of a study: {error}") from None


def _row(run: PlannedRun, result: dict[str, Any]) -> dict[str, Any]:
    kept = {key: result.get(key) for key in ("status", "error", "seconds", "train_seconds", "steps")}
    numbers = _flat(result.get("numbers") or {})
    return {
        "run": run.name,
        **run.place,
        **kept,
        **numbers,
        **result.get("fingerprints", {}),
    }


def _flat(numbers: dict[str, Any]) -> dict[str, Any]:
    """{"kl": {"value", "se", ...}} -> {"kl", "kl_se"}."""
    found: dict[str, Any] = {}
    for name, value in numbers.items():
        if isinstance(value, dict):
            found |= {name: value["value"], f"{name}_se": value["se"]}
        else:
            found[name] = value
    return found


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    points = list(dict.fromkeys(key for row in rows for key in row["point"]))
    numbers = list(dict.fromkeys(key for row in rows for key in row if key not in PLACE and key != "point"))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*PLACE, *(f"setting:{key}" for key in points), *numbers])
    for row in rows:
        cells = [row.get(key) for key in PLACE] + [row["point"].get(key) for key in points]
        writer.writerow(["" if c is None else c for c in cells + [row.get(key) for key in numbers]])
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and value != value else value
