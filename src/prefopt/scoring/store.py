"""Per-token log-probabilities on disk, found by content: one pass serves every loss, beta, epoch, restart and sweep.

What a stored value depends on is in its key: weights, token ids, dtype and attention. 61,000 pairs of 540 tokens
take 132 MB. Sums are never stored: token-level, length-normalised and clamped losses share the same entries.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock

from ..errors import PrefoptError
from ..files import cache_folder

ASKED = "FROM logps WHERE key IN (SELECT value FROM json_each(?))"


def default_folder() -> Path:
    """$PREFOPT_CACHE/reference, or ~/.cache/prefopt/reference."""
    return cache_folder("reference")


class Store:
    """One sqlite file for each identity of a model. Safe against kill (a transaction is written whole or not at all)
    and against other processes (write-ahead log: readers never wait, writers wait for each other)."""

    def __init__(self, identity: str, folder: Path | None = None):
        self.path = (folder or default_folder()) / f"{identity}.sqlite"
        self._connection: sqlite3.Connection | None = None
        self._process = 0

    def get(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Key -> float32 values, for those keys that are there."""
        rows = self._open().execute(f"SELECT key, logps {ASKED}", [json.dumps(list(dict.fromkeys(keys)))])
        return {key: np.frombuffer(blob, dtype="<f4") for key, blob in rows}

    def missing(self, keys: Iterable[str]) -> set[str]:
        wanted = set(keys)
        return wanted - {key for (key,) in self._open().execute(f"SELECT key {ASKED}", [json.dumps(list(wanted))])}

    def put(self, values: Mapping[str, np.ndarray]) -> None:
        rows = [(key, np.ascontiguousarray(v, dtype="<f4").tobytes()) for key, v in values.items()]
        try:
            with self._open() as connection:
                connection.executemany("INSERT OR IGNORE INTO logps VALUES (?, ?)", rows)
        except sqlite3.OperationalError as e:
            raise PrefoptError(
                f"{self.path}: cannot write reference log-probs ({e}); set PREFOPT_CACHE to a folder with room"
            ) from e

    def filling(self) -> FileLock:
        """A lock: of several runs with one reference, one at a time computes what is missing."""
        return FileLock(self.path.with_suffix(".lock"))

    def __len__(self) -> int:
        return int(self._open().execute("SELECT count(*) FROM logps").fetchone()[0])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_connection": None}

    def _open(self) -> sqlite3.Connection:
        """A connection belongs to the process that made it: a forked worker opens its own."""
        if self._connection is None or self._process != os.getpid():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(
                    self.path.with_suffix(".opening"), poll_interval=0.01
                ):  # sqlite does not wait for a change of the journal's mode
                    connection = sqlite3.connect(self.path, timeout=120, check_same_thread=False)
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute("PRAGMA synchronous=NORMAL")
                    connection.execute(
                        "CREATE TABLE IF NOT EXISTS logps (key TEXT PRIMARY KEY, logps BLOB) WITHOUT ROWID"
                    )
            except (sqlite3.Error, OSError) as e:
                raise PrefoptError(
                    f"{self.path}: cannot be opened as a reference store ({e}); "
                    "delete it, or set PREFOPT_CACHE to another folder"
                ) from e
            self._connection, self._process = connection, os.getpid()
        return self._connection
