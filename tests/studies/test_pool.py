"""Worker processes: what one does, or suffers, is its own affair."""

from __future__ import annotations

from pathlib import Path

from prefopt.studies.pool import Task, work_off
from tests.studies import tasks


def test_every_task_ends_whatever_becomes_of_its_process(tmp_path: Path) -> None:
    log, notes, once, twice = (tmp_path / name for name in ("log.txt", "notes", "once", "twice"))
    todo: list[Task] = [
        (tasks.note, (notes, "first"), log),
        (tasks.refuse, ("no such thing",), log),
        (tasks.die, (once, 1), log),  # killed once: tried again
        (tasks.crash, (), log),
        (tasks.die, (twice, 9), log),  # killed whenever it is tried
        (tasks.note, (notes, "last"), log),
    ]
    ends = {end.task: end for end in work_off(todo, 1)}
    assert sorted(ends) == list(range(6))
    assert ends[0].error == ends[5].error == ends[2].error == ""
    assert ends[1].error == "no such thing" and not ends[1].died
    assert ends[3].error == "ZeroDivisionError: a bug"
    assert ends[4].error == "the process of this run was killed by signal 9" and ends[4].died
    assert len(twice.read_text().splitlines()) == 2
    words = [line.split()[0] for line in notes.read_text().splitlines()]
    assert words == ["first", "last"]
    assert "noting first" in log.read_text()  # what a task prints is in its log, and nowhere else


def test_tasks_run_beside_each_other(tmp_path: Path) -> None:
    todo: list[Task] = [(tasks.meet, (tmp_path, 2), tmp_path / "log.txt") for _ in range(2)]
    assert [end.error for end in work_off(todo, 2)] == ["", ""]
