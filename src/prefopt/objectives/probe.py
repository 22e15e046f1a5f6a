"""Asking a method what it needs, by running it on a made-up batch that answers every question."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..errors import PrefoptError
from .loss import Loss
from .method import Family, Method
from .responses import Responses
from .scores import Scores

R, P, T, FREE = 8, 4, 5, 3
LENGTHS = (5, 3, 4, 5, 2, 4, 3, 5)
SPAN = 9.0  # of an interval that is open to one side
FAR = 100.0


@dataclass(frozen=True)
class Probe(Responses):
    """Answers everything, and writes down what was asked. `sparse`: answers no optional question."""

    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: dict[tuple[str, str], Any] = field(default_factory=dict)
    seed: int = 0
    sparse: bool = False
    scale: float = 1.0  # of the scores
    size: int = R  # responses
    tilt: int = 0  # other scores, but for extras without gradient: shows which statistics come too late

    def _ask(self, kind: str, name: str, **spec: Any) -> Any:
        if self.sparse and (spec.get("optional") or spec.get("instead")):
            return None
        if kind != "notes" or name not in self.notes:
            self._write_down(f"{kind}:{name}", spec)
        if kind in ("statistics", "noising", "conditions", "generation", "turns"):
            return self.turns.get(name) if kind == "turns" else None
        if name in getattr(self, kind):
            return getattr(self, kind)[name]
        if (kind, name) not in self.made or (spec.get("grad") and not self._has_grad(kind, name)):
            tilt = self.tilt if kind == "scores" else 0
            g = Generator().manual_seed(sum(map(ord, name)) * 31 + self.seed + tilt)
            self.made[kind, name] = getattr(self, f"_{kind}")(name, g, **spec)
        return self.made[kind, name]

    def _write_down(self, key: str, spec: dict[str, Any]) -> None:
        """A question asked twice: with gradient if once with, optional only if always, and what extras were asked."""
        before = self.asked.setdefault(key, dict(spec))
        before["grad"] = before.get("grad") or spec.get("grad")
        before["optional"] = before.get("optional") and spec.get("optional")
        before["instead"] = before.get("instead") or spec.get("instead")

    def _has_grad(self, kind: str, name: str) -> bool:
        made = self.made[kind, name]
        return made.values.requires_grad if kind == "scores" else kind != "features" or made.requires_grad

    def _scores(self, name: str, g: Generator, grad: bool) -> Scores:
        values = -3 * self.scale * torch.rand(self.size, T, generator=g, dtype=torch.float64)
        count = (torch.arange(T) < torch.tensor(LENGTHS[: self.size])[:, None]).double()
        count[:, T - 3] *= count[:, T - 1] == 0  # the longest are of two turns
        return Scores(values.requires_grad_() if grad else values, count)

    def _notes(
        self, name: str, g: Generator, shape: str, dtype: Any, below: int | None, within: Any = None, **_: Any
    ) -> Tensor:
        sizes = {"R": self.size, "P": P, "T": T}
        size = [int(a) if a.isdigit() else sizes.get(a, FREE) for a in shape.split()]
        if dtype == "row":
            return torch.arange(R).view(P, 2)
        if dtype == "group":
            return torch.arange(self.size) // 4
        if dtype is bool:
            return torch.arange(size[0]) % 2 == 0
        if dtype is int:
            return torch.randint(0, below or 2, size, generator=g)
        if dtype in ("step", "common step"):
            return (1 + torch.arange(size[-1]) * FREE // size[-1]).expand(size)
        if within:
            low = within[0] if math.isfinite(within[0]) else within[1] - SPAN
            high = within[1] if math.isfinite(within[1]) else within[0] + SPAN
            return low + (high - low) * torch.rand(size, generator=g, dtype=torch.float64)
        return 2 * torch.randn(size, generator=g, dtype=torch.float64)

    def _features(
        self, name: str, g: Generator, shape: str, grad: bool, dtype: Any, how: dict[str, Any], **_: Any
    ) -> Tensor:
        if dtype is int:
            return self._notes(name, g, shape, dtype, None)
        g.manual_seed(zlib.crc32(f"{name} {how}".encode()) + self.seed)  # asked for otherwise, it is another one
        return self._notes(name, g, shape, dtype, None).requires_grad_(grad)

    def _extras(self, name: str, g: Generator, grad: bool) -> Probe:
        # what is asked of an extra is noted apart: the scorer must know which scores its rows need
        asked = self.asked[f"extras:{name}"].setdefault("asked", {})
        tilt = self.tilt if grad else 0
        size = P if "notes:pairs" in self.asked else R  # one a pair, or one a response
        return Probe(seed=self.seed + 7, asked=asked, path=self.path, tilt=tilt, scale=self.scale, size=size)

    def _states(self, name: str, g: Generator, start: Callable[[], Tensor], of: str) -> Tensor:
        return start()

    def _modules(self, name: str, g: Generator, make: Callable[[], nn.Module], **_: Any) -> nn.Module:
        torch.manual_seed(self.seed)
        return make().double()

    def _check_shape(self, name: str, x: Tensor, axes: list[str], kind: str = "annotation") -> None:
        """The probe's shapes are its own."""

    def count_rows(self) -> int:
        return self.size


@dataclass(frozen=True)
class Trace:
    """What a trial run showed."""

    needs: dict[str, dict[str, Any]]
    loss: Loss
    probe: Probe


def trace(m: Method, seed: int = 0, scale: float = 1.0, turn: str = "") -> Trace:
    """Run once with every answer, and once with no optional one (which shows what the fallbacks need).

    turn: the network whose turn it is; "" the policy's.
    """
    with torch.random.fork_rng(devices=[]):
        kinds: list[dict[str, Any]] = [{}, {"sparse": True}, {"tilt": 101}]
        turns = {turn: True} if turn else {}
        full, sparse, tilted = (Probe(seed=seed, scale=scale, turns=turns, **kind) for kind in kinds)
        loss = m(full)
        if any(s.get("optional") or s.get("instead") for s in full.asked.values()):
            m(sparse)
        if statistics := [k for k in full.asked if k.startswith("statistics:")]:
            m(tilted)
    asked = dict(full.asked)
    for key in sparse.asked:  # asked although nothing optional was answered: of a fallback, or needed in any case
        asked[key] = asked[key] | {"instead": None} if key in asked else sparse.asked[key] | {"fallback": True}
    for key in statistics:
        early = torch.equal(full.asked[key]["values"], tilted.asked[key]["values"])
        asked[key] = asked[key] | {"of_policy": not early}
    needs = _told(asked)
    _states_match(m, needs, loss)
    if turn:
        needs[f"turns:{turn}"]["now"] = True
    return Trace(needs, loss, full)


def needs_by_turn(m: Method) -> dict[str, dict[str, dict[str, Any]]]:
    """What `m` asks for in each turn, in their order: those of networks beside the policy, then the policy's own ""."""
    own = trace(m).needs
    others = [key.removeprefix("turns:") for key in own if key.startswith("turns:")]
    return {name: trace(m, turn=name).needs for name in others} | {"": own}


def in_all(turns: Iterable[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The needs of several turns together: with gradient if once with."""
    needs: dict[str, dict[str, Any]] = {}
    for asked in turns:
        for key, spec in asked.items():
            grad = {"grad": True} if spec.get("grad") or needs.get(key, {}).get("grad") else {}
            needs[key] = {k: v for k, v in spec.items() if k != "now"} | grad
    return needs


TOLD = (
    "shape", "dtype", "below", "within", "grad", "optional", "instead", "fallback", "asked", "of_policy", "every", "how",
    "weight_decay", "rate", "of", "steps", "betas",
)  # fmt: skip


def _told(asked: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The questions as plain data: what is false or unsaid is left out."""
    needs = {k: {a: v for a, v in s.items() if a in TOLD and v} for k, s in asked.items()}
    for spec in needs.values():
        if "asked" in spec:
            spec["asked"] = _told(spec["asked"])
        if isinstance(spec.get("dtype"), type):
            spec["dtype"] = spec["dtype"].__name__
    return needs


def _states_match(m: Method, needs: dict[str, dict[str, Any]], loss: Loss) -> None:
    """Every state is advanced, and nothing else is."""
    states = {k.removeprefix("states:") for k in needs if k.startswith("states:")}
    for name in sorted(states ^ set(loss.updates)):
        raise PrefoptError(
            f"{m.name}: the state '{name}' is asked for and never advanced: add it to Loss(updates=...); "
            "a wrapper passes on what it wraps with updates={**wrapped.updates, ...}"
            if name in states
            else f"{m.name}: updates has '{name}', which is no state that was asked for with r.state; there are "
            f"{', '.join(sorted(states)) or 'none'}"
        )


def missing(m: Method, provided: set[str]) -> list[str]:
    """What `m` asks for and neither the data nor the machinery can give, in words."""
    own = ("states:", "modules:", "statistics:")
    without = []
    for key, spec in m.needs().items():
        instead = spec.get("instead")
        excused = spec.get("optional") or spec.get("fallback") or instead in ("demonstrations",)
        if key in provided or excused or f"notes:{instead}" in provided or key.startswith(own):
            continue
        without.append(f"{key}{' [' + spec['shape'] + ']' if 'shape' in spec else ''}")
    return without


def initialise(m: Method, r: Responses) -> Responses:
    """Create missing states and parameters by running the method once on a real batch."""
    made: dict[str, dict[str, Any]] = {"states": dict(r.states), "modules": dict(r.modules)}

    @dataclass(frozen=True)
    class Initialising(Responses):
        def _ask(self, kind: str, name: str, **spec: Any) -> Any:
            if kind not in made:
                return super()._ask(kind, name, **spec)
            if name not in made[kind]:
                new = spec["start" if kind == "states" else "make"]()
                made[kind][name] = new.to(self._first().dtype) if kind == "modules" else new
            return made[kind][name]

    with torch.no_grad():
        m(Initialising(**{f.name: getattr(r, f.name) for f in dataclasses.fields(Responses)}))
    return r.replace(**made)


def fingerprint(m: Method) -> list[float]:
    """Value, gradient, state update and optimiser settings on four probes: with one fingerprint, one loss.

    The last has scores far apart, where floors and limits bite; it says nothing where it is not finite.
    """
    numbers: list[float] = []
    for turn in m.turns():
        numbers += [x for seed in range(3) for x in _numbers(trace(m, seed, turn=turn))]
        far = _numbers(trace(m, 3, FAR, turn))
        numbers += far if all(map(math.isfinite, far)) else []
    return numbers


def _numbers(t: Trace) -> list[float]:
    numbers: list[float] = []
    made = t.probe.made
    leaves = [s.values for (k, _), s in made.items() if k == "scores" and s.values.requires_grad]
    leaves += [x for (k, _), x in made.items() if k == "features" and x.requires_grad]
    leaves += [w for (k, _), net in made.items() if k == "modules" for w in net.parameters()]
    numbers += [float(s.get(x, 0)) for k, s in t.needs.items() if "modules:" in k for x in ("weight_decay", "rate")]
    loss = t.loss.scalar
    numbers.append(loss.item())
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        numbers += [x for g in grads if g is not None for x in g.flatten().tolist()]
    for u in t.loss.updates.values():
        advanced = u.advance(torch.full_like(u.sum, 0.7), u.sum, u.count)
        numbers += [*advanced.flatten().tolist(), float(u.sum.numel())]
    for (k, _), v in made.items():
        numbers += v.flatten().tolist() if k == "states" else []
    return numbers


def refuse_inert(kind: Family, m: Method, given: list[str]) -> None:
    """Every key changes something or is refused; rules inside the method (`require`) bite here too."""
    m.turns()
    for key in given:
        without = dataclasses.replace(m, hyper={**m.hyper, key: kind.defaults[key]})
        try:
            same = fingerprint(without) == fingerprint(m) and without.turns() == m.turns()
        except PrefoptError:
            continue
        if same:
            raise PrefoptError(f"{m.name}.{key} = {m.hyper[key]!r} has no effect with the other settings: leave it out")
