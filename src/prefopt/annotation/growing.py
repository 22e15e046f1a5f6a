"""A JSONL that a builder makes chunk by chunk: stopped anywhere it goes on, and the file appears when it is whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from ..errors import PrefoptError
from ..files import write_atomically

Item = TypeVar("Item")
CHUNK = 64
"""Items that are made together: a run that was stopped ends with what one that was not would have."""


def grow(
    output: Path,
    job: dict[str, Any],
    items: Sequence[Item],
    make: Callable[[Sequence[Item]], list[dict[str, Any]]],
    *,
    title: str,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the rows that `make` gives for `items` into `output`, and what they were made from into OUTPUT.job.

    Returns the record. PrefoptError where `output` holds something else.
    """
    if output.suffix != ".jsonl":
        raise PrefoptError(f"output {output}: rows are written as .jsonl")
    note, part = output.with_name(output.name + ".job"), output.with_name(f".{output.name}.part")
    job = json.loads(json.dumps(job, default=str))
    known = json.loads(note.read_text()) if note.is_file() else None
    same = known is not None and known.get("made_from") == job
    if (output.exists() or part.exists()) and not same:
        raise PrefoptError(f"output {output} holds something else; nothing is overwritten: give a new file")
    if known is not None and output.exists():
        return known
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps({"made_from": job}, indent=1) + "\n")
    lengths = _whole(part)
    with tqdm(total=len(items), initial=min(len(lengths) * CHUNK, len(items)), desc=title, disable=not progress) as bar:
        for start in range(len(lengths) * CHUNK, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            rows = make(chunk)
            with part.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows, ensure_ascii=False, default=str) + "\n")
                file.flush()
                os.fsync(file.fileno())
            bar.update(len(chunk))
    made = [row for rows in _whole(part) for row in rows]
    if not made:
        raise PrefoptError(f"{output}: no row is left to write")
    half = output.with_name(f".{output.name}.{os.getpid()}")
    half.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    record = {"made_from": job, "rows": len(made)}
    write_atomically(note, json.dumps(record, indent=1) + "\n")
    os.replace(half, output)
    part.unlink(missing_ok=True)
    return record


def _whole(part: Path) -> list[list[dict[str, Any]]]:
    """The chunks that were written whole; what a crash left of another is cut off."""
    if not part.exists():
        return []
    with part.open("r+b") as file:
        lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        file.truncate(sum(map(len, lines)))
    return [json.loads(line) for line in lines]
