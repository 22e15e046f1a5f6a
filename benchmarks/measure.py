"""Time and memory of a training run, measured the same way for every tool."""

from __future__ import annotations

import itertools
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Wall time from the end of one optimiser step to the end of the next: data, forward, backward, update, logging."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.worked: list[float] = []  # processor time at the same moments

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends, self.worked = [time.perf_counter()], [time.process_time()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.worked.append(time.process_time())

    @property
    def seconds(self) -> list[float]:
        """Of every step but the first two, which warm up."""
        return between(self.ends)

    @property
    def processor(self) -> list[float]:
        """The same in processor time: of one thread, what a busy machine hardly changes."""
        return between(self.worked)


def between(ends: list[float]) -> list[float]:
    """From the end of one step to that of the next, without the first two."""
    return [b - a for a, b in itertools.pairwise(ends[2:])]


def reset_peak() -> int:
    """Start counting the peak anew; returns bytes in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return _status("VmRSS")


def peak() -> int:
    """Highest number of bytes in use since `reset_peak` (resident memory; on a GPU its allocator's)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def report(path: Path, **found: Any) -> None:
    path.write_text(json.dumps(found))
