"""Scores of a sampler's own steps: their log-density under policy and reference (2311.13231, 2406.04314).

A response is one step x_t -> x_{t'} of a roll-out; its score is log N(x_{t'}; mu(x_t), sd^2), summed over C*H*W elements
and counted, so `.mean()` is the mean over elements of the papers. Nothing is drawn here: the steps were drawn when the
policy of the moment was rolled out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PrefoptError
from ..objectives.scores import Scores
from .base import Draw, Needs, Scored, Shapes, moved
from .conditioning import CONDITIONS, Kind, check_condition, guided
from .denoising import adapters_off, joined_notes
from .modes import placed, precision, require_frozen
from .schedules import Schedule
from .transitions import log_density, refuse_flows, transition


@dataclass(frozen=True)
class Steps:
    """Two steps of one caption at the same time, from one state or each from its own."""

    states: Tensor  # [1 or 2, C, H, W] x_t
    nexts: Tensor  # [2, C, H, W] x_{t'}
    t: int
    landing: int
    condition: Mapping[str, Tensor]  # "text" [L, D], "pooled" [E], "time_ids" [6]
    pairs: Sequence[tuple[int, int]] = ((0, 1),)  # (better, worse)
    notes: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # "tie": one per pair, "advantage": one per step


@dataclass
class StepsBatch:
    """G captions, U states, R steps. Times stay where they were made: coefficients are looked up without waiting."""

    states: Tensor  # [U, C, H, W]
    nexts: Tensor  # [R, C, H, W]
    start: Tensor  # [R] the state that each step starts from
    caption: Tensor  # [U] the caption of each state
    t: Tensor  # [U] long, on the CPU
    landing: Tensor  # [U] likewise
    condition: dict[str, Tensor]  # name -> [G, ...]
    notes: dict[str, Tensor] = field(default_factory=dict)  # "pairs" [P, 2], "group" [R], "tie" [P]
    filler: bool = False

    @property
    def size(self) -> int:
        """What it costs: images."""
        return len(self.nexts)

    def to(self, device: torch.device | str) -> StepsBatch:
        return moved(self, device, stays=["t", "landing"])

    def counts(self) -> dict[str, Tensor]:
        """{"responses": [R, 1]}: every step sums over all C*H*W elements."""
        return {"responses": self.nexts.new_full((len(self.nexts), 1), float(self.nexts[0].numel()))}


class TransitionScorer:
    """The `Scorer` of steps.

    eta, guidance   of the sampler that made them; guidance stands inside the density, for both networks
    reference       a frozen network; None: the policy with its adapters switched off
    generation      the name under which a method asks for such steps
    notes           annotations that the steps carry
    """

    def __init__(
        self,
        kind: Kind,
        schedule: Schedule,
        empty: Mapping[str, Tensor],
        *,
        eta: float,
        guidance: float,
        generation: str,
        reference: nn.Module | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        refuse_flows(schedule)
        if not 0 < eta <= 1:
            raise PrefoptError(f"eta = {eta}: must lie in (0, 1]; a deterministic step has no density")
        check_condition(kind, empty, "the empty caption")
        require_frozen(reference)
        self.kind, self.schedule, self.empty = kind, schedule, dict(empty)
        self.eta, self.guidance, self.generation, self.reference = eta, guidance, generation, reference
        self.notes = set(notes)

    def offers(self) -> set[str]:
        scores = {"scores:policy", "scores:reference", f"generation:{self.generation}"}
        return scores | {"notes:pairs", "notes:group", *(f"notes:{name}" for name in self.notes)}

    def shapes(self, needs: Needs) -> Shapes:
        """Steps have no features."""
        return {}

    def collate(self, draws: Sequence[Draw]) -> StepsBatch:
        steps: list[Steps] = [draw.example for draw in draws]
        sizes = [len(s.states) for s in steps]
        first = [sum(sizes[:i]) for i in range(len(sizes))]
        caption = torch.repeat_interleave(torch.arange(len(steps)), torch.tensor(sizes))
        return StepsBatch(
            states=torch.cat([s.states for s in steps]),
            nexts=torch.cat([s.nexts for s in steps]),
            start=torch.tensor([at + min(i, n - 1) for at, n in zip(first, sizes, strict=True) for i in range(2)]),
            caption=caption,
            t=torch.tensor([s.t for s in steps])[caption],
            landing=torch.tensor([s.landing for s in steps])[caption],
            condition={n: torch.stack([s.condition[n] for s in steps]) for n in CONDITIONS[self.kind]},
            notes=joined_notes(steps, [2] * len(steps)),
        )

    def score(self, model: nn.Module, batch: StepsBatch, needs: Needs, grad: bool = True) -> Scored:
        """{"responses": {"policy": [R, 1], "reference": [R, 1]}}, as asked; the reference never carries gradient."""
        if not grad:
            return {}
        precise = precision(model)
        condition = {n: x[batch.caption] for n, x in batch.condition.items()}
        states, nexts = batch.states.to(precise), batch.nexts.to(precise)
        time = self.schedule.level(batch.t).time.to(states.device)

        def densities(net: nn.Module) -> Scores:
            answer = guided(net, self.kind, states, time, condition, self.empty, self.guidance).to(precise)
            moved = transition(self.schedule, answer, states, batch.t, batch.landing, self.eta)
            values = log_density(nexts, moved.mean[batch.start], moved.sd[batch.start])[:, None]
            return Scores(values, torch.full_like(values, float(nexts[0].numel())))

        scores = {}
        if "scores:reference" in needs:
            with torch.no_grad():
                scores["reference"] = self._by_reference(model, densities, states.device)
        if "scores:policy" in needs:
            scores["policy"] = densities(model)
        return {"responses": scores}

    def _by_reference(self, model: nn.Module, densities: Any, device: torch.device) -> Scores:
        if self.reference is not None:
            return densities(placed(self.reference, device))
        with adapters_off(model):
            return densities(model)
