"""What the library offers, as plain data: the answer of `prefopt methods --json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import methods as package
from . import recipes
from .errors import PrefoptError
from .objectives.compose import takes
from .objectives.hyper import describe
from .objectives.method import METHODS, Family, Method, family
from .objectives.taxonomy import Leaves, check_tags, matches, modality_of, needs_of, place, resolve


def methods(name: str | None = None, tags: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One record a method or recipe, sorted by name; or only the one called `name` (PrefoptError if there is none).

    tags: only those that carry all of them (taxonomy.VOCABULARY; PrefoptError if one is unknown).
    """
    for tag in tags:
        resolve(tag)
    package.load_all()
    known = recipes.load_all()
    for shared in sorted(known.keys() & METHODS.keys()):
        raise PrefoptError(f"'{shared}' is the name of a method ({METHODS[shared].module}) and of a recipe")
    if name is not None:
        return [_recipe(name)] if name in known else [_method(family(name)) | {"parts": takes(family(name)())}]
    found = [_method(METHODS[n]) for n in sorted(METHODS)] + [_recipe(n) for n in sorted(known)]
    return [m for m in found if matches(m["place"], tags)]


def _method(f: Family) -> dict[str, Any]:
    needs = f().needs()
    where = modality_of(needs, f.family)
    return {
        "name": f.name,
        "kind": "method",
        "family": f.family,
        "paper": f.paper,
        "description": f.__doc__ or "",
        "beta": f.beta,
        "needs": sorted(needs),
        "place": place(f.tags, needs_of(needs), where, f.surveyed, f.name),
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
        "place": _place_of_recipe(found.family),
        "hyperparameters": found.hyperparameters(),
    }


def _place_of_recipe(f: Family) -> dict[str, Leaves]:
    """Needs are those of the methods that it trains by default, and those that its tags name."""
    tagged = check_tags(f.tags, f.name, recipe=True)
    questions = [m.needs() for m in f.defaults.values() if isinstance(m, Method)]
    needs = {leaf for d, leaf in tagged if d == "needs"}.union(*map(needs_of, questions))
    tags = [f"{d}.{leaf}" for d, leaf in tagged if d != "needs"]
    return place(tags, needs, ["lm"], f.surveyed, f.name)
