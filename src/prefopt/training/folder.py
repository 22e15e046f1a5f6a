"""A run's output folder: who it belongs to, whether it is unfinished, and what it records."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from ..config import RunConfig, dump
from ..errors import PrefoptError
from ..files import write_atomically

State = Literal["new", "unfinished", "finished"]
LIBRARIES = ("prefopt", "torch", "transformers", "accelerate", "peft", "datasets", "diffusers", "numpy")
_HALF = re.compile(r"^\.(config\.yaml|run\.json|metrics\.jsonl)\.\d+$")  # what a kill inside write_atomically leaves
# what may change between the two halves of a run without making it another run
FREE_KEYS = {"output", "train.report_to", "train.logging_steps", "train.save_total_limit", "train.disable_tqdm"}


class RunFolder:
    """`config.yaml`, `run.json` and everything that training writes, for one configuration only."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self._lock = FileLock(str(self.path) + ".lock")
        self._made: list[Path] = []  # folders that were not there before, innermost first

    @property
    def record(self) -> dict[str, Any]:
        """What run.json says; empty if there is none."""
        try:
            content = json.loads((self.path / "run.json").read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise PrefoptError(f"{self.path / 'run.json'} is damaged; give another output folder, or remove it")
        return content

    def claim(self, config: RunConfig) -> State:
        """Check that this folder may be used, and keep other runs out of it (the run's main process asks).

        Raises PrefoptError if it holds another run or other files, cannot be written, or is in use.
        """
        state = self._state(config)
        try:
            self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise PrefoptError(f"output {self.path}: another process is training into it") from None
        except OSError as e:
            raise PrefoptError(f"output {self.path} cannot be written: {e.strerror or e}") from None
        return state

    def release(self) -> None:
        """Let others in. Folders that were made for a run which never began are taken away again."""
        if not self._lock.is_locked:
            return
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for folder in self._made:
                folder.rmdir()

    def _state(self, config: RunConfig) -> State:
        if self.path.exists() and not self.path.is_dir():
            raise PrefoptError(f"output {self.path} is a file; give a folder")
        names = sorted(p.name for p in self.path.iterdir() if not _HALF.match(p.name)) if self.path.exists() else []
        if not names:
            return "new"
        if not (self.path / "config.yaml").exists():
            raise PrefoptError(
                f"output {self.path} holds other files ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) "
                "and no run of prefopt; nothing is overwritten: give a new folder"
            )
        differing = differences(self._config(), yaml.safe_load(dump(config)))
        if differing:
            shown = "; ".join(f"{k}: {a!r} there, {b!r} now" for k, (a, b) in list(differing.items())[:4])
            raise PrefoptError(
                f"output {self.path} holds a run of another configuration ({shown}). Nothing is overwritten: give a new "
                "folder, or the configuration that it was started with"
            )
        return "finished" if self.record.get("status") == "finished" else "unfinished"

    def _config(self) -> dict[str, Any]:
        try:
            content = yaml.safe_load((self.path / "config.yaml").read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            content = None
        if not isinstance(content, dict):
            raise PrefoptError(f"{self.path / 'config.yaml'} is damaged; give another output folder, or remove it")
        return content

    def start(self, config: RunConfig, record: Mapping[str, Any]) -> None:
        """Write the effective configuration and the beginning of the record."""
        for half in self.path.iterdir():
            if _HALF.match(half.name):
                half.unlink()
        write_atomically(self.path / "config.yaml", dump(config))
        started = self.record.get("started", _now())
        self.update(status="running", started=started, versions=versions(), **record)

    def update(self, **fields: Any) -> None:
        merged = self.record | fields
        write_atomically(self.path / "run.json", json.dumps(merged, indent=2, default=str) + "\n")

    def finish(self, **fields: Any) -> None:
        """The last thing written: without it the run goes on when it is started again."""
        self.update(status="finished", finished=_now(), **fields)

    def check_space(self, needed: int) -> None:
        """`needed`: bytes that the run will write at most."""
        place = self.path
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if free < needed:
            raise PrefoptError(
                f"output {self.path}: the run may write {needed / 2**20:,.0f} MiB and the disk has {free / 2**20:,.0f} MiB "
                "free. Make room, lower train.save_total_limit, or give a folder on another disk"
            )


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, as (old, new)."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new or prefix in FREE_KEYS else {prefix: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*old, *(k for k in new if k not in old)]:
        found |= differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
