"""Where prefopt keeps what it can make again, and how a file is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(part: str) -> Path:
    """$PREFOPT_CACHE/part, or ~/.cache/prefopt/part."""
    home = os.environ.get("PREFOPT_CACHE")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "prefopt") / part


def write_atomically(path: Path, text: str | bytes) -> None:
    """The whole file or the old one, whenever the process dies."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(text.encode() if isinstance(text, str) else text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
