"""The batch that a method sees: responses, what models say about them, and what is known about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PrefoptError
from .scores import Scores, full_precision


@dataclass(frozen=True)
class Responses:
    """Responses to prompts, scored and annotated.

    A method *asks*, and every question passes one door, `_ask`: so a made-up batch learns what a method
    needs (`Method.needs`), and a missing answer names itself. Nothing carries gradient unless it was
    asked with `grad`; the policy always does.
    """

    scores: Mapping[str, Scores] = field(default_factory=dict)  # name -> [R, T]
    notes: Mapping[str, Tensor] = field(default_factory=dict)  # annotations, "pairs" [P, 2] and "group" [R] among them
    extras: Mapping[str, Responses] = field(default_factory=dict)  # auxiliary responses: gold, mismatched, prompt
    states: Mapping[str, Tensor] = field(default_factory=dict)  # what the method carries from step to step
    modules: Mapping[str, nn.Module] = field(default_factory=dict)  # parameters of the method
    statistics: Mapping[str, Tensor] = field(default_factory=dict)  # means over the whole optimiser step
    rows: Tensor | None = None  # a view: these rows only
    link: Callable[[Tensor], Tensor] | None = None  # another divergence: see compose.swap
    path: tuple[str, ...] = ()  # which wrappers we are inside of: keeps their states apart

    @classmethod
    def of(
        cls,
        policy_logps: Tensor | None = None,
        reference_logps: Tensor | None = None,
        mask: Tensor | None = None,
        pairs: Tensor | str | None = None,
        extras: Mapping[str, Responses] | None = None,
        **more: Tensor | None,
    ) -> Responses:
        """From plain tensors, without any model.

        policy_logps, reference_logps, NAME_logps: [R, T] log-probabilities per token (or [R], one number each).
        NAME_errors: [R] or [R, frames] squared errors of denoising; they count negatively.
        mask: [R, T], 0/1 or elements per position; all ones if left out.
        pairs: [P, 2] rows (chosen, rejected), or "halves": row i is preferred to row R/2 + i.
        Anything else is an annotation by its name.
        """
        given = {"policy": policy_logps, "reference": reference_logps}
        given |= {k.removesuffix("_logps"): v for k, v in more.items() if k.endswith("_logps")}
        given |= {k.removesuffix("_errors"): -v for k, v in more.items() if k.endswith("_errors") and v is not None}
        scores = {k: _scores(k, v, mask) for k, v in given.items() if v is not None}
        notes = {k: v for k, v in more.items() if not k.endswith(("_logps", "_errors")) and v is not None}
        if isinstance(pairs, str):
            if pairs != "halves" or not scores:
                raise PrefoptError(f"pairs = {pairs!r}: give [P, 2] row numbers, or 'halves' beside scores")
            first = next(iter(scores.values())).values
            if len(first) % 2:
                raise PrefoptError(f"pairs = 'halves' needs an even number of responses, there are {len(first)}")
            pairs = torch.arange(len(first), device=first.device).view(2, -1).T
        if pairs is not None:
            notes["pairs"] = pairs
        return cls(scores, notes, extras or {})

    replace = dataclasses.replace

    def _ask(self, kind: str, name: str, **spec: Any) -> Any:
        """The one door. None: the batch does not have it."""
        return getattr(self, kind).get(name)

    # ---- what models say

    def score(self, name: str, grad: bool = False) -> Scores:
        """What a model says per position. `grad`: the method differentiates through it."""
        s = self._ask("scores", name, grad=grad)
        if s is None:
            raise PrefoptError(
                f"needs scores '{name}'; the batch has {_list(self.scores)}. "
                f"Give `{name}_logps` (or `{name}_errors`), or the model that computes them"
            )
        s = s if grad else s.detach()
        return s if self.rows is None else s[self.rows]

    @property
    def policy(self) -> Scores:
        return self.score("policy", grad=True)

    @property
    def reference(self) -> Scores:
        return self.score("reference")

    @property
    def log_ratio(self) -> Scores:
        """log pi/pi_ref per position: the implicit reward before its beta."""
        return dataclasses.replace(self.policy - self.reference, link=self.link)

    # ---- what is known

    def note(
        self,
        name: str,
        shape: str,
        default: Callable[[], Tensor] | None = None,
        dtype: type | str | None = None,
        below: int | None = None,
        grad: bool = False,
    ) -> Tensor:
        """An annotation, a constant unless `grad`.

        shape: R, P, T are the batch's sizes, numbers are themselves, other letters are free: "R", "P 2", "R N".
        default: makes the value where the batch has none; without it the annotation is required.
        below: whole numbers 0 .. below-1 are expected (checked off the GPU: a check would wait for the device).
        """
        x = self._ask("notes", name, shape=shape, optional=default is not None, dtype=dtype, below=below, grad=grad)
        if x is None and default is not None:
            return default()
        if x is None:
            raise PrefoptError(
                f"needs the annotation '{name}' [{shape}]; the batch has {_list(self.notes)}. "
                f"Add a column '{name}', or map one to it with data.columns"
            )
        x = x if grad else x.detach()
        axes = shape.split()
        self._check_shape(name, x, axes)
        if dtype is bool and x.dtype != torch.bool:
            raise PrefoptError(f"annotation '{name}' must be true or false (torch.bool), it is {x.dtype}")
        if dtype == "row":
            below = self.count_rows()
        if below is not None and not x.is_cuda and x.numel() and (x.min() < 0 or x.max() >= below):
            found = f"{int(x.min())}..{int(x.max())}"
            raise PrefoptError(f"annotation '{name}' has values {found}, expected 0..{below - 1}")
        if self.rows is not None and "R" in axes:
            return x.index_select(axes.index("R"), self.rows)
        return x

    def _check_shape(self, name: str, x: Tensor, axes: list[str]) -> None:
        size = {"R": self.count_rows, "T": self._width, "P": self._count_pairs}
        want = [int(a) if a.isdigit() else size[a]() if a in size else None for a in axes]
        if x.dim() == len(axes) and all(w in (None, n) for w, n in zip(want, x.shape, strict=True)):
            return
        sizes = ", ".join(str(w or a) for w, a in zip(want, axes, strict=True))
        raise PrefoptError(f"annotation '{name}' has shape {list(x.shape)}, expected [{' '.join(axes)}] = [{sizes}]")

    def _count_pairs(self) -> int | None:
        return len(self.notes["pairs"]) if "pairs" in self.notes else None

    def _width(self) -> int:
        return self._first().shape[1]

    def count_rows(self) -> int:
        return len(self._first())

    def _first(self) -> Tensor:
        if not self.scores:
            raise PrefoptError("the batch has no scores: give policy_logps [responses, positions]")
        return next(iter(self.scores.values())).values

    def extra(self, name: str, grad: bool = True) -> Responses:
        """Auxiliary responses: scored, kept out of comparison and metrics."""
        x = self._ask("extras", name, grad=grad)
        if x is None:
            raise PrefoptError(f"needs the extra responses '{name}'; the batch has {_list(self.extras)}")
        return x

    # ---- what the method owns, and what only the whole step knows

    def state(self, name: str, start: Callable[[], Tensor]) -> Tensor:
        """A tensor carried from step to step (and in checkpoints); a Loss.updates entry of this name advances it."""
        x = self._ask("states", self.inside(name), start=start)
        return start() if x is None else x

    def module(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """Parameters of the method, trained beside the policy and dropped when the model is saved."""
        x = self._ask("modules", self.inside(name), make=make)
        if x is None:
            raise PrefoptError(f"parameters '{name}' do not exist yet: responses = method.init(responses) makes them")
        return x

    def step_mean(self, name: str, values: Tensor) -> Tensor:
        """Mean of values [R] over all responses of the optimiser step (micro-batches, processes), a constant."""
        x = self._ask("statistics", self.inside(name), values=values.detach())
        return values.detach().mean() if x is None else x

    def inside(self, name: str) -> str:
        """The name under which the innermost method keeps what it owns: unique even where a method wraps itself."""
        return "/".join((*self.path[1:], name))

    # ---- who is compared with whom

    def pairs(self) -> tuple[Responses, Responses]:
        """Two views with one row per pair: the chosen, the rejected. Read everything from them as in the paper."""
        p = self.note("pairs", "P 2", dtype="row")
        return self.replace(rows=p[:, 0]), self.replace(rows=p[:, 1])

    def sides(self) -> tuple[Responses, Responses]:
        """Two views, desirable and undesirable: of the pairs, or of unpaired rows with a `label` (counts may differ)."""
        if self._has_pairs(instead="label"):
            return self.pairs()
        good = self.note("label", "R", dtype=bool)
        return self.replace(rows=good.nonzero()[:, 0]), self.replace(rows=(~good).nonzero()[:, 0])

    def chosen(self) -> Responses:
        """What is to be imitated: the better side of every pair, or all rows where there are no pairs."""
        return self.pairs()[0] if self._has_pairs(instead="demonstrations") else self

    def _has_pairs(self, instead: str) -> bool:
        return self._ask("notes", "pairs", shape="P 2", dtype="row", below=None, instead=instead) is not None

    def swapped(self) -> Responses:
        """The same responses with every label turned round."""
        return self.replace(notes={**self.notes, "pairs": self.note("pairs", "P 2", dtype="row").flip(1)})

    @property
    def group(self) -> Tensor:
        """[R] which prompt each response answers."""
        return self.note("group", "R", dtype="group")

    def same_group(self) -> Tensor:
        """[R, R] true where two responses answer one prompt."""
        return self.group[:, None] == self.group[None]

    def beats(self, value: Tensor) -> Tensor:
        """[R, R] true where i and j answer one prompt and value_i > value_j. Lists may be ragged; no device sync."""
        return self.same_group() & (value[:, None] > value[None])

    def rank(self, value: Tensor) -> Tensor:
        """[R] 1 = largest of its list; ties: lower row first."""
        n = torch.arange(len(value), device=value.device)
        ahead = (value[None] > value[:, None]) | ((value[None] == value[:, None]) & (n[None] < n[:, None]))
        return 1 + (self.same_group() & ahead).sum(-1)


def _scores(name: str, values: Tensor, mask: Tensor | None) -> Scores:
    if values.dim() not in (1, 2):
        raise PrefoptError(
            f"scores '{name}' have shape {list(values.shape)}: give [responses, positions] or [responses]"
        )
    values = full_precision(values if values.dim() == 2 else values[:, None])
    count = torch.ones_like(values) if mask is None else mask.to(values.dtype)
    if count.shape != values.shape:
        raise PrefoptError(
            f"scores '{name}' are {list(values.shape)}, the mask is {list(count.shape)}: both are [responses, positions]"
        )
    empty = (count.sum(-1) == 0).nonzero()
    if len(empty):
        raise PrefoptError(f"scores '{name}': response {int(empty[0])} has no position (empty after truncation?)")
    return Scores(values, count)


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
