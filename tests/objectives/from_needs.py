"""Batches made from `Method.needs()` alone, and an optimiser step over them: every method is tested without its name.

A new method, annotation, feature or extra needs no new code here, as long as its annotations and features are of
examples' responses (R), pairs (P), positions (T), or of a fixed size.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from prefopt import Loss, Method, PrefoptError, Responses, Scores, annotated
from prefopt.methods import load_all
from prefopt.objectives.compose import ANNOTATIONS
from prefopt.objectives.method import METHODS, Family
from prefopt.objectives.scores import full_precision
from prefopt.training.engine import Plan, States, part, plan, responses

WIDTH, FREE = 6, 3


# ---- methods: all that are registered, each with every key changed once, and with annotations applied


def variants(f: Family) -> Iterator[Method]:
    """The method with its defaults, and with each choice, switch and term that is off by default changed alone."""
    yield f()
    for key, hint in f.hints.items():
        for value in _others(hint, f.defaults.get(key)) if key in f.defaults else []:
            try:
                yield f(**{key: value})
            except PrefoptError:
                continue


def _others(hint: Any, default: Any) -> list[Any]:
    hint = getattr(hint, "__origin__", hint) if isinstance(default, str) else hint  # what is annotated
    if typing.get_origin(hint) is Literal:
        return [v for v in typing.get_args(hint) if v != default]
    if hint is bool:
        return [not default]
    return [0.2] if default == 0.0 else []


def registered() -> dict[str, Method]:
    """Test id -> method, of everything in the registry."""
    load_all()
    return {described(m): m for f in METHODS.values() for m in variants(f)}


def with_annotations(methods: Mapping[str, Method]) -> dict[str, Method]:
    """Those that take an annotation of the data, with it."""
    found = {}
    for name, m in methods.items():
        for use in (list(ANNOTATIONS), ["weight"]):  # all of them, or where nothing is compared the weight
            made = annotated(m, use)
            try:
                made.needs()
            except PrefoptError:
                continue
            found[f"{name}+{'+'.join(use)}"] = made
            break
    return found


def described(m: Method) -> str:
    """name(key=value) of what differs from the defaults."""
    defaults = METHODS[m.name].defaults if m.name in METHODS else {}
    changed = {k: v for k, v in m.record().items() if k != "name" and v != defaults.get(k)}
    return m.name + (
        "(" + ",".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in changed.items()) + ")"
        if changed
        else ""
    )


# ---- data


@dataclass
class Example:
    """One prompt with its responses: what a scorer would say of them, and what is known. All scores and features of
    responses are leaves."""

    scores: dict[str, dict[str, Tensor]]  # row set -> name -> [k, T]
    mask: dict[str, Tensor]  # row set -> [k, T] bool
    notes: dict[str, tuple[str, Tensor]]  # name -> shape, values; pairs and group are local
    features: dict[str, tuple[str, Tensor]] = field(default_factory=dict)  # likewise

    def leaves(self) -> Iterator[tuple[str, Tensor]]:
        for row_set, named in self.scores.items():
            for name, x in named.items():
                yield f"{row_set}.{name}", x
        for name, (_, x) in self.features.items():
            if x.requires_grad:
                yield f"responses.{name}", x


@dataclass
class Made:
    """A collated batch (scoring.base.Batch), with its scores beside it."""

    notes: dict[str, Tensor]
    scores: dict[str, dict[str, Scores]]
    filler: bool = False
    features: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Made:
        return self

    def counts(self) -> dict[str, Tensor]:
        return {k: next(iter(v.values())).count for k, v in self.scores.items() if v}

    def told(self) -> dict[str, dict[str, Any]]:
        """What a scorer answers: scores of all row sets, features of the responses."""
        return self.scores | {"responses": self.scores["responses"] | self.features}


def examples(m: Method, n: int, seed: int = 0, sparse: bool = False, one_token: bool = False) -> list[Example]:
    """`n` examples that answer all that `m` needs; `sparse`: nothing optional, no pairs where it does without."""
    needs = m.needs()
    g = torch.Generator().manual_seed(seed)
    return [_example(needs, g, sparse, one_token) for _ in range(n)]


def _example(needs: Mapping[str, Any], g: Any, sparse: bool, one_token: bool) -> Example:
    def pick(high: int) -> int:
        return int(torch.randint(high, (1,), generator=g))

    k = 2 + pick(2)
    pairs = torch.tensor([[0, 1], [1, 0], [1, 2], [2, 0]])[(pick(2),) if k == 2 else (2, 3), :]
    made = Example({}, {}, {"group": ("R", torch.zeros(k, dtype=torch.long))})
    sets = {"responses": (needs, k)}
    paired = "notes:pairs" in needs and not (sparse and needs["notes:pairs"].get("instead"))
    for key, spec in needs.items():
        kind, name = key.split(":", 1)
        if kind == "extras":  # of each pair's prompt (prompt, gold), or of each response where nothing is paired
            sets[name] = (spec.get("asked", {}), len(pairs) if paired else k)
        left_out = (spec.get("optional") or spec.get("instead")) if sparse else spec.get("fallback")
        sizes = {"R": k, "P": len(pairs), "T": WIDTH}
        if kind == "notes" and name != "group" and not left_out:
            made.notes[name] = (spec["shape"], _note(spec, pairs, sizes, g))
        if kind == "features":
            made.features[name] = (spec["shape"], _note(spec, pairs, sizes, g))
    for row_set, (asked, rows) in sets.items():
        mask = torch.rand(rows, WIDTH, generator=g) < (0.0 if one_token else 0.6)
        mask[torch.arange(rows), torch.randint(WIDTH, (rows,), generator=g)] = True
        made.mask[row_set] = mask
        names = [key.removeprefix("scores:") for key in asked if key.startswith("scores:")]
        made.scores[row_set] = {
            name: (-3 * torch.rand(rows, WIDTH, generator=g, dtype=torch.float64)).requires_grad_() for name in names
        }
    for shape, x in made.features.values():
        if x.is_floating_point():
            x.sub_(0.5).mul_(where(made.mask["responses"], shape)).requires_grad_("R" in shape)
    return made


def where(mask: Tensor, shape: str) -> Tensor:
    """The mask [R, T] where a feature has these axes; it is zero where nothing is scored."""
    axes = shape.split()
    if not {"R", "T"} <= set(axes):
        return torch.ones(())
    return mask.view([mask.shape["RT".index(a)] if a in "RT" else 1 for a in axes])


def _note(spec: Mapping[str, Any], pairs: Tensor, sizes: Mapping[str, int], g: Any) -> Tensor:
    size = [int(a) if a.isdigit() else sizes.get(a, FREE) for a in spec["shape"].split()]
    dtype = spec.get("dtype")
    if dtype == "row":
        return pairs
    if dtype == "bool":
        return torch.rand(size, generator=g) < 0.5
    if dtype in ("step", "common step"):
        if len(size) == 1:
            return torch.randint(1, 3, size, generator=g)
        rises = torch.rand(size, generator=g) < 0.4
        return 1 + torch.cat([torch.zeros_like(rises[:, :1]), rises[:, 1:]], 1).cumsum(1)
    if dtype == "int":
        return torch.randint(spec.get("below", 3), size, generator=g)
    low, high = spec.get("within", (0.0, 1.0))
    low, high = max(low, min(high, 1.0) - 1), min(high, max(low, 0.0) + 1)  # of an unbounded interval, the near end
    return low + (high - low) * torch.rand(size, generator=g, dtype=torch.float64)


def collate(of: Sequence[Example], junk: float = torch.nan, dtype: torch.dtype = torch.float64) -> Made:
    """Examples side by side, junk under every mask; row numbers and groups made those of the batch."""
    notes: dict[str, list[Tensor]] = {}
    row = 0
    for n, e in enumerate(of):
        for name, (_, x) in e.notes.items():
            shift = row if name == "pairs" else n if name == "group" else 0
            notes.setdefault(name, []).append(x + shift if shift else x)
        row += len(e.mask["responses"])
    fixed = {name for e in of for name, (shape, _) in e.notes.items() if not {"R", "P"} & set(shape.split())}
    features: dict[str, list[Tensor]] = {}
    for e in of:
        for name, (_, x) in e.features.items():
            features.setdefault(name, []).append(x.to(dtype) if x.is_floating_point() else x)
    scores = {
        s: {name: _side_by_side([(e.scores[s][name], e.mask[s]) for e in of], junk, dtype) for name in of[0].scores[s]}
        for s in of[0].scores
    }
    one = {name for name, (shape, _) in of[0].features.items() if "R" not in shape.split()}
    return Made(
        {k: v[0] if k in fixed else torch.cat(v) for k, v in notes.items()},
        scores,
        features={k: v[0] if k in one else torch.cat(v) for k, v in features.items()},
    )


def _side_by_side(parts: Sequence[tuple[Tensor, Tensor]], junk: float, dtype: torch.dtype) -> Scores:
    values = torch.cat([torch.where(mask, x, junk) for x, mask in parts]).to(dtype)
    return Scores(values, torch.cat([mask for _, mask in parts]).to(dtype))


def seen(made: Made, **owned: Any) -> Responses:
    """The batch as a method sees it."""
    return responses(made, made.told(), owned.get("states", {}), owned.get("modules", {}), owned.get("statistics", {}))


# ---- a run


@dataclass
class Owner:
    """What a trainer keeps for a method."""

    method: Method
    needs: Mapping[str, Any]
    states: States = field(default_factory=States)
    modules: dict[str, torch.nn.Module] = field(default_factory=dict)

    @classmethod
    def of(cls, m: Method, first: Made) -> Owner:
        torch.manual_seed(0)
        r = m.init(seen(first))
        precision = full_precision(next(iter(first.scores["responses"].values())).values).dtype
        return cls(m, m.needs(), States(dict(r.states)), {k: v.to(precision) for k, v in r.modules.items()})

    def early(self, batch: Made) -> dict[str, dict[str, Scores]]:
        """What is scored before the first backward: extras that carry no gradient."""
        late = {k.removeprefix("extras:") for k, s in self.needs.items() if s.get("grad")} | {"responses"}
        return {k: v for k, v in batch.scores.items() if k not in late}

    def step(self, processes: Sequence[Sequence[Made]]) -> float:
        """One optimiser step, its micro-batches on one or several processes; gradients add up in the leaves."""
        plans = _Together(len(processes)).over(lambda i, reduce, gather: self._plan(processes[i], reduce, gather))
        loss = 0.0
        collected = [States(self.states.values) for _ in processes]
        for p, own in zip(plans, collected, strict=True):
            for batch, known, counts in p.ready:
                weight = 0.0 if batch.filler else 1.0
                scored = {**batch.told(), **known}
                r = responses(batch, scored, self.states.values, self.modules, p.statistics)
                answer = self.method(r)
                share = weight * part(self.method, answer, p.totals, counts)
                share.backward()
                loss += share.item()
                own.collect(answer.updates, weight)
        for name in {k for own in collected for k in own._pending}:
            pending = [own._pending[name] for own in collected if name in own._pending]
            sums, counts = (torch.stack([getattr(u, f) for u in pending]).sum(0) for f in ("sum", "count"))
            self.states.values[name] = pending[0].advance(self.states.values[name], sums, counts).detach()
        return loss

    def _plan(self, batches: Sequence[Made], reduce: Any, gather: Any) -> Plan:
        known = [(b, self.early(b)) for b in batches]
        shapes = {k: tuple(x.shape) for k, x in batches[0].features.items()}
        axes = {k.removeprefix("features:"): s["shape"].split() for k, s in self.needs.items() if "features:" in k}
        told = {k: tuple(a if a in "RT" else n for a, n in zip(axes[k], shapes[k], strict=True)) for k in axes}
        owned = (self.states.values, self.modules)
        return plan(self.method, self.needs, known, *owned, reduce, told, lambda b: _constant(b.told()), gather)


def _constant(told: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {s: {k: x.detach() for k, x in named.items()} for s, named in told.items()}


class _Together:
    """Processes that run one after the other: once to hear what each gives to all, once with what all have given."""

    def __init__(self, processes: int):
        self.processes = processes

    def over(self, run: Any) -> list[Any]:
        sums: list[Tensor] = []
        joined: list[list[Tensor]] = []  # process -> vectors in the order in which they are given

        for i in range(self.processes):
            joined.append([])
            run(i, lambda x: sums.append(x) or x, lambda x: joined[-1].append(x) or x)
        found = []
        for i in range(self.processes):
            vectors = iter([torch.cat(parts) for parts in zip(*joined, strict=True)])
            found.append(run(i, lambda x: torch.stack(sums).sum(0), lambda x, v=vectors: next(v)))
        return found


def gradients(of: Sequence[Example]) -> dict[str, Tensor]:
    """All gradients since the last call, by example and score; None of them where nothing arrived."""
    found = {f"{i}.{k}": x.grad for i, e in enumerate(of) for k, x in e.leaves() if x.grad is not None}
    for e in of:
        for _, x in e.leaves():
            x.grad = None
    return found


def loss_of(m: Method, made: Made) -> tuple[Loss, Owner]:
    owner = Owner.of(m, made)
    return m(seen(made, states=owner.states.values, modules=owner.modules)), owner


replace = dataclasses.replace


def _collected() -> tuple[dict[str, Method], dict[str, Method]]:
    from toys import TOYS

    methods = registered() | TOYS
    plain = {k: m for k, m in methods.items() if k in METHODS or k in TOYS}  # with their defaults
    return methods, with_annotations(plain)


TOYS_AND_METHODS, WITH_ANNOTATIONS = _collected()
