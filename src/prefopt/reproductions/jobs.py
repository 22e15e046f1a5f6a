"""The seeds of a reproduction beside each other, each in a process of its own."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import PrefoptError
from ..studies import pool
from .bench import Bench, Event, Progress
from .claim import Reproduction


class Relay:
    """Tells the steps of a worker process to the one that started it."""

    def hear(self, event: Event) -> None:
        pool.say(event)


def side_by_side(reproduction: Reproduction, benches: Sequence[Bench], shown: Progress) -> None:
    """Do the steps of all seeds, `shown.jobs` seeds at a time: whoever runs them again finds every step finished.

    What a seed prints goes into log.txt of its folder. The first seed that fails stops the others, whose finished steps
    stay. Raises PrefoptError with the seed's number.
    """
    tasks: list[pool.Task] = [
        (one_seed, (reproduction.run, replace(bench, progress=Relay())), bench.folder / "log.txt") for bench in benches
    ]
    with contextlib.closing(pool.work_off(tasks, shown.jobs, shown.hear)) as ends:
        for end in ends:
            if end.error:
                bench = benches[end.task]
                raise PrefoptError(
                    f"{reproduction.slug}, seed {bench.seed}: {end.error} ({tasks[end.task][2]} has what it printed). "
                    "Finished steps are kept: started again, it goes on"
                )


def one_seed(run: Callable[[Bench], Any], bench: Bench) -> None:
    """In a worker: what failed by a fault of the program's is written into the log with its traceback."""
    try:
        run(bench)
    except PrefoptError:
        raise
    except Exception:
        traceback.print_exc()
        raise
