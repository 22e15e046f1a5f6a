"""Random ragged batches for tests of losses: log-probs with junk under a mask that has holes, pairs that share rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt import Responses

NAN = math.nan


@dataclass
class Ragged:
    """Padded tensors for prefopt, and the same numbers as lists of scalars for a computation by hand."""

    mask: Tensor  # [R, T] bool
    scores: dict[str, Tensor]  # name -> [R, T] float64, NaN where mask is false; "policy" is a leaf with gradient
    pairs: list[tuple[int, int]]
    notes: dict[str, Tensor]
    extras: dict[str, Ragged]

    def responses(self, **replaced: Tensor) -> Responses:
        scores = {f"{k}_logps": v for k, v in (self.scores | replaced).items()}
        extras = {k: v.responses() for k, v in self.extras.items()}
        pairs = torch.tensor(self.pairs) if self.pairs else None
        return Responses.of(mask=self.mask, pairs=pairs, extras=extras, **scores, **self.notes)

    def tokens(self, name: str, row: int) -> list[Tensor]:
        """The scored numbers of one response, one by one."""
        return [self.scores[name][row, t] for t in range(self.mask.shape[1]) if self.mask[row, t]]

    @property
    def policy(self) -> Tensor:
        return self.scores["policy"]


def ragged(
    seed: int, rows: int = 7, width: int = 6, pairs: bool = True, extras: bool = True, junk: float = NAN
) -> Ragged:
    """A batch of `rows` responses; every one of its masks keeps at least one position, wherever it lies."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, width, generator=g) < 0.6
    mask[torch.arange(rows), torch.randint(0, width, (rows,), generator=g)] = True
    scores = {}
    for name in ("policy", "reference", "reward"):
        values = -3 * torch.rand(rows, width, generator=g, dtype=torch.float64) - 1e-3
        scores[name] = torch.where(mask, values, junk).requires_grad_(name != "reference")
    order = torch.randperm(rows, generator=g).tolist()
    found = [(order[i], order[i + 1]) for i in range(0, rows - 1, 2)] + [(order[0], order[3])]  # row order[0] twice
    notes = {"label": torch.rand(rows, generator=g) < 0.5}
    notes["margin"] = torch.randn(len(found), generator=g, dtype=torch.float64)
    made = Ragged(mask, scores, found if pairs else [], notes if pairs else {"label": notes["label"]}, {})
    if extras:
        made.extras["prompt"] = ragged(seed + 1000, len(found), width, pairs=False, extras=False, junk=junk)
        made.extras["mismatched"] = ragged(seed + 2000, rows, width, pairs=False, extras=False, junk=junk)
        for x in made.extras.values():
            x.notes = {}
    return made
