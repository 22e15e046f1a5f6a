"""Reads what a run left in its folder; a part that is not there is simply empty."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prefopt.errors import PrefoptError

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a run folder, parsed."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    images: list[Row] = field(default_factory=list)


def read_run(folder: Path) -> Run:
    """The run in `folder`; PrefoptError if the folder holds no run or one of its files is broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise PrefoptError(f"{folder} is not a folder; give the output folder of a run")
    metrics = _rows(folder / "metrics.jsonl")
    if not metrics:
        metrics = [row for row in _json(folder / "trainer_state.json").get("log_history", []) if isinstance(row, dict)]
    run = Run(
        folder=folder,
        config=_yaml(folder / "config.yaml"),
        record=_json(folder / "run.json"),
        metrics=[row for row in metrics if "step" in row],
        evaluation=_json(folder / "evaluation.json"),
        checkpoints=_checkpoints(folder),
        samples=_rows(folder / "samples.jsonl"),
        images=_rows(folder / "images.jsonl"),
    )
    if not (run.config or run.record or run.metrics or run.evaluation or run.samples or run.images):
        names = "config.yaml, run.json, metrics.jsonl, evaluation.json or samples.jsonl"
        raise PrefoptError(f"{folder} holds no run: there is no {names}; give the output folder of prefopt train")
    return run


def _checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Evaluations of checkpoints, by step."""
    found = []
    for path in folder.glob("checkpoint-*/evaluation.json"):
        step = path.parent.name.removeprefix("checkpoint-")
        if step.isdigit():
            found.append({**_json(path), "step": int(step)})
    return sorted(found, key=lambda e: e["step"])


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise PrefoptError(f"{path} cannot be read as JSON: {error}; mend or remove it") from error
    if not isinstance(value, dict):
        raise PrefoptError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def _rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break  # a run that was killed, or is running, may leave half a line at the end
            raise PrefoptError(f"{path} line {number} is not JSON: {error}; mend or remove that line") from error
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise PrefoptError(f"{path} cannot be read as YAML: {error}; mend or remove it") from error
