"""The whole study: planned, checked, run, and written down; started again, it goes on where it was stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ..errors import PrefoptError
from ..files import write_atomically
from . import pool
from .check import check
from .config import StudyConfig
from .plan import PlannedRun, plan
from .report import write_study_report
from .table import Table, write_table
from .work import Place, do_run, measure_start, tidy, write_result

log = logging.getLogger("prefopt")


@dataclass(frozen=True)
class Outcome:
    """What there is after the command: how many runs of the plan are done, and where the results are."""

    folder: Path
    planned: int
    finished: int
    failed: int
    warnings: Sequence[str]
    report: Path | None = None

    @property
    def missing(self) -> int:
        return self.planned - self.finished - self.failed


def run_study(study: StudyConfig, *, dry_run: bool = False, retry: bool = False, only_report: bool = False) -> Outcome:
    """Does every run that has no result yet, then writes results.json, results.csv and report.html into the output.

    dry_run: plan and check; nothing is run or written. retry: failed runs are tried again (diverged ones are results).
    only_report: write down what has been finished so far, and stop.
    Raises PrefoptError before the first run for whatever is wrong with the study.
    """
    _beside_output(study)
    runs = plan(study)
    place = Place(study)
    if only_report:  # also while the study runs: what is written is written whole
        if not (place.root / "study.yaml").exists():
            raise PrefoptError(f"output {place.root} holds no study yet, there is nothing to report")
        return _reported(place, runs, [], _written(study, place, runs, []))
    warnings = check(study, runs)
    if dry_run:
        return _outcome(place, runs, warnings)
    for warning in warnings:
        log.warning("%s", warning)
    with _claimed(study, place):
        try:
            _starts(study, place, runs)
            _runs(study, place, runs, retry)
        finally:
            table = _written(study, place, runs, warnings)
        return _reported(place, runs, warnings, table)


def _written(study: StudyConfig, place: Place, runs: Sequence[PlannedRun], warnings: Sequence[str]) -> Table:
    """The table of what has ended so far, also in its files."""
    table = Table.of(study, runs, [place.result(run) for run in runs], place, warnings)
    write_table(table, place.root)
    return table


def _reported(place: Place, runs: Sequence[PlannedRun], warnings: Sequence[str], table: Table) -> Outcome:
    return _outcome(place, runs, warnings, write_study_report(table, place.root / "report.html"))


def _outcome(place: Place, runs: Sequence[PlannedRun], warnings: Sequence[str], report: Path | None = None) -> Outcome:
    results = [r for r in map(place.result, runs) if r is not None]
    finished = sum(r["status"] == "finished" for r in results)
    return Outcome(place.root, len(runs), finished, len(results) - finished, warnings, report)


def _starts(study: StudyConfig, place: Place, runs: Sequence[PlannedRun]) -> None:
    """Every start model is measured before the first run: a reward that fails stops the study here."""
    wanted = {run.start_name: run for run in runs if not place.start(run).exists()}
    tasks: list[pool.Task] = [
        (measure_start, (study, run), place.root / "starts" / "log.txt") for run in wanted.values()
    ]
    if tasks:
        log.info("measuring %d start model%s", len(tasks), "s" if len(tasks) > 1 else "")
    with contextlib.closing(pool.work_off(tasks, min(study.jobs, max(1, len(tasks))))) as ends:
        for end in ends:
            if end.error:
                run = list(wanted.values())[end.task]
                raise PrefoptError(f"the start model '{run.start}' cannot be measured: {end.error}")


def _runs(study: StudyConfig, place: Place, runs: Sequence[PlannedRun], retry: bool) -> None:
    results = {run.name: place.result(run) for run in runs}
    for name, result in results.items():
        if result is not None and study.keep != "models":
            tidy(study, place.run(name))  # a kill may have come between the result and this
        if retry and result is not None and result["status"] == "failed":
            (place.run(name) / "result.json").unlink()
            results[name] = None
    todo = [run for run in runs if results[run.name] is None]
    if not todo:
        return
    log.info("%d of %d runs to do, %d at a time", len(todo), len(runs), study.jobs)
    tasks: list[pool.Task] = [(do_run, (study, run), place.run(run.name) / "log.txt") for run in todo]
    begun = time.monotonic()
    with contextlib.closing(pool.work_off(tasks, study.jobs)) as ends:
        for number, end in enumerate(ends, 1):
            run = todo[end.task]
            if end.error and place.result(run) is None:
                write_result(place.run(run.name), run, {"status": "failed", "error": end.error, "seconds": None})
                tidy(study, place.run(run.name))
            left = (time.monotonic() - begun) / number * (len(todo) - number)
            _tell(study, run, place.result(run) or {}, f"{len(runs) - len(todo) + number} of {len(runs)}", left)


def _tell(study: StudyConfig, run: PlannedRun, result: dict[str, Any], count: str, left: float) -> None:
    if result.get("status") == "finished":
        numbers = result["numbers"]
        said = f"{study.score} {numbers[study.score]['value']:.3f}, KL {numbers['kl']['value']:.2f}"
    else:
        said = f"{result.get('status')}: {result.get('error')}"
    rest = f"; about {left / 60:.0f} min left" if left > 30 else ""
    log.info("%s  %s: %s%s", count, run.title, said, rest)


@contextlib.contextmanager
def _claimed(study: StudyConfig, place: Place) -> Iterator[None]:
    """The study's folder, for one process at a time; PrefoptError if it holds something else or cannot be written."""
    root = place.root
    if root.exists() and not root.is_dir():
        raise PrefoptError(f"output {root} is a file; give a folder")
    if root.exists() and any(root.iterdir()) and not (root / "study.yaml").exists():
        raise PrefoptError(f"output {root} holds other files and no study; nothing is overwritten: give a new folder")
    lock = FileLock(str(root) + ".lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        content = study.model_dump(mode="json") | study.shared
        write_atomically(root / "study.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    except Timeout:
        raise PrefoptError(f"output {root}: another process is running this study") from None
    except OSError as error:
        raise PrefoptError(f"output {root} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _beside_output(study: StudyConfig) -> None:
    """A study is one process that starts others: a launcher would start it several times."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise PrefoptError("a study starts its own processes (jobs: N); do not launch it with accelerate or torchrun")
