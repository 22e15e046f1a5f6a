"""Numbers from numbers: what the runs of a study say together. Pure functions of rows.

A row is one run: label, point (setting -> value), start, size, seed, central, status ("finished", "diverged", "failed")
and, if it finished, its numbers. Runs that did not finish count as the worst score seen from the same start on as many
rows (the start model's own included): left out, they would flatter the method that breaks most often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import PrefoptError
from ..evaluation.frontier import Point, envelope

Row = Mapping[str, Any]
CURVE = 21  # points of a percentile curve


def scored(rows: Sequence[Row], score: str, starts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `score`: the number of that name, or the worst of its place where a run did not finish.

    starts: label -> the start model's own numbers. PrefoptError if a finished run lacks the score.
    """
    worst: dict[tuple[str, int | None], float] = {}
    for row in rows:
        if row["status"] == "finished":
            value = row.get(score)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise PrefoptError(
                    f"the finished run {row['run']} has no {score}: runs of different metrics are no study"
                )
            worst[place(row)] = min(value, worst.get(place(row), math.inf))

    def counted(row: Row) -> float:
        own = starts.get(row["start"], {}).get(score)
        return min(worst.get(place(row), math.inf), math.inf if own is None else float(own))

    return [{**row, "score": float(row[score]) if row["status"] == "finished" else counted(row)} for row in rows]


def place(row: Row) -> tuple[str, int | None]:
    """Start and size: only runs of the same are compared."""
    return row["start"], row["size"]


def robustness(
    scores: Sequence[float],
    *,
    percentiles: Sequence[float] = (0.5, 0.25, 0.1),
    thresholds: Sequence[float] = (0.01, 0.02, 0.05, 0.1),
    top: float | None = None,
) -> dict[str, Any]:
    """How good a randomly chosen setting is: over the scores of all runs of a method's grid.

    best = max; percentiles linear between order statistics; std divides by the run count; within[d] = P(run >= best - d)
    for the method's own best; near_top[d] the same for `top`, the best of all methods. PrefoptError for no run.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        raise PrefoptError("a grid with no runs has no percentiles")
    best = float(values.max())
    found: dict[str, Any] = {
        "runs": len(values),
        "best": best,
        "mean": float(values.mean()),
        "std": float(values.std()),
        "percentiles": {f"{p:g}": float(np.percentile(values, 100 * p)) for p in percentiles},
        "within": {f"{d:g}": share_above(values, best - d) for d in thresholds},
        "curve": [float(np.percentile(values, 100 * p)) for p in np.linspace(0, 1, CURVE)],
    }
    if top is not None:
        found["near_top"] = {f"{d:g}": share_above(values, top - d) for d in thresholds}
    return found


def share_above(values: np.ndarray, bound: float) -> float:
    """Share of values that reach the bound (rounding forgiven)."""
    return float((values >= bound - 1e-12).mean())


def per_point(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of one setting, start and size gathered over seeds: mean score, its standard error over seeds, and means of
    the numbers over the seeds that finished."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(
            repr((row["label"], sorted(row["point"].items(), key=str), row["start"], row["size"])), []
        ).append(row)
    found = []
    for group in groups.values():
        first, values = group[0], np.array([row["score"] for row in group])
        error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
        ended = [row for row in group if row["status"] == "finished"]
        numbers = {
            k: float(np.mean([r[k] for r in ended])) for k in NUMBERS if ended and all(_known(r.get(k)) for r in ended)
        }
        found.append(
            {key: first[key] for key in ("label", "point", "start", "size", "central")}
            | {"seeds": len(group), "finished": len(ended), "score": float(values.mean()), "score_se": error, **numbers}
        )
    return found


NUMBERS = (
    "reward", "reward_se", "gain", "win_start", "win_chosen", "kl", "kl_se", "kl_per_token", "length", "ended",
    "accuracy", "ratio_accuracy", "chosen_drift",
)  # fmt: skip


def marginals(rows: Sequence[Row], metric: str = "score") -> dict[str, list[dict[str, Any]]]:
    """Setting -> for each of its values the mean, least and most of the metric over all other settings and seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key in dict.fromkeys(key for row in rows for key in row["point"]):
        values: dict[str, list[float]] = {}
        named: dict[str, Any] = {}
        for row in rows:
            if key in row["point"] and _known(row.get(metric)):
                values.setdefault(repr(row["point"][key]), []).append(float(row[metric]))
                named[repr(row["point"][key])] = row["point"][key]
        found[key] = [
            {"value": named[name], "mean": float(np.mean(v)), "least": min(v), "most": max(v), "runs": len(v)}
            for name, v in sorted(values.items(), key=lambda item: _order(named[item[0]]))
        ]
    return found


def frontier(rows: Sequence[Row]) -> list[Point]:
    """(KL, score) of the finished runs that no other beats with as little KL."""
    return envelope(
        [(max(r["kl"], 0.0), r["score"]) for r in rows if r["status"] == "finished" and _known(r.get("kl"))]
    )


def methods(
    rows: Sequence[Row], main: tuple[str, int | None], percentiles: Sequence[float], thresholds: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Label -> robustness over its runs at the main start and size, its best setting (mean over seeds), its frontier."""
    here = [row for row in rows if place(row) == main]
    top = max((row["score"] for row in here), default=math.nan)
    found = {}
    for label, own in _by(here, "label").items():
        spread = robustness([r["score"] for r in own], percentiles=percentiles, thresholds=thresholds, top=top)
        failed = {status: sum(r["status"] == status for r in own) for status in ("diverged", "failed")}
        best = max(per_point(own), key=lambda p: p["score"])
        found[label] = spread | failed | {"best_point": best, "frontier": frontier(own), "marginals": marginals(own)}
    return found


def scenarios(rows: Sequence[Row], starts: Sequence[str], size: int | None) -> dict[str, dict[str, Any]]:
    """Label -> start -> its central setting's numbers, and what each start costs against the first: score there less here.

    Only for lines that were tried from every start.
    """
    central = per_point([r for r in rows if r["central"] and r["size"] == size])
    found: dict[str, dict[str, Any]] = {}
    for label, own in _by(central, "label").items():
        places = {p["start"]: p for p in own}
        if set(places) == set(starts):
            cost = {s: places[starts[0]]["score"] - places[s]["score"] for s in starts[1:]}
            found[label] = {"starts": {s: places[s] for s in starts}, "cost": cost}
    return found


def sizes(
    rows: Sequence[Row], starts: Mapping[str, float | None], wanted: Sequence[int | None]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Label -> start -> its central setting by rising size (all rows last), with the share of the largest size's gain
    over the start that each size gives (missing where there is no gain to share). Only what was tried on several sizes.

    starts: label -> the start model's own score.
    """
    central = [p for p in per_point([r for r in rows if r["central"]]) if p["size"] in wanted]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for label, own in _by(central, "label").items():
        for start, points in _by(own, "start").items():
            if len(points) > 1:
                ordered = sorted(points, key=lambda p: rising(p["size"]))
                found.setdefault(label, {})[start] = _shares(ordered, starts.get(start))
    return found


def rising(size: int | None) -> float:
    """Order of sizes: all rows last."""
    return math.inf if size is None else size


def _shares(points: Sequence[Mapping[str, Any]], own: float | None) -> list[dict[str, Any]]:
    whole = 0.0 if own is None else points[-1]["score"] - own
    return [
        {**p, "share_of_gain": (p["score"] - own) / whole if own is not None and whole > 0 else None} for p in points
    ]


def _by(rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, str(value))
