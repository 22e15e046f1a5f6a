"""A method: a pure function from Responses to a Loss, with validated hyperparameters."""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ..errors import PrefoptError
from .hyper import CountOf, OfData, validate
from .loss import Loss
from .responses import Responses
from .shape import KINDS, Part, Shape
from .taxonomy import check_tags

METHODS: dict[str, Family] = {}
Advice = Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Method:
    """A loss with its hyperparameters: immutable, callable on Responses; state and parameters are handed in."""

    name: str
    fn: Callable[..., Loss]
    hyper: Mapping[str, Any]
    key: str = field(default="", compare=False)  # the hyperparameter of a wrapper that holds this method
    parts: Mapping[str, Part] = field(default_factory=dict)  # link, length, token_weight, compare: see compose.py
    shape: Shape | None = field(default=None, compare=False)  # the same, as the batch reads it
    finish: Callable[[Loss, Responses], Loss] | None = field(default=None, compare=False)  # annotations applied

    def __call__(self, r: Responses) -> Loss:
        here = self.key or self.name
        try:
            seen = r.replace(path=(*r.path, here))
            loss = self.fn(seen if self.shape is None else seen.replace(shape=self.shape), **self.hyper)
            require(isinstance(loss, Loss) and bool(loss.terms), "must return a Loss with at least one term")
            if "compare" in self.parts:
                loss = loss.recompared(self.parts["compare"].apply)
            if self.finish is not None:
                loss = self.finish(loss, r)
        except PrefoptError as e:
            raise e if str(e).startswith(f"{self.name}:") else PrefoptError(f"{self.name}: {e}") from None
        # inside a wrapper, updates carry the names under which the states were asked (Responses.inside)
        if not r.path:
            return loss
        named = [{f"{here}/{k}": v for k, v in kept.items()} for kept in (loss.updates, loss.exports)]
        return loss.replace(updates=named[0], exports=named[1])

    def needs(self) -> dict[str, dict[str, Any]]:
        """What this method asks for with these hyperparameters, "kind:name" -> how: found by asking a probe."""
        return self._needs

    def turns(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The same turn by turn, in their order: of each network trained beside the policy, then the policy's own ""."""
        return self._turns

    @functools.cached_property
    def _needs(self) -> dict[str, dict[str, Any]]:
        from .probe import in_all

        return in_all(self._turns.values())

    @functools.cached_property
    def _turns(self) -> dict[str, dict[str, dict[str, Any]]]:
        from .probe import needs_by_turn

        return needs_by_turn(self)

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
        hyper = {k: v.record() if isinstance(v, Method) else v for k, v in self.hyper.items()}
        return {"name": self.name} | hyper | {k: p.record() for k, p in self.parts.items()}

    def advice(self, data: Mapping[str, Any]) -> list[str]:
        """What should worry about these hyperparameters on data with this record, of the method and what it wraps."""
        own = METHODS[self.name].advice if self.name in METHODS else None
        found = own(self.hyper, data) if own else None
        inner = [line for v in self.hyper.values() if isinstance(v, Method) for line in v.advice(data)]
        return ([f"{self.name}: {found}"] if found else []) + inner

    def counted(self, names: Mapping[str, int], ranges: Mapping[str, Sequence[float]] = MappingProxyType({})) -> Method:
        """Numbers that the data knows, filled in: how many names it has in an annotation, and what range of numbers.

        An unknown range leaves none as it is.
        """
        hints, hyper = METHODS[self.name].hints if self.name in METHODS else {}, dict(self.hyper)
        for key, value in self.hyper.items():
            rule = next(iter(getattr(hints.get(key), "__metadata__", ())), None)
            if isinstance(value, Method):
                hyper[key] = value.counted(names, ranges)
            elif isinstance(rule, CountOf) and value is None:
                hyper[key] = names.get(rule.note)
            elif isinstance(rule, OfData) and value is None and rule.note in ranges:
                hyper[key] = ranges[rule.note][int(rule.largest)]
        return replace(self, hyper=MappingProxyType(hyper))


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
        family: str = "",
        advice: Advice | None = None,
    ):
        self.advice = advice
        self.name, self.fn, self.paper, self.beta, self._family = name, fn, paper, beta, family
        self.tags, self.surveyed = tuple(tags), surveyed
        self.module, self.__doc__ = fn.__module__, inspect.getdoc(fn)
        self.hints = typing.get_type_hints(fn, include_extras=True)
        keywords = [p for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY]
        self.defaults = {p.name: p.default for p in keywords}

    def __call__(self, check: bool = True, **given: Any) -> Method:
        """Beside its hyperparameters, any method takes the parts of compose.py where they mean something.

        `check=False` skips the trial on made-up batches that refuses keys without effect.
        """
        chosen = {k: given.pop(k) for k in KINDS if k in given and k not in self.defaults}
        for key in given:
            if key not in self.defaults:
                close = difflib.get_close_matches(key, self.defaults, 1)
                hint = f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(self.defaults) or 'none'}"
                raise PrefoptError(f"{self.name} has no hyperparameter '{key}'{hint}")
        hyper = {k: self._value(k, v) for k, v in (self.defaults | given).items()}
        made = Method(self.name, self.fn, MappingProxyType(hyper))
        if chosen:
            from .compose import compose

            made = compose(made, chosen, check)
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
            try:
                value = get_method(**{**usual, **named})
            except PrefoptError as e:
                raise PrefoptError(f"{self.name}.{key} = {value!r}: {e}") from None
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
        """The folder that the method's file lies in (pairwise, listwise, ...), or what a recipe's file says."""
        return self._family or self.module.split(".")[-2] if "." in self.module else "own"


def method(
    name: str,
    paper: str = "",
    beta: str = "",
    tags: Sequence[str] = (),
    surveyed: bool = False,
    family: str = "",
    advice: Advice | None = None,
) -> Callable[[Callable[..., Loss]], Family]:
    """Register a loss. `paper`: arXiv id; `beta`: what its beta multiplies ("sum of log-ratios", ...).

    tags: its place in the survey's vocabulary (2503.11701) as leaves that differ from the defaults (pairwise, sentence,
    offline, single, static, reverse_kl); surveyed: the place is the survey's own, not assigned by us.
    family: of a method that stands in its recipe's file; else it is the folder's name.
    advice: (hyperparameters, the data's record) -> what should worry about them, said once before a run, or None.
    """

    def register(fn: Callable[..., Loss]) -> Family:
        if name in METHODS and METHODS[name].fn.__code__.co_filename != fn.__code__.co_filename:
            raise PrefoptError(f"two methods are called '{name}': {METHODS[name].module} and {fn.__module__}")
        check_tags(tags, name)
        METHODS[name] = Family(name, fn, paper, beta, tags, surveyed, family, advice)
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
    hint = f"; did you mean '{close[0]}'?" if close else "."
    raise PrefoptError(f"no method '{name}'{hint} There are {', '.join(sorted(METHODS))}")


def get_method(name: str, **hyper: Any) -> Method:
    """A method by name with its hyperparameters, e.g. `get_method("simpo", beta=2.5)(responses).scalar`."""
    return family(name)(**hyper)


def require(ok: bool, why: str) -> None:
    """A rule between hyperparameters; it bites when the method is made, because a probe is run then."""
    if not ok:
        raise PrefoptError(why)
