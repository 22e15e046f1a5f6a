"""The packed tree: a prompt is computed once for all of its responses, and nothing is padded.

All trees of a batch lie one behind the other in a single row [1, N]: prompt, response 1, response 2, ..., next
prompt. Everything in a decoder but attention works on single tokens, so one row costs what its tokens cost;
`families` makes attention see the tree. On HH dialogues a padded batch of 8 pairs has four times these tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Where one tree lies in the row: its first token, the prompt's length, the length of each branch."""

    start: int
    prompt: int
    branches: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prompt + sum(self.branches)

    @property
    def depth(self) -> int:
        """Positions from the first prompt token to the end of the longest branch."""
        return self.prompt + max(self.branches, default=0)

    def branch_start(self, i: int) -> int:
        return self.start + self.prompt + sum(self.branches[:i])


@dataclass(frozen=True)
class Tree:
    """A forest of prompts with their branches, packed into one row; N tokens, M of them needed by the head."""

    input_ids: Tensor  # [1, N] long
    position_ids: Tensor  # [1, N] long; every branch continues from its prompt
    branch: Tensor  # [1, N] long: 0 prompt, 1 .. k the branches
    needed: Tensor  # [M] long, unique, ascending: the positions whose last hidden state is read
    segments: tuple[Segment, ...]  # Python numbers: shapes are known without asking the device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tree:
        names = ("input_ids", "position_ids", "branch", "needed")
        return replace(self, **{n: getattr(self, n).to(device, non_blocking=non_blocking) for n in names})

    def paths(self) -> tuple[Tensor, Tensor]:
        """The plain layout: index [B, L] of each branch's tokens in the packed row with its prompt before it, and
        the mask [B, L] of real tokens, padded on the right. A tree without branches is one path."""
        rows = []
        for s in self.segments:
            prompt = list(range(s.start, s.start + s.prompt))
            starts = [(s.branch_start(i), n) for i, n in enumerate(s.branches)] or [(0, 0)]
            rows += [prompt + list(range(b, b + n)) for b, n in starts]
        width = max(map(len, rows))
        index = torch.tensor([r + [0] * (width - len(r)) for r in rows])
        mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
        device = self.input_ids.device
        return index.to(device, non_blocking=True), mask.to(device, non_blocking=True)


def plant(forest: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> Tree:
    """Pack (prompt ids, branches) one behind the other. `needed` is filled in by whoever knows the rows."""
    ids: list[int] = []
    positions: list[int] = []
    branch: list[int] = []
    segments = []
    for prompt, branches in forest:
        segments.append(Segment(len(ids), len(prompt), tuple(map(len, branches))))
        ids += prompt
        positions += range(len(prompt))
        branch += [0] * len(prompt)
        for i, b in enumerate(branches):
            ids += b
            positions += range(len(prompt), len(prompt) + len(b))
            branch += [i + 1] * len(b)
    packed = torch.tensor([ids, positions, branch])
    none = torch.empty(0, dtype=torch.long)
    return Tree(packed[None, 0], packed[None, 1], packed[None, 2], none, tuple(segments))
