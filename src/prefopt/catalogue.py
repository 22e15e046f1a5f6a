"""What the library offers, as plain data: the answer of `prefopt methods --json`."""

from __future__ import annotations

from typing import Any

from . import methods as package
from . import recipes
from .objectives.hyper import describe
from .objectives.method import METHODS, Family, Method, family


def methods(name: str | None = None) -> list[dict[str, Any]]:
    """One record a method or recipe, sorted by name; or only the one called `name` (PrefoptError if there is none)."""
    package.load_all()
    known = recipes.load_all()
    if name is not None:
        return [_recipe(name)] if name in known else [_method(family(name))]
    return [_method(METHODS[n]) for n in sorted(METHODS)] + [_recipe(n) for n in sorted(known)]


def _method(f: Family) -> dict[str, Any]:
    return {
        "name": f.name,
        "kind": "method",
        "family": f.family,
        "paper": f.paper,
        "description": f.__doc__ or "",
        "beta": f.beta,
        "needs": sorted(f().needs()),
        "hyperparameters": [
            {"name": k, "default": v.record() if isinstance(v, Method) else v, "values": describe(f.hints[k])}
            for k, v in f.defaults.items()
        ],
    }


def _recipe(name: str) -> dict[str, Any]:
    found = recipes.load_all()[name]
    return {
        "name": name,
        "kind": "recipe",
        "family": "recipe",
        "paper": found.paper,
        "description": found.family.__doc__ or "",
        "beta": "",
        "needs": list(found.needs),
        "hyperparameters": found.hyperparameters(),
    }
