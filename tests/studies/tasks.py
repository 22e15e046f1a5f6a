"""What the tests give to worker processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from prefopt.errors import PrefoptError


def note(path: Path, word: str) -> None:
    print(f"noting {word}")
    with path.open("a") as file:
        file.write(f"{word} {os.getpid()}\n")


def refuse(words: str) -> None:
    raise PrefoptError(words)


def die(path: Path, times: int) -> None:
    """The process is killed, the first `times` times."""
    note(path, "died")
    if len(path.read_text().splitlines()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    raise ZeroDivisionError("a bug")


def meet(folder: Path, number: int) -> None:
    """Ends only when `number` processes are in it at once."""
    (folder / f"here-{os.getpid()}").touch()
    end = time.monotonic() + 120
    while len(list(folder.glob("here-*"))) < number:
        if time.monotonic() > end:
            raise PrefoptError("nobody came")
        time.sleep(0.01)
