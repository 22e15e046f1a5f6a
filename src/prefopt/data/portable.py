"""Rows written into a file elsewhere: the pictures that they name or hold must be found from there too."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.data.images import IMAGE_SUFFIXES


def portable(value: Any, base: Path, folder: Path) -> Any:
    """`value` of a row whose paths start from `base`, for a JSONL in `folder`: paths of pictures made relative to it,
    bytes as data: URLs. Anything else stays."""
    if isinstance(value, (bytes, bytearray)):
        return f"data:image/*;base64,{base64.b64encode(value).decode()}"
    if isinstance(value, Mapping):
        if value.get("bytes") is not None and set(value) <= {"bytes", "path"}:
            return portable(value["bytes"], base, folder)
        return {k: portable(v, base, folder) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(v, base, folder) for v in value]
    if isinstance(value, (str, Path)) and _is_file(str(value), base):
        return os.path.relpath(base / Path(value).expanduser(), folder)
    return value


def _is_file(text: str, base: Path) -> bool:
    named = len(text) < 1024 and "\n" not in text and Path(text).suffix.lower() in IMAGE_SUFFIXES
    return named and (base / Path(text).expanduser()).is_file()
