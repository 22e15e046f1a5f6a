"""Rounds of image roll-outs: whole trajectories judged at their end (D3PO), or pools judged at every step (SPO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...config import RolloutConfig
from ...data.captions import PromptSet
from ...errors import PrefoptError
from ...models.diffusion import ImageModel
from ...rewards.load import Reward
from ...rewards.step_aware import StepJudge, as_pictures
from ...rollout.marks import GIVEN, SHEET, read_marks, write_sheet
from ...rollout.pools import Pools, pools
from ...rollout.trajectories import Trajectories, roll_out, verdict, verdict_scores
from ...rollout.walk import Answer, answers
from ...scoring.base import seeded
from ...scoring.transition_scorer import Steps
from ...scoring.transitions import grid
from ..rounds import Made, Waiting, chosen, places


class Sources(NamedTuple):
    """What rounds are made of. empty: the condition of the empty caption."""

    model: ImageModel
    prompts: PromptSet
    empty: Mapping[str, Tensor]
    rollout: RolloutConfig
    seed: int


class ImageRounds:
    """What both kinds share: which prompts stand where, their conditions, their random numbers, and pixels."""

    notes: ClassVar[Mapping[str, Sequence[Any]]] = {}  # of an example

    def __init__(self, of: Sources, how: Trajectories | Pools):
        self.model, self.prompts, self.empty, self.seed = of.model, of.prompts, dict(of.empty), of.seed
        model, prompts = of.model, of.prompts
        self.grid = grid(model.schedule, how.steps)
        self.total, self.guidance = of.rollout.prompts_per_round, how.guidance
        self._places = places(self.total, of.rollout.batch_size)
        self.pieces, self.cost = len(self._places), 2
        c, h, w = model.latent_shape
        t, to = int(self.grid.t[0]), int(self.grid.to[0])
        self.blank = Steps(
            torch.zeros(1, c, h, w), torch.zeros(2, c, h, w), t, to, prompts[0].condition, notes=self.notes
        )

    def at(self, number: int, piece: int) -> list[tuple[int, torch.Generator]]:
        """The prompt of every place of a piece, and the place's own random numbers."""
        order = chosen(len(self.prompts), self.total, self.seed, number)
        return [(order[i], seeded(self.seed, number, i)) for i in self._places[piece]]

    def answer(self, policy: nn.Module, which: Sequence[int], each: int) -> Answer:
        """What the policy says to `each` states of every prompt, side by side."""
        device = next(policy.parameters()).device
        conditions = [self.prompts[i].condition for i in which for _ in range(each)]
        joined = {n: torch.stack([c[n] for c in conditions]).to(device) for n in conditions[0]}
        return answers(policy, self.model.kind, self.model.schedule, joined, self.empty, self.guidance)

    def pixels(self, latents: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1]."""
        return torch.cat([self.model.decode_latents(x) for x in latents.split(16)]).clamp(-1, 1)

    def noise(self) -> tuple[list[str], Tensor]:
        """Two prompts and pictures [2, 3, R, R] of noise: a judge that fails on them would fail after hours of roll-outs."""
        g = torch.Generator().manual_seed(0)
        side = self.model.resolution
        return self.text([0, len(self.prompts) - 1]), 2 * torch.rand(2, 3, side, side, generator=g) - 1

    def text(self, which: Sequence[int]) -> list[str]:
        return [self.prompts[i].prompt for i in which]


class TrajectoryRounds(ImageRounds):
    """`samples` roll-outs of every prompt from one noise; each pair of them is an example at each step.

    reward: of final pictures; None: people mark them.
    """

    notes: ClassVar[Mapping[str, Sequence[Any]]] = {"tie": [False], "advantage": [0.0, 0.0]}

    def __init__(self, of: Sources, how: Trajectories, reward: Reward | None):
        super().__init__(of, how)
        self.how, self.reward, self.together = how, reward, how.kept
        self.most = self.total * how.samples * (how.samples - 1) // 2 * how.kept
        if reward is not None:
            said, pictures = self.noise()
            verdict_scores(reward, said, as_pictures(pictures))

    def piece(self, policy: nn.Module, number: int, piece: int, folder: Path) -> Mapping[str, Tensor]:
        """states [B, k, S + 1, C, H, W], prompt [B], and with a reward scores [B, k, K]."""
        at, k, how = self.at(number, piece), self.how.samples, self.how
        which, shape = [i for i, _ in at], self.model.latent_shape
        start = torch.stack([torch.randn(shape, generator=g) for _, g in at]).repeat_interleave(k, 0)
        noise = torch.stack([torch.randn(how.steps, k, *shape, generator=g) for _, g in at], 1).flatten(1, 2)
        device = next(policy.parameters()).device
        answer = self.answer(policy, which, k)
        states = roll_out(answer, self.model.schedule, self.grid, start.to(device), list(noise), how.eta)
        pictures = as_pictures(self.pixels(states[:, -1]))
        made = {"states": states.unflatten(0, (len(at), k)).cpu(), "prompt": torch.tensor(which)}
        if self.reward is not None:
            said = [text for text in self.text(which) for _ in range(k)]
            return made | {"scores": verdict_scores(self.reward, said, pictures).unflatten(0, (len(at), k))}
        for name, picture in zip(_names(self._places[piece], k), pictures, strict=True):
            picture.save(folder / name)
        return made

    def made(self, number: int, pieces: Sequence[Mapping[str, Tensor]], folder: Path) -> Made:
        states, which = (torch.cat([p[n] for p in pieces]) for n in ("states", "prompt"))
        given = None if self.reward is None else torch.cat([p["scores"] for p in pieces])
        scores = self._marks(number, which.tolist(), folder) if given is None else given
        examples: list[Steps] = []
        verdicts = []
        gain = scores.mean(-1) - scores.mean((1, 2))[:, None]
        gain = (gain / gain.square().mean().sqrt().clamp(min=1e-12)).float()
        for place in range(len(states)):
            for a, b in combinations(range(self.how.samples), 2):
                better = int(verdict(scores[place, a], scores[place, b]))
                verdicts.append(better)
                first, second = (a, b) if better >= 0 else (b, a)
                condition = self.prompts[int(which[place])].condition
                both = states[place, [first, second]]  # [2, S + 1, C, H, W]
                notes = {"tie": [not better], "advantage": gain[place, [first, second]].tolist()}
                examples += self._steps(both, condition, notes, (number, place, a, b))
        spread = scores.amax(1) - scores.amin(1)
        if not any(verdicts):
            low, high = scores.min().item(), scores.max().item()
            raise PrefoptError(
                f"round {number}: all {len(verdicts)} pairs are ties, so there is nothing to learn. The scores go from "
                f"{low:g} to {high:g}, within one prompt by at most {spread.max().item():g}"
            )
        ties = verdicts.count(0) / len(verdicts)
        return Made(examples, {"reward": scores.mean().item(), "spread": spread.mean().item(), "ties": ties})

    def _steps(self, both: Tensor, condition: Any, notes: Any, place: tuple[int, ...]) -> list[Steps]:
        kept = np.sort(np.random.default_rng((self.seed, *place)).permutation(self.how.steps)[: self.how.kept])
        t, to = self.grid.t.tolist(), self.grid.to.tolist()
        return [Steps(both[:, i], both[:, i + 1], t[i], to[i], condition, notes=notes) for i in kept.tolist()]

    def _marks(self, number: int, which: list[int], folder: Path) -> Tensor:
        """[B, k, K] of people; Waiting where they have not marked yet."""
        k = self.how.samples
        names = _names(range(self.total), k)
        write_sheet(folder, names, [text for text in self.text(which) for _ in range(k)])
        marks = read_marks(folder, names)
        if marks is None:
            raise Waiting(
                f"round {number}: {len(names)} pictures in {folder} wait for marks (higher is better). Copy {SHEET} to "
                f"{GIVEN.replace('*', '-NAME')}, one for each person, and fill the column mark"
            )
        return marks.unflatten(0, (-1, k))


def _names(places: range, k: int) -> list[str]:
    return [f"{place:04d}-{n}.png" for place in places for n in range(k)]


class PoolRounds(ImageRounds):
    """At every step a pool of candidates of one state; best and worst are an example where their gap is clear."""

    def __init__(self, of: Sources, how: Pools, judge: StepJudge):
        super().__init__(of, how)
        self.how, self.judge, self.together = how, judge, 1
        self.most = self.total * how.verdicts * how.span
        said, pictures = self.noise()
        judge.score(pictures, said, self.grid.t[:1].repeat(2))

    def piece(self, policy: nn.Module, number: int, piece: int, folder: Path) -> Mapping[str, Tensor]:
        """states and nexts [B, V, span, 2, C, H, W] of V verdicts, scores [B, V, k], gap [B, V], prompt [B]."""
        at, how = self.at(number, piece), self.how
        which, shape, n = [i for i, _ in at], self.model.latent_shape, len(at)
        device = next(policy.parameters()).device
        start = torch.stack([torch.randn(shape, generator=g) for _, g in at]).to(device)
        picks = torch.stack([torch.randint(how.pool, (how.verdicts,), generator=g) for _, g in at])
        asked = {k: self.answer(policy, which, k) for k in (1, how.pool)}
        said = [text for text in self.text(which) for _ in range(how.pool)]

        def noise(step: int, k: int) -> Tensor:
            return torch.stack([torch.randn(k, *shape, generator=g) for _, g in at]).flatten(0, 1).to(device)

        def judge(clean: Tensor, time: int) -> Tensor:
            times = torch.full((n * how.pool,), time, device=device)
            return self.judge.score(self.pixels(clean.flatten(0, 1)), said, times).unflatten(0, (n, how.pool))

        found = pools(
            lambda k: asked[k], self.model.schedule, self.grid, how, start, noise, judge, lambda i: picks[:, i]
        )
        made = {name: torch.stack([getattr(p, name) for p in found], 1) for name in found[0]._fields}
        return made | {"prompt": torch.tensor(which)}

    def made(self, number: int, pieces: Sequence[Mapping[str, Tensor]], folder: Path) -> Made:
        told = {n: torch.cat([p[n] for p in pieces]) for n in pieces[0]}
        clear = told["gap"] > self.how.threshold  # [B, V]
        examples = []
        t, to = self.grid.t.tolist(), self.grid.to.tolist()
        for v in range(self.how.verdicts):
            for place in clear[:, v].nonzero()[:, 0].tolist():
                condition = self.prompts[int(told["prompt"][place])].condition
                for j in range(self.how.span):
                    i = self.how.divert + v * self.how.span + j
                    states = told["states"][place, v, j, : 1 if self.how.span == 1 else 2]
                    examples.append(Steps(states, told["nexts"][place, v, j], t[i], to[i], condition))
        scores = told["scores"]
        if not examples:
            spread = (scores.amax(-1) - scores.amin(-1)).max().item()
            raise PrefoptError(
                f"round {number}: no pool is clear enough (gap above {self.how.threshold:g}), so there is nothing to "
                f"learn. The scores go from {scores.min().item():g} to {scores.max().item():g}, within one pool by at most "
                f"{spread:g} (a gap of {np.tanh(spread / 2):.3g}). Lower method.threshold, or scale the judge's scores"
            )
        each = {
            f"kept/{t[self.how.divert + v * self.how.span]}": x for v, x in enumerate(clear.double().mean(0).tolist())
        }
        last = {"reward": scores[:, -1].mean().item(), "kept": clear.double().mean().item()}
        return Made(examples, last | each)
