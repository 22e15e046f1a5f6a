"""Encoded examples on disk: a `datasets` folder, memory-mapped, written in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefopt.data.encode import Encoded
from prefopt.data.example import ENUMERATED

_CHUNK = 512
_NOTE = "note:"
_IDS = pa.list_(pa.int32())


def note_type(name: str, nested: bool = False) -> pa.DataType:
    """How an entry of a note is stored."""
    if name == "label":
        return pa.bool_()
    if name in ENUMERATED:
        return pa.int64()
    if name in ("step_index", "graded_valid"):
        return pa.list_(pa.int64())
    return pa.list_(pa.float64()) if nested or name == "step_score" else pa.float64()


def schema(notes: dict[str, pa.DataType], graded: bool = False) -> pa.Schema:
    """Columns of a prepared set with these notes, and with graded versions."""
    fixed = {
        "prompt_ids": _IDS,
        "response_ids": pa.list_(_IDS),
        "response_mask": pa.list_(pa.list_(pa.int8())),
        "pairs": pa.list_(_IDS),
        "gold_ids": _IDS,
        "gold_mask": pa.list_(pa.int8()),
        "index": pa.int64(),
        "file": pa.string(),
        "row": pa.int64(),
        "tokens": pa.int64(),
    }
    if graded:
        fixed |= {"graded_ids": pa.list_(pa.list_(_IDS)), "graded_mask": pa.list_(pa.list_(pa.list_(pa.int8())))}
    return pa.schema(list((fixed | {_NOTE + n: pa.list_(t) for n, t in notes.items()}).items()))


class Writer:
    """Takes encoded examples and leaves a `datasets` folder; holds a few hundred of them at a time."""

    def __init__(self, folder: Path, notes: dict[str, pa.DataType], graded: bool = False):
        self.folder, self.notes, self.schema = folder, notes, schema(notes, graded)
        folder.mkdir(parents=True)
        self.raw = folder / "raw.arrow"
        self.stream = pa.ipc.new_stream(str(self.raw), self.schema)
        self.waiting: list[dict[str, Any]] = []
        self.count = 0

    def add(self, example: Encoded) -> None:
        example.index = self.count
        self.count += 1
        row = asdict(example) | {"tokens": example.tokens}
        notes = row.pop("notes")
        row.update({_NOTE + name: notes.get(name) for name in self.notes})
        self.waiting.append(row)
        if len(self.waiting) == _CHUNK:
            self._flush()

    def _flush(self) -> None:
        self.stream.write_table(pa.Table.from_pylist(self.waiting, schema=self.schema))
        self.waiting = []

    def close(self, fingerprint: str) -> None:
        """Turns what was written into the folder."""
        import datasets

        if self.waiting:
            self._flush()
        self.stream.close()
        if self.count:
            data = datasets.Dataset.from_file(str(self.raw))
            data._fingerprint = fingerprint
            with _quiet():
                data.save_to_disk(str(self.folder / "set"))
            del data
        self.raw.unlink()


class _quiet:
    """Switches the library's own progress bars off: prefopt shows one for the whole job."""

    def __enter__(self) -> None:
        import datasets

        self.were_on = datasets.utils.logging.is_progress_bar_enabled()
        datasets.disable_progress_bars()

    def __exit__(self, *_: Any) -> None:
        import datasets

        if self.were_on:
            datasets.enable_progress_bars()


class EncodedDataset:
    """Encoded examples by position; `.tokens` is the size of each tree, `.fingerprint` names the content."""

    def __init__(self, data: Any, fingerprint: str):
        self.data, self.fingerprint = data, fingerprint
        self.tokens = np.asarray(data.data.column("tokens"), dtype=np.int64)
        self._notes = [c for c in data.column_names if c.startswith(_NOTE)]

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> EncodedDataset:
        """Opens a folder that a `Writer` left, memory-mapped."""
        import datasets

        return cls(datasets.load_from_disk(str(folder / "set")), fingerprint)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Encoded:
        return self._made(self.data[int(i)])

    def __getitems__(self, indices: Sequence[int]) -> list[Encoded]:
        """Several at once, as PyTorch's loaders ask where they can: one look-up instead of many."""
        columns = self.data[[int(i) for i in indices]]
        return [self._made(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]

    def _made(self, row: dict[str, Any]) -> Encoded:
        row.pop("tokens")
        notes = {c.removeprefix(_NOTE): v for c in self._notes if (v := row.pop(c)) is not None}
        return Encoded(**row, notes=notes)


def enumerate_names(names: Iterable[str], known: Sequence[str] = ()) -> list[str]:
    """Names in a stable order, whole numbers by value; those that are `known` keep their places."""
    new = set(names) - set(known)
    return [*known, *sorted(new, key=lambda n: (0, int(n), n) if n.lstrip("-").isdigit() else (1, 0, n))]
