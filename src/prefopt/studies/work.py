"""One run of a study: train, measure, keep the numbers. Each step is skipped if it was finished before."""

from __future__ import annotations

import json
import logging
import shutil
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import recipes
from ..config import ModelConfig, RunConfig
from ..errors import NotFinite, PrefoptError
from ..files import write_atomically
from ..training.run import make_method, train
from .check import evaluation_config
from .config import StudyConfig
from .measure import Yardstick, read_start
from .plan import PlannedRun

log = logging.getLogger("prefopt")
MOST_TEXT = 4000  # characters of a failure's message that are kept


class Place:
    """A study's folder: starts/LABEL.json, and runs/NAME/ with result.json, log.txt and, while it lasts, run/."""

    def __init__(self, study: StudyConfig):
        self.root = Path(study.output).expanduser()

    def start(self, run: PlannedRun) -> Path:
        return self.root / "starts" / f"{run.start_name}.json"

    def run(self, name: str) -> Path:
        return self.root / "runs" / name

    def result(self, run: PlannedRun) -> dict[str, Any] | None:
        """What the run came to, or None if it has not come to anything yet."""
        path = self.run(run.name) / "result.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError:
            raise PrefoptError(f"{path} is damaged; remove it, and the run is done again") from None


def measure_start(study: StudyConfig, run: PlannedRun) -> None:
    """The start model of `run` on the study's prompts, measured once."""
    path = Place(study).start(run)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(_yardstick(study, run.config("-")).of_start(), ensure_ascii=False))


def do_run(study: StudyConfig, run: PlannedRun) -> None:
    """Trains and measures; whatever goes wrong becomes the run's result, so that the others go on."""
    folder = Place(study).run(run.name)
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    try:
        found = _gone_on(study, run, folder)
    except NotFinite as e:
        found = {"status": "diverged", "error": str(e)[:MOST_TEXT]}
    except PrefoptError as e:
        found = {"status": "failed", "error": str(e)[:MOST_TEXT]}
    except Exception as e:  # a bug of one method must not end the study
        traceback.print_exc()
        found = {"status": "failed", "error": f"{type(e).__name__}: {e}"[:MOST_TEXT]}
    write_result(folder, run, found | {"seconds": round(time.monotonic() - begun, 2)})
    tidy(study, folder)


def write_result(folder: Path, run: PlannedRun, found: Mapping[str, Any]) -> None:
    """The last thing written of a run: without it the run goes on when the study is started again."""
    folder.mkdir(parents=True, exist_ok=True)
    result = {**run.place, **found, "configuration": dict(run.content)}
    write_atomically(folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False, default=str) + "\n")


def tidy(study: StudyConfig, folder: Path) -> None:
    """Takes away what a measured run need not keep."""
    trained = folder / "run"
    if study.keep == "models":
        for checkpoint in trained.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
        return
    for name in ("metrics.jsonl", "run.json"):
        if (trained / name).exists():
            shutil.copy(trained / name, folder / name)
    shutil.rmtree(trained, ignore_errors=True)


def _gone_on(study: StudyConfig, run: PlannedRun, folder: Path) -> dict[str, Any]:
    """The run from where it was stopped; from its beginning, if what was left of it cannot be gone on with (another
    version of the library may have begun it, with other keys)."""
    left = (folder / "run").exists()
    try:
        return _finished(study, run, folder)
    except NotFinite:
        raise
    except PrefoptError as e:
        if not left:
            raise
        log.warning("begun anew: %s", e)
        shutil.rmtree(folder / "run")
        return _finished(study, run, folder)


def _finished(study: StudyConfig, run: PlannedRun, folder: Path) -> dict[str, Any]:
    config = run.config(folder / "run")
    recipe = recipes.load_all().get(config.method["name"])
    begun = time.monotonic()
    outcome = train(config) if recipe is None else recipe.run(config)
    trained = time.monotonic()
    policy = config.model.model_copy(update={"path": str(outcome.folder), "adapter": None, "revision": None})
    method = None if recipe is not None else make_method(config)
    numbers, rows = _yardstick(study, config).of_run(policy, read_start(Place(study).start(run)), method)
    if study.keep != "numbers":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(folder / "samples.jsonl", text)
    record = outcome.record or {}
    return {
        "status": "finished",
        "numbers": numbers,
        "steps": _updates(Path(outcome.folder)),
        "train_seconds": round(trained - begun, 2),
        "fingerprints": {
            "model": record.get("model", {}).get("fingerprint"),
            "data": record.get("data", {}).get("fingerprint"),
            "reference": record.get("reference", {}).get("identity"),
        },
    }


def _updates(folder: Path) -> int | None:
    """Optimiser steps of a run, a recipe's together."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max((json.loads(line).get("step") or 0 for line in lines), default=None)


def _yardstick(study: StudyConfig, config: RunConfig) -> Yardstick:
    start: ModelConfig = config.model.model_copy(update={"adapter": None})
    return Yardstick(study.evaluation, evaluation_config(study), start)
