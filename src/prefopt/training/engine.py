"""What a trainer does with a method: count first, so that one optimiser step is exact however it is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PrefoptError
from ..objectives.loss import LEAST, Loss, Term, Update
from ..objectives.method import Method
from ..objectives.responses import Responses
from ..objectives.scores import Scores, full_precision
from ..scoring.base import Batch, Scored, Shapes, only

Reduce = Callable[[Tensor], Tensor]  # sum over processes
Counts = Mapping[str, Tensor]  # term -> what it is divided by


@dataclass
class Plan:
    """What is known about an optimiser step before its first forward with gradient."""

    totals: dict[str, Tensor]  # term -> count over micro-batches and processes
    statistics: dict[str, Tensor]  # name -> mean over the step (KTO's z0)
    ready: list[tuple[Batch, Scored, Counts]]  # batches on the device, extras scored without gradient, own counts
    turn: str = ""  # whose: a network's beside the policy, or the policy's own


@dataclass(frozen=True)
class Counting(Responses):
    """Real annotations, made-up scores: tells counts and step-wide statistics."""

    seen: dict[str, Tensor] = field(default_factory=dict)  # name -> [sum, number]
    every: dict[str, Tensor] = field(default_factory=dict)  # name -> all values

    def _ask(self, kind: str, name: str, **spec: Any) -> Any:
        if kind == "statistics":
            values: Tensor = spec["values"]
            if spec.get("every"):
                self.every[name] = values
                return None
            self.seen[name] = torch.stack([values.sum(), values.new_full((), values.numel())])
        return super()._ask(kind, name, **spec)


def responses(
    batch: Batch,
    scored: Scored,
    states: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    statistics: Mapping[str, Tensor],
    turn: str = "",
) -> Responses:
    """The batch as the method sees it."""
    extras = {name: Responses(scores=only(Scores, found)) for name, found in scored.items() if name != "responses"}
    own = scored["responses"]
    turns = {turn: True} if turn else {}
    return Responses(only(Scores, own), batch.notes, extras, states, modules, statistics, only(Tensor, own), turns)


def made_up(
    batch: Batch, needs: Mapping[str, Any], known: Scored, shapes: Shapes | None = None
) -> dict[str, dict[str, Scores | Tensor]]:
    """Scores and features of the right shape for all that `needs` asks and is not `known` yet."""
    asked = {"responses": needs} | {
        k.removeprefix("extras:"): s.get("asked", {}) for k, s in needs.items() if "extras:" in k
    }
    scores: dict[str, dict[str, Scores | Tensor]] = {}
    for row_set, count in batch.counts().items():
        names = {k.removeprefix("scores:") for k in asked.get(row_set, {}) if k.startswith("scores:")}
        made: dict[str, Scores | Tensor] = {
            name: Scores(torch.full_like(count, -1.0, dtype=torch.float32), count.float()) for name in names
        }
        scores[row_set] = made | dict(known.get(row_set, {}))
    count = batch.counts()["responses"]
    for name, axes in (shapes or {}).items():
        size = [{"R": len(count), "T": count.shape[1]}[a] if isinstance(a, str) else a for a in axes]
        whole = needs[f"features:{name}"].get("dtype") == "int"
        zero = full_precision(count).new_zeros((), dtype=torch.long if whole else None)
        scores["responses"][name] = zero.expand(size)  # in one number's memory
    return scores


def plan(
    method: Method,
    needs: Mapping[str, Any],
    batches: Iterable[tuple[Batch, Scored]],
    states: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    reduce: Reduce = lambda x: x,
    shapes: Shapes | None = None,
    ahead: Callable[[Batch], Scored] | None = None,
    gather: Callable[[Tensor], Tensor] = lambda x: x,
    turn: str = "",
) -> Plan:
    """Count every micro-batch of this process and sum over processes: one reduction an optimiser step.

    shapes: of the features that the method asks for. ahead: scores a batch as the step will, without gradient: a second
    forward, for methods whose statistics are of the policy (`of_policy`). gather: joins vectors [n] of all processes.

    PrefoptError if the method wants a statistic of the policy and there is no `ahead`.
    """
    of_policy = False
    for key, spec in needs.items():
        of_policy |= bool(spec.get("of_policy"))
        if spec.get("of_policy") and ahead is None:
            raise PrefoptError(
                f"{method.name}: the mean '{key.removeprefix('statistics:')}' over the optimiser step is of scores that "
                "are not known before its first backward: take it of an extra without gradient "
                "(r.extra(name, grad=False)), or carry a running mean in r.state"
            )
    ready: list[tuple[Batch, Scored, Counts]] = []
    sums: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    every: dict[str, list[Tensor]] = {}
    for batch, known in batches:
        scored = made_up(batch, needs, known, shapes)
        if of_policy and ahead is not None:
            scored |= {name: {**scored.get(name, {}), **found} for name, found in ahead(batch).items()}
        r = responses(batch, scored, states, modules, {}, turn)
        counting = Counting(**{f.name: getattr(r, f.name) for f in dataclasses.fields(Responses)})
        with torch.no_grad():
            loss = method(counting)
        counts = {k: _exact(t.count) for k, t in loss.terms.items()}
        ready.append((batch, known, counts))
        weight = 0.0 if batch.filler else 1.0
        sums |= {k: sums.get(k, 0.0) + weight * n for k, n in counts.items()}
        seen |= {k: seen.get(k, 0.0) + weight * full_precision(x) for k, x in counting.seen.items()}
        for k, x in counting.every.items():
            every.setdefault(k, []).append(x[:0] if batch.filler else x)
    if not ready:
        return Plan({}, {}, [], turn)
    device = next(iter(sums.values())).device
    flat = torch.cat([torch.stack(list(sums.values())), *[x.to(device) for x in seen.values()]])
    flat = reduce(flat)
    totals = dict(zip(sums, flat[: len(sums)], strict=True))
    means = flat[len(sums) :].view(-1, 2)
    statistics = {k: (m[0] / m[1].clamp(min=1)).to(seen[k].dtype) for k, m in zip(seen, means, strict=True)}
    statistics |= {k: gather(torch.cat(x)).sort().values for k, x in every.items()}
    return Plan(totals, statistics, ready, turn)


def part(method: Method, loss: Loss, totals: Counts, counts: Counts | None = None) -> Tensor:
    """This micro-batch's share of the step's loss: backward of it, summed over micro-batches, is exact.

    `counts`: check that no count depends on scores (a comparison of tensors: on the first step only).
    """
    if counts is not None:
        for name, term in loss.terms.items():
            if name not in counts or not torch.equal(_exact(term.count), counts[name]):
                raise PrefoptError(
                    f"{method.name}: the term '{name}' is averaged over something that depends on scores; "
                    "use r.step_mean for that"
                )
    shares = [t.values.sum() / totals[k].clamp(min=LEAST).to(t.values.dtype) for k, t in loss.terms.items()]
    return torch.stack(shares).sum()


def _exact(count: Tensor) -> Tensor:
    """What counts add up in: they may be sums of weights, and float64 is exact enough for any cut of a step."""
    return count.float() if count.device.type == "mps" else count.double()


class States:
    """The method's state: read before a step, summed over micro-batches, advanced once after it."""

    def __init__(self, values: dict[str, Tensor] | None = None):
        self.values: dict[str, Tensor] = values or {}
        self._pending: dict[str, Update] = {}

    def collect(self, updates: Mapping[str, Update], weight: float = 1.0) -> None:
        for name, u in updates.items():
            old = self._pending.get(name)
            total, count = u.sum.detach() * weight, u.count.detach() * weight
            if old is not None:
                total, count = old.sum + total, old.count + count
            self._pending[name] = Update(total, count, u.advance)

    def advance(self, reduce: Reduce = lambda x: x) -> None:
        for name in sorted(self._pending):
            u = self._pending[name]
            self.values[name] = u.advance(self.values[name], reduce(u.sum), reduce(u.count)).detach()
        self._pending = {}


class Meter:
    """Metrics as (sum, count) tensors on the device: nothing is read back before the log step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor | Term], weight: float = 1.0) -> None:
        for name, value in values.items():
            if isinstance(value, Term):
                pair = torch.stack([value.values.detach().sum().float(), value.count.float()])
            else:
                v = value.detach().float()
                pair = torch.stack([v.sum(), v.new_full((), v.numel())])
            self._sums[name] = self._sums.get(name, 0.0) + weight * pair

    def flush(self, reduce: Reduce = lambda x: x) -> dict[str, float]:
        """Means over everything added on all processes since the last flush: one reduction, one read."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        table = reduce(torch.stack([self._sums[n] for n in names])).tolist()
        self._sums = {}
        return {n: total / count for n, (total, count) in zip(names, table, strict=True) if count > 0}


def measures(r: Responses, loss: Loss) -> dict[str, Tensor | Term]:
    """The metrics that people know by name, from the rewards of a loss and the policy's scores."""
    out: dict[str, Tensor | Term] = dict(loss.metrics)
    out |= {f"health/{k}": v for k, v in loss.health.items()}
    policy = r.scores.get("policy")
    if "pairs" in r.notes:
        pairs = r.notes["pairs"]
        chosen, rejected = pairs[:, 0], pairs[:, 1]
        if policy is not None:
            total, length = policy.sum().detach(), policy.length
            out |= {"logps/chosen": total[chosen], "logps/rejected": total[rejected]}
            out |= {"lengths/chosen": length[chosen], "lengths/rejected": length[rejected]}
        if isinstance(loss.rewards, Tensor):
            out |= _preferred(loss.rewards[chosen], loss.rewards[rejected])
    if isinstance(loss.rewards, tuple):
        sides = _preferred(*loss.rewards) if "pairs" in r.notes else dict(zip(SIDES, loss.rewards, strict=True))
        out |= {k: v.detach() for k, v in sides.items()}
    elif loss.rewards is not None and "label" in r.notes:
        good = r.notes["label"].float()
        rewards = loss.rewards.detach()
        out["rewards/chosen"] = Term(rewards * good, good.sum(), "responses")
        out["rewards/rejected"] = Term(rewards * (1 - good), (1 - good).sum(), "responses")
    return out


SIDES = ("rewards/chosen", "rewards/rejected")


def _preferred(w: Tensor, l: Tensor) -> dict[str, Tensor]:
    return dict(zip(SIDES, (w, l), strict=True)) | {"rewards/margins": w - l, "rewards/accuracies": (w > l).float()}
