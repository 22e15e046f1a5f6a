"""A method: a pure function from Responses to a Loss, with validated hyperparameters."""

from __future__ import annotations

import copy
import difflib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ..errors import PrefoptError
from .hyper import validate
from .loss import Loss
from .responses import Responses
from .taxonomy import check_tags

METHODS: dict[str, Family] = {}


@dataclass(frozen=True)
class Method:
    """A loss with its hyperparameters: immutable, callable on Responses; state and parameters are handed in."""

    name: str
    fn: Callable[..., Loss]
    hyper: Mapping[str, Any]
    key: str = field(default="", compare=False)  # the hyperparameter of a wrapper that holds this method

    def __call__(self, r: Responses) -> Loss:
        here = self.key or self.name
        try:
            loss = self.fn(r.replace(path=(*r.path, here)), **self.hyper)
            require(isinstance(loss, Loss) and bool(loss.terms), "must return a Loss with at least one term")
        except PrefoptError as e:
            raise e if str(e).startswith(f"{self.name}:") else PrefoptError(f"{self.name}: {e}") from None
        # inside a wrapper, updates carry the names under which the states were asked (Responses.inside)
        return loss.replace(updates={f"{here}/{k}": u for k, u in loss.updates.items()}) if r.path else loss

    def needs(self) -> dict[str, dict[str, Any]]:
        """What this method asks for with these hyperparameters, "kind:name" -> how: found by asking a probe."""
        from .probe import trace

        return trace(self).needs

    def missing(self, provided: set[str]) -> list[str]:
        """What it asks for beyond `provided` ("scores:reference", "notes:pairs", ...), in words."""
        from .probe import missing

        return missing(self, provided)

    def init(self, r: Responses) -> Responses:
        """`r` with the states and parameters that are missing (once, from the first batch, before the optimiser)."""
        from .probe import initialise

        return initialise(self, r)

    def record(self) -> dict[str, Any]:
        """Name and hyperparameters as plain data; `get_method(**record)` makes it again."""
        return {"name": self.name} | {k: v.record() if isinstance(v, Method) else v for k, v in self.hyper.items()}


class Family:
    """What `@method` makes of a function: call it with hyperparameters to get a Method."""

    def __init__(
        self,
        name: str,
        fn: Callable[..., Loss],
        paper: str,
        beta: str,
        tags: Sequence[str] = (),
        surveyed: bool = False,
    ):
        self.name, self.fn, self.paper, self.beta = name, fn, paper, beta
        self.tags, self.surveyed = tuple(tags), surveyed
        self.module, self.__doc__ = fn.__module__, inspect.getdoc(fn)
        self.hints = typing.get_type_hints(fn, include_extras=True)
        keywords = [p for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY]
        self.defaults = {p.name: p.default for p in keywords}

    def __call__(self, check: bool = True, **given: Any) -> Method:
        """`check=False` skips the trial on made-up batches that refuses keys without effect."""
        for key in given:
            if key not in self.defaults:
                close = difflib.get_close_matches(key, self.defaults, 1)
                hint = f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(self.defaults) or 'none'}"
                raise PrefoptError(f"{self.name} has no hyperparameter '{key}'{hint}")
        hyper = {k: self._value(k, v) for k, v in (self.defaults | given).items()}
        made = Method(self.name, self.fn, MappingProxyType(hyper))
        if check:
            from .probe import refuse_inert

            refuse_inert(self, made, [k for k in given if hyper[k] != self.defaults[k]])
        return made

    def _value(self, key: str, value: Any) -> Any:
        if self.hints[key] is not Method:
            return validate(self.name, key, value, self.hints[key])
        if isinstance(value, (str, dict)):
            named = {"name": value} if isinstance(value, str) else value
            usual = {"name": self.defaults[key].name} if isinstance(self.defaults[key], Method) else {}
            require("name" in {**usual, **named}, f"{self.name}.{key} = {value!r}: the method's name is missing")
            value = get_method(**{**usual, **named})
        if not isinstance(value, Method):
            raise PrefoptError(f"{self.name}.{key} = {value!r}: must be a method's name, or name and hyperparameters")
        return replace(value, key=key)

    def with_defaults(self, settings: Mapping[str, Any]) -> Family:
        """The same method with other defaults (an alias's)."""
        other = copy.copy(self)
        other.defaults = {**self.defaults, **settings}
        return other

    @property
    def family(self) -> str:
        """The folder that the method's file lies in: pairwise, listwise, ..."""
        return self.module.split(".")[-2] if "." in self.module else "own"


def method(
    name: str, paper: str = "", beta: str = "", tags: Sequence[str] = (), surveyed: bool = False
) -> Callable[[Callable[..., Loss]], Family]:
    """Register a loss. `paper`: arXiv id; `beta`: what its beta multiplies ("sum of log-ratios", ...).

    tags: its place in the survey's vocabulary (2503.11701) as leaves that differ from the defaults (pairwise, sentence,
    offline, single, static, reverse_kl); surveyed: the place is the survey's own, not assigned by us.
    """

    def register(fn: Callable[..., Loss]) -> Family:
        if name in METHODS and METHODS[name].fn.__code__.co_filename != fn.__code__.co_filename:
            raise PrefoptError(f"two methods are called '{name}': {METHODS[name].module} and {fn.__module__}")
        check_tags(tags, name)
        METHODS[name] = Family(name, fn, paper, beta, tags, surveyed)
        return METHODS[name]

    return register


def family(name: str) -> Family:
    """The registered method called `name`; of an alias, the method with the alias's settings as its defaults."""
    from .. import methods
    from .aliases import ALIASES, lookup

    methods.load_all()
    if name in METHODS:
        return METHODS[name]
    slug, settings = lookup(name) or (name, {})
    if slug in METHODS:
        return METHODS[slug].with_defaults(settings)
    close = difflib.get_close_matches(name, [*METHODS, *ALIASES], 1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise PrefoptError(f"no method '{name}'{hint} There are {', '.join(sorted(METHODS))}")


def get_method(name: str, **hyper: Any) -> Method:
    """A method by name with its hyperparameters, e.g. `get_method("simpo", beta=2.5)(responses).scalar`."""
    return family(name)(**hyper)


def require(ok: bool, why: str) -> None:
    """A rule between hyperparameters; it bites when the method is made, because a probe is run then."""
    if not ok:
        raise PrefoptError(why)
