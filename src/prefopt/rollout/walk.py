"""A diffusion sampler that shows every step: state, time, prediction, and where it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..scoring.conditioning import Kind, guided
from ..scoring.modes import precision
from ..scoring.schedules import Schedule, wide
from ..scoring.transitions import Transition, transition

Answer = Callable[[Tensor, Tensor], Tensor]
"""(noisy [N, C, H, W], t [N]: an index, or s of flow models) -> the network's answer [N, C, H, W]."""
Noise = Callable[[int], Tensor]
"""Number of a step -> its noise [N, C, H, W]."""


class Step(NamedTuple):
    """One step of N samples."""

    number: int
    t: Tensor  # [N] where it starts ...
    to: Tensor  # [N] ... and where it lands
    state: Tensor  # [N, C, H, W] x_t
    answer: Tensor  # [N, C, H, W] what the network said there, in its own parameterisation
    clean: Tensor  # [N, C, H, W] the clean latents that this stands for
    next: Tensor  # [N, C, H, W] x_{t'}


def walk(
    answer: Answer,
    schedule: Schedule,
    start: Tensor,
    t: Tensor,
    to: Tensor,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    first: int = 0,
) -> Iterator[Step]:
    """The steps t -> to of a sampler, one by one, without gradient: stop asking, and the run is truncated.

    start   [N, C, H, W] the state at the first time
    t, to   [S] for all samples, or [S, N] for each its own; see `transitions.grid`
    eta     0: deterministic (then `noise` is not asked); diffusion models only otherwise
    noise   the noise of step i [N, C, H, W]; whoever walks draws it, so that a run can be made again
    first   the number of the first step, for `noise` and `Step.number`
    """
    state = start
    for i, (here, there) in enumerate(zip(t, to, strict=True), first):
        times, landing = here.expand(len(state)), there.expand(len(state))
        with torch.no_grad():
            said = answer(state, times)
            moved = transition(schedule, said, state, times, landing, eta)
            then = moved.mean if eta == 0 else sample(moved, _drawn(noise, i))
        yield Step(i, times, landing, state, said, moved.clean, then)
        state = then


def sample(moved: Transition, noise: Tensor) -> Tensor:
    """mean + sd * noise, [N, C, H, W]."""
    return moved.mean + wide(moved.sd) * noise.to(moved.mean)


def _drawn(noise: Noise | None, i: int) -> Tensor:
    if noise is None:
        raise ValueError("a stochastic walk needs its noise: give `noise`, or eta = 0")
    return noise(i)


def answers(
    net: nn.Module,
    kind: Kind,
    schedule: Schedule,
    condition: Mapping[str, Tensor],
    empty: Mapping[str, Tensor],
    guidance: float = 1.0,
) -> Answer:
    """What `net` says to N samples under their captions (condition: name -> [N, ...]), in float32 or better."""
    precise = precision(net)

    @torch.no_grad()
    def answer(noisy: Tensor, t: Tensor) -> Tensor:
        time = schedule.level(t.cpu()).time.to(noisy.device)
        return guided(net, kind, noisy, time, condition, empty, guidance).to(precise)

    return answer
