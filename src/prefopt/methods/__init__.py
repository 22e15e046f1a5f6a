"""One file per method, in folders by family. Adding a file here is all it takes; `load_all` finds it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from pathlib import Path

from ..errors import PrefoptError
from ..objectives.method import METHODS, Family


@functools.cache
def load_all() -> None:
    """Import every file below this folder, and the recipes', which may end in a method of their own."""
    from .. import recipes

    for package in (__import__(__name__, fromlist=["*"]), recipes):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(found.name)


def load_file(path: Path) -> Family:
    """The one method that a Python file outside the package defines (see CONTRIBUTING.md)."""
    load_all()
    if not path.is_file():
        raise PrefoptError(f"no file {path}: give a method's name, or the path of a Python file that defines one")
    before = dict(METHODS)
    spec = importlib.util.spec_from_file_location(f"prefopt_own.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except PrefoptError:
        raise
    except Exception as e:
        raise PrefoptError(f"{path} does not import: {type(e).__name__}: {e}") from e
    own = [f for f in METHODS.values() if before.get(f.name) is not f]
    if len(own) != 1:
        raise PrefoptError(f"{path} defines {len(own)} methods; it needs exactly one function under @method(...)")
    return own[0]
