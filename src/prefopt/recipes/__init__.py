"""Papers that need several steps: one file each over the same building blocks (see steps.py for how one is written).

Adding a file here is all it takes; `load_all` finds it. A recipe's file may define the method that it ends in.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .steps import Recipe


@functools.cache
def load_all() -> dict[str, Recipe]:
    """Recipe name -> recipe."""
    for found in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{found.name}")
    from .steps import RECIPES

    return RECIPES
