"""The batch that a method sees: responses, what models say about them, and what is known about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import PrefoptError
from .scores import Scores, full_precision

if TYPE_CHECKING:
    from .shape import Shape


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
    features: Mapping[str, Tensor] = field(default_factory=dict)  # what a forward gives beside scores: hidden states
    turns: Mapping[str, bool] = field(default_factory=dict)  # the network beside the policy that is trained now
    rows: Tensor | None = None  # a view: these rows only
    shape: Shape | None = None  # another divergence, length rule or token weights: see compose.py
    public: Tensor | None = None  # [P] of a pair's view: positions of its shorter response
    path: tuple[str, ...] = ()  # which wrappers we are inside of: keeps their states apart

    @classmethod
    def of(
        cls,
        policy_logps: Tensor | None = None,
        reference_logps: Tensor | None = None,
        mask: Tensor | None = None,
        pairs: Tensor | Sequence[tuple[int, int]] | str | None = None,
        extras: Mapping[str, Responses] | None = None,
        turn: str = "",
        **more: Tensor | None,
    ) -> Responses:
        """From plain tensors, without any model.

        policy_logps, reference_logps, NAME_logps: [R, T] log-probabilities per token (or [R], one number each).
        NAME_errors: [R] or [R, frames] squared errors of denoising; they count negatively.
        mask: [R, T], 0/1 or elements per position; all ones if left out.
        pairs: [P, 2] rows (chosen, rejected), or "halves": row i is preferred to row R/2 + i.
        turn: the network whose turn it is, for methods that train one beside the policy.
        Anything else is an annotation, or a feature, by its name.
        Raises PrefoptError for shapes that do not fit, responses without a position, and scores that are NaN.
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
            notes["pairs"] = torch.as_tensor(pairs)
        return cls(scores, notes, extras or {}, turns={turn: True} if turn else {})

    replace = dataclasses.replace

    def _ask(self, kind: str, name: str, **spec: Any) -> Any:
        """The one door. None: the batch does not have it."""
        return getattr(self, kind, {}).get(name)

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
        return self._shaped(self.score("policy", grad=True), "policy")

    @property
    def reference(self) -> Scores:
        return self.score("reference")

    @property
    def log_ratio(self) -> Scores:
        """log pi/pi_ref per position: the implicit reward before its beta."""
        return self._shaped(self.score("policy", grad=True) - self.reference, "log_ratio")

    def given(self, part: str) -> bool:
        """Whether the configuration brings this part (link, length, token_weight), which the method may have to refuse."""
        return self.shape is not None and getattr(self.shape, part) is not None

    def _shaped(self, scores: Scores, what: str) -> Scores:
        return scores if self.shape is None else dataclasses.replace(scores, rule=self.shape.rule(self, scores, what))

    # ---- what is known

    def note(
        self,
        name: str,
        shape: str,
        default: Callable[[], Tensor] | None = None,
        dtype: type | str | None = None,
        below: int | None = None,
        grad: bool = False,
        within: tuple[float, float] | None = None,
    ) -> Tensor:
        """An annotation, a constant unless `grad`.

        shape: R, P, T are the batch's sizes, numbers are themselves, other letters are free: "R", "P 2", "R N".
        default: makes the value where the batch has none; without it the annotation is required.
        dtype: int, bool, or what the numbers mean: "row", "group", "step" (1-based, 0 is no step), "common step" (of a
        list whose responses have equally many: the data merges later ones into the last).
        below: whole numbers 0 .. below-1 are expected; within: numbers of this closed interval (these and steps are
        checked off the GPU: a check would wait for the device).
        """
        told = {"dtype": dtype, "below": below, "grad": grad} | ({"within": within} if within else {})
        x = self._ask("notes", name, shape=shape, optional=default is not None, **told)
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
        if within and not x.is_cuda and x.numel() and not (x.min() >= within[0] and x.max() <= within[1]):
            found = f"{float(x.min()):g} to {float(x.max()):g}"
            raise PrefoptError(f"annotation '{name}' goes from {found}, expected {within[0]:g} to {within[1]:g}")
        if dtype in ("step", "common step") and "T" in axes and not x.is_cuda:
            self._check_steps(name, x)
        return self._viewed(x, axes)

    def feature(
        self, name: str, shape: str, grad: bool = False, dtype: type | None = None, **how: str | int | tuple[Any, ...]
    ) -> Tensor:
        """What a forward gives beside scores, a constant unless `grad`: hidden states, activations.

        shape: as for a note; where it has R and T, positions without a score are zero. how: settings for whoever
        computes it, who alone reads them ("pool", "of", ...). Plain tensors are given by name, as notes are. What is
        not finite is refused (off the GPU: a check would wait for the device).
        """
        axes = shape.split()
        x = self._ask("features", name, shape=shape, grad=grad, dtype=dtype, how=how)
        if x is None and name in self.notes:  # plain tensors: there may be junk where nothing is scored
            x = self._only_scored(self.notes[name], axes)
        if x is None:
            raise PrefoptError(
                f"needs the feature '{name}' [{shape}]; the batch has {_list(self.features)}. "
                f"Give `{name}` as a tensor, or the model that computes it"
            )
        x = x if grad else x.detach()
        self._check_shape(name, x, axes, "feature")
        if dtype is None:
            x = full_precision(x)
            if not x.is_cuda and not torch.isfinite(x.detach()).all():
                raise PrefoptError(f"the feature '{name}' is not finite: the model that computed it is broken")
        return self._viewed(x, axes)

    def _only_scored(self, x: Tensor, axes: list[str]) -> Tensor:
        if not {"R", "T"} <= set(axes) or x.dim() != len(axes):
            return x
        scored = self._count() > 0
        if (x.shape[axes.index("R")], x.shape[axes.index("T")]) != scored.shape:
            return x  # the shape is refused next
        return torch.where(scored.view([n if a in "RT" else 1 for a, n in zip(axes, x.shape, strict=True)]), x, 0.0)

    def _viewed(self, x: Tensor, axes: list[str]) -> Tensor:
        return x if self.rows is None or "R" not in axes else x.index_select(axes.index("R"), self.rows)

    def _count(self) -> Tensor:
        """[R, T] count of the scores: the same for all of them."""
        self._first()
        return next(iter(self.scores.values())).count

    def _check_steps(self, name: str, x: Tensor) -> None:
        """Every response's steps count from 1 and never fall."""
        for row in x:
            steps = row[row > 0]
            if len(steps) and (steps[0] != 1 or (steps.diff() < 0).any()):
                raise PrefoptError(
                    f"annotation '{name}' holds the steps {steps.unique_consecutive().tolist()}: they count from 1 and "
                    "never fall within a response (0: no step)"
                )

    def _check_shape(self, name: str, x: Tensor, axes: list[str], kind: str = "annotation") -> None:
        size = {"R": self.count_rows, "T": self._width, "P": self._count_pairs}
        want = [int(a) if a.isdigit() else size[a]() if a in size else None for a in axes]
        if x.dim() == len(axes) and all(w in (None, n) for w, n in zip(want, x.shape, strict=True)):
            return
        sizes = ", ".join(str(w or a) for w, a in zip(want, axes, strict=True))
        raise PrefoptError(f"{kind} '{name}' has shape {list(x.shape)}, expected [{' '.join(axes)}] = [{sizes}]")

    def _count_pairs(self) -> int | None:
        return len(self.notes["pairs"]) if "pairs" in self.notes else None

    def _width(self) -> int:
        return self._first().shape[1]

    def count_rows(self) -> int:
        if not self.scores and "group" in self.notes:  # nothing is scored, only features are asked for
            return len(self.notes["group"])
        return len(self._first())

    def _first(self) -> Tensor:
        if not self.scores:
            raise PrefoptError("the batch has no scores: give policy_logps [responses, positions]")
        return next(iter(self.scores.values())).values

    def noised(self, name: str, **how: Any) -> Responses:
        """The same responses, scored on inputs noised in this way: "forward", "ddim_inversion", ... (scoring/noising).

        how: its settings, which it alone reads. Only what denoises obeys; plain numbers are taken as they are.
        """
        self._ask("noising", name, how=how)
        return self

    def generated(self, name: str, **how: Any) -> Responses:
        """Responses that the policy of the moment makes of the prompts in this way: "one_step" (scoring/one_step).

        how: its settings, which it alone reads. The data's own responses are not looked at; plain numbers are taken as
        they are.
        """
        self._ask("generation", name, how=how)
        return self

    def conditioned(self, name: str, **how: Any) -> Responses:
        """The same responses, denoised under a further condition of the data: "user", "captions" (scoring/conditioning).

        how: its settings. Only what denoises obeys; plain numbers are taken as they are.
        """
        self._ask("conditions", name, how=how)
        return self

    def extra(self, name: str, grad: bool = True) -> Responses:
        """Auxiliary responses: scored, kept out of comparison and metrics."""
        x = self._ask("extras", name, grad=grad)
        if x is None:
            raise PrefoptError(f"needs the extra responses '{name}'; the batch has {_list(self.extras)}")
        return x if self.shape is None else x.replace(shape=self.shape)

    # ---- what the method owns, and what only the whole step knows

    def state(self, name: str, start: Callable[[], Tensor], of: str = "") -> Tensor:
        """A tensor carried from step to step (and in checkpoints); a Loss.updates entry of this name advances it.

        of: it holds one number for each name of this annotation of the data; they are logged and reported by name.
        """
        x = self._ask("states", self.inside(name), start=start, of=of)
        return start() if x is None else x

    def module(
        self, name: str, make: Callable[[], nn.Module], weight_decay: float = 0.0, rate: float = 1.0
    ) -> nn.Module:
        """Parameters of the method, trained beside the policy and dropped when the model is saved.

        They are a group of the optimiser: weight_decay is its own, rate multiplies the learning rate.
        """
        x = self._ask("modules", self.inside(name), make=make, weight_decay=weight_decay, rate=rate)
        if x is None:
            raise PrefoptError(f"parameters '{name}' do not exist yet: responses = method.init(responses) makes them")
        return x

    def turn(self, name: str, steps: int, rate: float = 1.0, betas: tuple[float, ...] | None = None) -> bool:
        """Whether it is the turn of the network `name`, which is trained beside the policy: `steps` optimiser steps of
        its own before each step of the policy. In its turn nothing else moves, and in the policy's it does not.

        It is a group of the optimiser: rate multiplies the learning rate, betas (if given) are its own.
        """
        return bool(self._ask("turns", name, steps=steps, rate=rate, betas=betas))

    def step_mean(self, name: str, values: Tensor) -> Tensor:
        """Mean of values [R] over all responses of the optimiser step (micro-batches, processes), a constant."""
        x = self._ask("statistics", self.inside(name), values=values.detach())
        return values.detach().mean() if x is None else x

    def step_values(self, name: str, values: Tensor) -> Tensor:
        """All values [R] of the optimiser step (micro-batches, processes), from the smallest on, constants."""
        x = self._ask("statistics", self.inside(name), values=values.detach(), every=True)
        return values.detach().sort().values if x is None else x

    def inside(self, name: str) -> str:
        """The name under which the innermost method keeps what it owns: unique even where a method wraps itself."""
        return "/".join((*self.path[1:], name))

    # ---- who is compared with whom

    def pairs(self) -> tuple[Responses, Responses]:
        """Two views with one row per pair: the chosen, the rejected. Read everything from them as in the paper."""
        p = self.note("pairs", "P 2", dtype="row")
        w, l = self.replace(rows=p[:, 0]), self.replace(rows=p[:, 1])
        if self.shape is None:
            return w, l
        public = torch.minimum(w.score("policy").positions, l.score("policy").positions)
        return w.replace(public=public), l.replace(public=public)

    def sides(self) -> tuple[Responses, Responses]:
        """Two views, desirable and undesirable: of the pairs, or of unpaired rows with a `label` (counts may differ)."""
        if self._has_pairs(instead="label"):
            return self.pairs()
        good = self.note("label", "R", dtype=bool)
        return self.replace(rows=good.nonzero()[:, 0]), self.replace(rows=(~good).nonzero()[:, 0])

    def chosen(self) -> Responses:
        """What is to be imitated: the better side of every pair, or all rows where there are no pairs."""
        return self.pairs()[0] if self._has_pairs(instead="demonstrations") else self

    def paired(self, instead: str) -> bool:
        """Whether the responses come in pairs; if not, the data has `instead` (an annotation, or "demonstrations")."""
        return self._has_pairs(instead)

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

    def rank(self, value: Tensor, apart: Tensor | None = None) -> Tensor:
        """[R] 1 = largest of its list; ties: lower row first.

        apart [R]: values are told apart in steps of this size only (the largest of the list), counted from 0. Rewards
        that are 0 up to rounding, as where policy is reference, then rank by their rows and not by the rounding.
        """
        if apart is not None:
            step = torch.where(self.same_group(), apart, 0.0).amax(-1)
            value = (value / step.to(value.dtype)).round()
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
    found = Scores(values, count)
    broken = found.values.isnan().any(-1).nonzero()
    if len(broken):
        raise PrefoptError(f"scores '{name}': response {int(broken[0])} has one that is not a number (NaN)")
    return found


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
