"""Per-token numbers from hidden states and an output head, fused and tiled: [tokens, vocabulary] never exists.

A tile of rows is projected, normalised in place and reduced to a number a token: log-probability, entropy, exact
KL(reference || policy), log sum_v p(v)^2. Losses are computed outside, once, from these numbers. What backward needs:

- frozen head: d(number)/d(hidden) does not depend on the loss, so it is computed while the tile is hot, K x H is
  kept, and backward only scales it: two products with the vocabulary instead of three, nothing recomputed;
- trainable head: the probabilities are kept if K x V fits KEEP_BYTES, else the tile is computed again.

Tiles are wide: cutting them to some hundred tokens costs 3 to 4 times the time of the bare products on a GPU.
On a CPU the tile's normalisation should stay in the cache instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import PrefoptError

TILE_ELEMENTS = {"cuda": 1 << 26, "cpu": 1 << 22}  # float32: 268 MB; 17 MB, half of a server's L3
KEEP_BYTES = {"cuda": 512 << 20, "cpu": 256 << 20}
NUMBERS = ("logps", "entropy", "token_kl", "log_collision")


@dataclass(frozen=True)
class Head:
    """logits = cap * tanh(scale * (hidden @ weight.T + bias) / cap), the tanh where the family caps (Gemma)."""

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    cap: float | None = None

    def detach(self) -> Head:
        return Head(self.weight.detach(), None if self.bias is None else self.bias.detach(), self.scale, self.cap)


@dataclass(frozen=True)
class Reference:
    """What another model says about the same K tokens: its last hidden states [K, H'] and its head."""

    hidden: Tensor
    head: Head | None  # None: the policy's own, without adapter

    @staticmethod
    def join(parts: Sequence[Reference]) -> Reference:
        """The same model on several sets of tokens."""
        return parts[0] if len(parts) == 1 else Reference(torch.cat([p.hidden for p in parts]), parts[0].head)


def token_numbers(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    want: Sequence[str] = ("logps",),
    reference: Reference | None = None,
    tile: int | None = None,
    keep_bytes: int | None = None,
) -> dict[str, Tensor]:
    """hidden [K, H], targets [K] -> one [K] tensor for each of `want` (of NUMBERS), float32 (float64 if hidden is).

    token_kl is the exact KL(reference || policy) with gradient into the policy; log_collision the logarithm of
    sum_v p(v)^2, the probability that two draws are the same word. tile: rows computed at a time.
    """
    device = hidden.device.type
    keep = KEEP_BYTES.get(device, KEEP_BYTES["cuda"]) if keep_bytes is None else keep_bytes
    rows = tile or max(1, TILE_ELEMENTS.get(device, TILE_ELEMENTS["cuda"]) // len(head.weight))
    told = None if reference is None else reference.head
    if told is not None and len(told.weight) != len(head.weight):
        raise PrefoptError(
            f"the exact KL compares whole distributions: the policy's vocabulary has {len(head.weight)} words, the "
            f"reference's {len(told.weight)}; take a reference with the same output head (reference.path)"
        )
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    weight = head.weight.to(dtype)
    spec = _Spec(tuple(want), rows, keep, head.scale, head.cap, reference)
    with torch.autocast(device, enabled=False):
        out = _TokenNumbers.apply(hidden.to(dtype), weight, head.bias, targets, spec)
    return dict(zip(spec.want, out, strict=True))


@dataclass(frozen=True)
class _Spec:
    want: tuple[str, ...]
    rows: int
    keep_bytes: int
    scale: float
    cap: float | None
    reference: Reference | None

    def tiles(self, k: int) -> Iterator[slice]:
        return (slice(i, min(i + self.rows, k)) for i in range(0, k, self.rows))

    def room(self, hidden: Tensor, weight: Tensor, spare: bool) -> Tensor:
        """[n, rows, V] what the tiles of one pass are computed in: their own numbers, the reference's, and a spare one.

        One block for all tiles: blocks that come and go between activations leave holes that nothing gives back.
        """
        told = "token_kl" in self.want
        shape = 1 + told + (spare or told), min(self.rows, len(hidden)), len(weight)
        return hidden.new_empty(shape, dtype=torch.promote_types(hidden.dtype, torch.float32))


class _TokenNumbers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, spec: _Spec) -> Any:
        k, precision = len(hidden), torch.promote_types(hidden.dtype, torch.float32)
        out = {name: torch.zeros(k, dtype=precision, device=hidden.device) for name in spec.want}
        head_trains = weight.requires_grad or (bias is not None and bias.requires_grad)
        frozen = hidden.requires_grad and not head_trains
        slopes = {name: torch.empty_like(hidden) for name in spec.want} if frozen else {}
        fits = k * len(weight) * hidden.element_size() <= spec.keep_bytes
        keep = head_trains and fits and spec.want == ("logps",) and spec.cap is None
        kept = hidden.new_empty(k, len(weight)) if keep else None
        shared = kept is not None and kept.dtype == precision  # the tiles of `kept` are computed in it
        room = kept[None] if kept is not None and shared else spec.room(hidden, weight, spare=frozen)
        for t in spec.tiles(k):
            tile = _Tile.of(hidden[t], weight, bias, targets[t], spec, t, room[:, t] if shared else room)
            for name in spec.want:
                out[name][t] = tile.value(name)
            for name, slope in slopes.items():
                ones = torch.ones(t.stop - t.start, dtype=precision, device=hidden.device)
                slope[t] = _mm(tile.slope({name: ones}).to(weight.dtype), weight)
            if kept is not None:
                kept[t] = tile.logp.exp_()  # where they share memory this copies nothing
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.spec, ctx.slopes, ctx.kept = spec, slopes, kept
        return tuple(out[name] for name in spec.want)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, weight, bias, targets = ctx.saved_tensors
        spec: _Spec = ctx.spec
        g = dict(zip(spec.want, grads, strict=True))
        if ctx.slopes:
            total = sum(g[name][:, None].to(s.dtype) * s for name, s in ctx.slopes.items())
            return total, None, None, None, None
        probs, ctx.kept = ctx.kept, None  # used up: a second backward computes the tiles again
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = grad_bias = None
        tiles = [slice(0, len(hidden))] if probs is not None else list(spec.tiles(len(hidden)))
        room = spec.room(hidden, weight, spare=True) if probs is None else probs
        for t in tiles:
            if probs is not None:
                slope = probs.mul_(-spec.scale * g["logps"][:, None])
                slope[torch.arange(len(targets), device=targets.device), targets] += spec.scale * g["logps"].to(
                    slope.dtype
                )
            else:
                tile = _Tile.of(hidden[t], weight, bias, targets[t], spec, t, room)
                slope = tile.slope({name: x[t] for name, x in g.items()})
            if bias is not None and ctx.needs_input_grad[2]:
                total = slope.sum(0, dtype=torch.promote_types(slope.dtype, torch.float32))
                grad_bias = total if grad_bias is None else grad_bias.add_(total)
            slope = slope.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[t] = _mm(slope, weight)
            if ctx.needs_input_grad[1]:
                grad_weight = _add_mm(grad_weight, slope.t(), hidden[t])
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight) if grad_weight is None else grad_weight.to(weight.dtype)
        if bias is not None and ctx.needs_input_grad[2]:
            grad_bias = torch.zeros_like(bias) if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None


@dataclass
class _Tile:
    """Normalised log-probabilities of some rows [t, V], and what the wanted numbers need beside them."""

    logp: Tensor
    targets: Tensor
    spec: _Spec
    spare: Tensor  # [t, V] memory, where the room has any
    norm: Tensor | None = None  # [t, 1] log-sum-exp: gives back the capped logits
    reference: Tensor | None = None  # [t, V] log-probabilities of the reference; once used, its probabilities
    used: bool = False

    @staticmethod
    def of(
        h: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, spec: _Spec, rows: slice, room: Tensor
    ) -> _Tile:
        """room: see `_Spec.room`; the next tile is computed in the same memory."""
        room = room[:, : len(h)]
        logits = _logits(h, weight, bias, spec.scale, spec.cap, room[0])
        norm = logits.logsumexp(-1, keepdim=True) if spec.cap is not None else None
        reference = None
        if "token_kl" in spec.want:
            assert spec.reference is not None, "token_kl is computed against a reference"
            other = spec.reference.head
            assert other is not None, "the entry fills in the policy's own head"
            hidden = spec.reference.hidden[rows].to(other.weight.dtype)
            reference = _logits(hidden, other.weight, other.bias, other.scale, other.cap, room[1])
            reference = torch.log_softmax(reference, -1, out=reference)
        return _Tile(torch.log_softmax(logits, -1, out=logits), targets, spec, room[-1], norm, reference)

    def value(self, name: str) -> Tensor:
        """[t]; token_kl before any slope of it."""
        if name == "logps":
            return self.logp.gather(1, self.targets[:, None])[:, 0]
        if name == "entropy":
            return -_expected(self.logp.exp(), self.logp.clone()).sum(-1)
        if name == "log_collision":
            return (2 * self.logp).logsumexp(-1)
        assert self.reference is not None and not self.used
        gap = torch.sub(self.reference, self.logp, out=self.spare)
        return _expected(self.told(), gap).sum(-1)

    def told(self) -> Tensor:
        """[t, V] probabilities of the reference, in place of their logarithms."""
        assert self.reference is not None
        if not self.used:
            self.reference.exp_()
        self.used = True
        return self.reference

    def slope(self, g: dict[str, Tensor]) -> Tensor:
        """d(sum of g * number)/d(projection) [t, V], before head scale and softcap; in the spare memory."""
        p = torch.exp(self.logp, out=self.spare)
        surprise = _expected(p, self.logp + self.value("entropy")[:, None]) if "entropy" in g else None
        on_p = [sign * g[name] for name, sign in (("logps", -1), ("token_kl", 1), ("log_collision", -2)) if name in g]
        total = p.mul_(torch.stack(on_p).sum(0)[:, None]) if on_p else p.zero_()
        if surprise is not None:
            total.addcmul_(surprise, -g["entropy"][:, None])
        if "log_collision" in g:
            total.addcmul_(torch.softmax(2 * self.logp, -1), 2 * g["log_collision"][:, None])
        if "logps" in g:
            total.scatter_add_(1, self.targets[:, None], g["logps"][:, None])
        if "token_kl" in g:
            total.addcmul_(self.told(), -g["token_kl"][:, None])
        if self.norm is not None:
            assert self.spec.cap is not None
            total *= 1 - ((self.logp + self.norm) / self.spec.cap).square()
        return total.mul_(self.spec.scale) if self.spec.scale != 1.0 else total


def _expected(p: Tensor, x: Tensor) -> Tensor:
    """p * x [t, V], in x's memory; what has probability zero counts nothing, though its logarithm be infinite."""
    return x.mul_(p).masked_fill_(p == 0, 0.0)


def _logits(h: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float | None, room: Tensor) -> Tensor:
    z = _mm(h, weight.t(), room)
    if bias is not None:
        z += bias
    if scale != 1.0:
        z *= scale
    return z if cap is None else z.div_(cap).tanh_().mul_(cap)


def _mm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b in float32 (float64): where the device can, a half-precision product is not rounded on its way out."""
    if a.dtype in (torch.float32, torch.float64):
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a, b).float() if out is None else out.copy_(torch.mm(a, b))


def _add_mm(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b, in total's memory."""
    if total is None:
        return _mm(a, b)
    return total.addmm_(a, b) if total.dtype == a.dtype else total.add_(_mm(a, b))
