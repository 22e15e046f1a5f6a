"""Where one seed of a reproduction works: named steps, each done once, however often the reproduction is started."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..errors import PrefoptError
from ..files import write_atomically

log = logging.getLogger("prefopt")


class Event(NamedTuple):
    """A step begins, or has ended if the seconds that it took are given."""

    seed: int
    step: Path
    seconds: float | None = None
    cpu_seconds: float = 0.0


class Listener(Protocol):
    """Whoever is told of a bench's steps."""

    def hear(self, event: Event) -> None: ...


@dataclass
class Progress:
    """Steps of all seeds, the time they took (also in earlier starts), and what is left to expect.

    steps: of all `seeds` together; jobs: how many seeds run side by side.
    """

    slug: str
    steps: int
    shown: bool = True
    seeds: int = 1
    jobs: int = 1
    begun: set[Path] = field(default_factory=set)
    ended: dict[Path, Event] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return len(self.ended)

    @property
    def seconds(self) -> float:
        return sum(event.seconds or 0.0 for event in self.ended.values())

    @property
    def cpu_seconds(self) -> float:
        return sum(event.cpu_seconds for event in self.ended.values())

    def hear(self, event: Event) -> None:
        """Count the step, and tell one that begins. One that is heard of again, of a process that was killed, counts
        once."""
        if event.seconds is not None:
            self.begun.add(event.step)
            self.ended[event.step] = event
        elif event.step not in self.begun:
            self.begun.add(event.step)
            self._tell(event)

    def _tell(self, event: Event) -> None:
        if not self.shown:
            return
        left = f", about {self.minutes_left:.0f} min left" if self.done else ""
        what = f"seed {event.seed}: {event.step.stem}"
        log.info("%s: step %d of %d, %s%s", self.slug, len(self.begun), self.steps, what, left)

    @property
    def minutes_left(self) -> float:
        """The steps that are left, at the mean time of one: shared by all jobs, but those of a seed are one job's."""
        done = Counter(event.seed for event in self.ended.values())
        slowest = min(done.values()) if len(done) == self.seeds else 0
        left = max((self.steps - self.done) / self.jobs, self.steps / self.seeds - slowest)
        return left * self.seconds / self.done / 60


@dataclass(frozen=True)
class Bench:
    """One seed's folder and its steps."""

    seed: int
    folder: Path
    progress: Listener

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON answer of `compute`, from the folder if this step was finished before."""
        path = self.folder / f"{name}.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError:
            raise PrefoptError(f"{path} is damaged; remove it, and the step is done again") from None
        if kept is None:
            self.progress.hear(Event(self.seed, path))
            begun, cpu = time.monotonic(), time.process_time()
            answer = compute()
            spent = {"seconds": time.monotonic() - begun, "cpu_seconds": time.process_time() - cpu}
            kept = {name: round(value, 2) for name, value in spent.items()} | {"answer": answer}
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(kept, allow_nan=False, indent=1) + "\n")
        self.progress.hear(Event(self.seed, path, kept["seconds"], kept["cpu_seconds"]))
        return kept["answer"]

    def train(self, name: str, content: dict[str, Any]) -> Path:
        """The folder of an ordinary run with this configuration (less `output`); a run that was stopped goes on."""
        from ..config import make
        from ..training.run import train

        output = self.folder / "runs" / name
        output.parent.mkdir(parents=True, exist_ok=True)
        return train(make({**content, "output": str(output)})).folder
