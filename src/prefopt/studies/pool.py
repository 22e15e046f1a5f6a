"""Runs on worker processes: one that dies takes its run with it, and nothing else."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ..errors import PrefoptError

Task = tuple[Callable[..., None], tuple[Any, ...], Path]
"""A function of a module, its arguments, and the file that takes what it prints."""
ATTEMPTS = (
    2  # a process that was killed may have been in the way of another; one that is killed again is its run's fault
)

_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class End:
    """How a task ended: `error` is what it raised (PrefoptError's words), or how its process died."""

    task: int
    error: str = ""
    died: bool = False


@dataclass(frozen=True)
class Said:
    """What a task tells while it runs (`say`)."""

    what: Any


def say(what: Any) -> None:
    """From within a task: `what` (anything that pickles) to the `hear` of the process that started it."""
    _answers[-1].send(Said(what))


_answers: list[Connection] = []
"""In a worker: where its answers go."""


def work_off(tasks: Sequence[Task], jobs: int, hear: Callable[[Any], None] | None = None) -> Generator[End, None, None]:
    """Does all tasks on `jobs` processes and yields each end as it comes. Closing the iterator stops them.

    hear: gets what the tasks `say`, as it comes. A task whose process was killed is done again, so may say it twice.
    """
    waiting = [(i, ATTEMPTS) for i in reversed(range(len(tasks)))]
    busy: dict[Connection, tuple[_Worker, int, int]] = {}
    idle: list[_Worker] = []
    free = list(reversed(range(jobs)))
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                number, attempts = waiting.pop()
                worker = idle.pop() if idle else _Worker.begin(free.pop(), jobs)
                busy[worker.connection] = (worker, number, attempts)
                worker.give(tasks[number])
            for ready in wait(list(busy)):
                worker, number, attempts = busy.pop(ready)  # type: ignore[call-overload]
                try:
                    answer = worker.connection.recv()
                except (EOFError, OSError):
                    how = worker.death()
                    free.append(worker.number)
                    if attempts > 1:
                        waiting.append((number, attempts - 1))
                    else:
                        yield End(number, f"the process of this run {how}", died=True)
                else:
                    if isinstance(answer, Said):
                        busy[worker.connection] = (worker, number, attempts)
                        if hear is not None:
                            hear(answer.what)
                        continue
                    idle.append(worker)
                    yield End(number, answer)
    finally:
        for worker in idle:
            worker.connection.close()  # it ends by itself
        for worker, *_ in busy.values():
            worker.process.terminate()
        for worker in [*idle, *(w for w, *_ in busy.values())]:
            worker.gone()


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    number: int

    @classmethod
    def begin(cls, number: int, jobs: int) -> _Worker:
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(target=_serve, args=(theirs, number, jobs), daemon=False)
        process.start()
        theirs.close()  # so that its end is the end of the pipe
        return cls(process, ours, number)

    def give(self, task: Task) -> None:
        with contextlib.suppress(OSError):  # already dead: its silence is noticed where answers are read
            self.connection.send(task)

    def death(self) -> str:
        self.process.join(30)
        code = self.process.exitcode
        return f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"

    def gone(self) -> None:
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(connection: Connection, number: int, jobs: int) -> None:
    """A worker: does what it is given until the pipe, or the study's own process, ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study's own process hears it, and stops its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _own_device(number, jobs)
    _answers.append(connection)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("prefopt").setLevel(logging.INFO)
    while True:
        try:
            function, arguments, log = connection.recv()
        except EOFError:
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        error = ""
        with _printing_into(log):
            try:
                function(*arguments)
            except PrefoptError as e:
                error = str(e)
            except Exception as e:
                error = f"{type(e).__name__}: {e}"
        connection.send(error)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _own_device(number: int, jobs: int) -> None:
    """One accelerator for each worker in turn, and a share of the cores."""
    import torch

    if (count := torch.cuda.device_count()) > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = seen.split(",") if seen else [str(i) for i in range(count)]
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // jobs))


@contextlib.contextmanager
def _printing_into(log: Path) -> Iterator[None]:
    """Everything that this process prints, from libraries too, goes into the file."""
    kept = os.dup(1), os.dup(2)
    with log.open("a", encoding="utf-8") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, source in zip((1, 2), kept, strict=True):
                os.dup2(source, target)
                os.close(source)
