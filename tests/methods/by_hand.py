"""Sums and sigmoids one scalar at a time in float64, and the comparison of a method with an equation written so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from ragged import Ragged
from torch import Tensor

from prefopt import Method

Reduce = Callable[[Sequence[Tensor]], Tensor]


def total(x: Sequence[Tensor]) -> Tensor:
    out = torch.zeros((), dtype=torch.float64)
    for v in x:
        out = out + v
    return out


def average(x: Sequence[Tensor]) -> Tensor:
    return total(x) / len(x)


def log_sigmoid(u: Tensor) -> Tensor:
    return -torch.log1p(torch.exp(-u)) if u >= 0 else u - torch.log1p(torch.exp(u))


def ratios(b: Ragged, row: int) -> list[Tensor]:
    """log pi/pi_ref of each scored token."""
    return [p - q.detach() for p, q in zip(b.tokens("policy", row), b.tokens("reference", row), strict=True)]


def over_pairs(b: Ragged, logit: Callable[[int, int], Tensor]) -> Tensor:
    """Mean of -log sigmoid(logit(w, l)) over the pairs."""
    return average([-log_sigmoid(logit(w, l)) for w, l in b.pairs])


def agree(b: Ragged, method: Method, want: Tensor) -> None:
    """Value, and gradient at every token; nothing under the mask."""
    got = method(b.responses()).scalar
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    mine, theirs = (torch.autograd.grad(x, b.policy, retain_graph=True)[0] for x in (got, want))
    assert mine.isfinite().all()
    assert mine.dtype == torch.float64
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)
