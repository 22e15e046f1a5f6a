"""Where prefopt keeps what it can make again, and how a file is written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def cache_folder(part: str) -> Path:
    """$PREFOPT_CACHE/part, or ~/.cache/prefopt/part."""
    home = os.environ.get("PREFOPT_CACHE")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "prefopt") / part


def read_jsonl(path: Path) -> list[Any]:
    """What the lines of a JSONL hold. (`str.splitlines` would also part a text at U+2028 and its like.)"""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """One line for each row, whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_atomically(path: Path, text: str | bytes) -> None:
    """The whole file or the old one, whenever the process dies."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(text.encode() if isinstance(text, str) else text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
