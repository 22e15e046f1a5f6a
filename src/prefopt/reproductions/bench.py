"""Where one seed of a reproduction works: named steps, each done once, however often the reproduction is started."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PrefoptError
from ..files import write_atomically

log = logging.getLogger("prefopt")


@dataclass
class Progress:
    """Steps of all seeds, the time they took (also in earlier starts), and what is left to expect."""

    slug: str
    steps: int
    done: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    shown: bool = True

    def tell(self, what: str) -> None:
        if not self.shown:
            return
        left = f", about {self.seconds / self.done * (self.steps - self.done) / 60:.0f} min left" if self.done else ""
        log.info("%s: step %d of %d, %s%s", self.slug, self.done + 1, self.steps, what, left)


@dataclass(frozen=True)
class Bench:
    """One seed's folder and its steps."""

    seed: int
    folder: Path
    progress: Progress

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON answer of `compute`, from the folder if this step was finished before."""
        path = self.folder / f"{name}.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError:
            raise PrefoptError(f"{path} is damaged; remove it, and the step is done again") from None
        if kept is None:
            self.progress.tell(f"seed {self.seed}: {name}")
            begun, cpu = time.monotonic(), time.process_time()
            answer = compute()
            spent = {"seconds": time.monotonic() - begun, "cpu_seconds": time.process_time() - cpu}
            kept = {name: round(value, 2) for name, value in spent.items()} | {"answer": answer}
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(kept, allow_nan=False, indent=1) + "\n")
        self.progress.done += 1
        self.progress.seconds += kept["seconds"]
        self.progress.cpu_seconds += kept["cpu_seconds"]
        return kept["answer"]

    def train(self, name: str, content: dict[str, Any]) -> Path:
        """The folder of an ordinary run with this configuration (less `output`); a run that was stopped goes on."""
        from ..config import make
        from ..training.run import train

        output = self.folder / "runs" / name
        output.parent.mkdir(parents=True, exist_ok=True)
        return train(make({**content, "output": str(output)})).folder
