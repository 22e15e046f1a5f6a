"""Functions named in a configuration: "module:function" or "path/to/file.py:function"."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefopt.errors import PrefoptError


def load_function(spec: str, arguments: tuple[str, ...] | None, what: str) -> Callable[..., Any]:
    """The function that `spec` names, after a check that it takes `arguments` (positions count, not names).

    `what` ("reward", "judge") is for the messages. Raises PrefoptError if the module or file cannot be imported, the
    function is not there, or it cannot be called that way.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise PrefoptError(f'{what} {spec!r}: write "module:function" or "path/to/file.py:function"')
    module = _from_file(Path(place), spec, what) if place.endswith(".py") else _from_module(place, spec, what)
    function = getattr(module, name, None)
    if not callable(function):
        near = sorted(n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_"))
        raise PrefoptError(f"{what} {spec!r}: {place} has no function {name!r}; it has: {', '.join(near) or 'none'}")
    if arguments is not None:
        check_signature(function, arguments, f"{what} {spec!r}")
    return function


def check_signature(function: Callable[..., Any], arguments: tuple[str, ...], what: str) -> None:
    """Refuses a callable that cannot be called with len(arguments) positional arguments."""
    if accepts(function, len(arguments)):
        return
    raise PrefoptError(
        f"{what} has the signature {inspect.signature(function)}; it is called as f({', '.join(arguments)})"
    )


def accepts(function: Callable[..., Any], count: int) -> bool:
    """Whether a callable can be called with `count` positional arguments (True where Python cannot tell)."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def ask(function: Callable[..., Any], who: str, *arguments: Any) -> Any:
    """What a user's function answers. PrefoptError where it raises: it says whose fault it is, and no traceback does."""
    try:
        return function(*arguments)
    except PrefoptError:
        raise
    except Exception as error:
        raise PrefoptError(f"{who} failed with {type(error).__name__}: {error}") from error


def source_hash(function: Callable[..., Any]) -> str:
    """A hash of the function's file, so that cached answers of an edited judge are not used again."""
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file and Path(file).exists() else ""


def _from_module(name: str, spec: str, what: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            hint = "install it, or name a file: path/to/file.py:function"
            raise PrefoptError(f"{what} {spec!r}: there is no Python module {name!r}; {hint}") from error
        raise PrefoptError(f"{what} {spec!r}: the module needs {error.name!r}, which is not installed") from error
    except Exception as error:
        raise PrefoptError(
            f"{what} {spec!r}: importing {name!r} failed with {type(error).__name__}: {error}"
        ) from error


def _from_file(path: Path, spec: str, what: str) -> Any:
    path = path.expanduser()
    if not path.is_file():
        raise PrefoptError(f"{what} {spec!r}: there is no file {path}")
    name = f"prefopt_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickles inside the file look their module up by name
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PrefoptError(f"{what} {spec!r}: running {path} failed with {type(error).__name__}: {error}") from error
    return module
