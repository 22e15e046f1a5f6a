"""Papers that need several steps: plain functions over the same building blocks, one file each.

A recipe module defines `NAME`, `PAPER`, `run(config, ...)` and is found by its file.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType


@functools.cache
def load_all() -> dict[str, ModuleType]:
    """Recipe name -> its module."""
    found = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return {m.NAME: m for m in found if hasattr(m, "NAME")}


def names() -> list[str]:
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__))
