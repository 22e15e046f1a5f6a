"""Weights of tokens read from inside a model: learned from hidden states, or made of activations (SparsePO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

GROUPS = ("mlp", "attn", "resid", "logits")
"""Groups of activations, in the order in which `activation_group` numbers them."""

Start = Literal["positive", "official"]


class LayersMask(nn.Module):
    """ReLU(sum_l a_l ReLU(w_l . LN(H_l) + b_l)): hidden states [R, L, T, D] -> [R, T] in [0, inf).

    start: positive (a_l = 1/L, so that most of a fresh mask lives), official (normal with deviation 0.02: about half of
    it is dead, and a dead mask has no gradient).
    """

    def __init__(self, layers: int, width: int, start: Start = "positive"):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.w = nn.Parameter(_start(torch.empty(layers, width), start))
        self.b = nn.Parameter(_start(torch.empty(layers), start, width))
        self.mixer = nn.Parameter(torch.full((layers,), 1 / layers))
        if start == "official":
            nn.init.normal_(self.mixer, std=0.02)

    def forward(self, hidden: Tensor) -> Tensor:
        """w . LN(h) = (v . h - mean(h) sum(v)) / deviation(h) + w . bias with v = w * gain: no copy of h is made."""
        v = self.w * self.norm.weight
        variance, mean = torch.var_mean(hidden, -1, correction=0)
        z = (torch.einsum("rltd,ld->rlt", hidden, v) - mean * v.sum(-1)[:, None]) * (variance + self.norm.eps).rsqrt()
        s = torch.relu(z + (self.w @ self.norm.bias + self.b)[:, None])
        return torch.relu(torch.einsum("rlt,l->rt", s, self.mixer))


class LastMask(nn.Module):
    """ReLU(w . H_L + b): of the last layer alone, without a norm."""

    def __init__(self, width: int, start: Start = "positive"):
        super().__init__()
        self.w = nn.Parameter(_start(torch.empty(width), start))
        self.b = nn.Parameter(_start(torch.empty(()), start, width))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.relu(hidden[:, -1] @ self.w + self.b)


def _start(x: Tensor, start: Start, width: int | None = None) -> Tensor:
    """Weights [..., D], or the biases of units that read `width` numbers."""
    if start == "official":
        return nn.init.normal_(x, std=0.02) if width is None else nn.init.zeros_(x)
    bound = (width or x.shape[-1]) ** -0.5
    return nn.init.uniform_(x, -bound, bound)


def activation_mask(activations: Tensor, group: Tensor, count: Tensor, of: Sequence[str] = GROUPS) -> Tensor:
    """MaPO: [R, J, T] mean activation of each hook, [J] its group -> mask [R, T] in [0, 1], 0 where count [R, T] is 0.

    Each hook goes from 0 to 1 over the scored tokens of a response (1 throughout where it is constant); mean over the
    hooks of a group, then over the groups `of`.
    """
    big, scored = torch.finfo(activations.dtype).max, count[:, None] > 0
    low = torch.where(scored, activations, big).amin(-1, keepdim=True)
    high = torch.where(scored, activations, -big).amax(-1, keepdim=True)
    varies = high > low
    x = torch.where(varies, (activations - low) / torch.where(varies, high - low, 1.0), 1.0)
    used = torch.ones_like(group) if set(of) == set(GROUPS) else sum(group == GROUPS.index(g) for g in of)
    share = used / (group[:, None] == group).sum(1)  # the hooks of a group share its weight
    return torch.where(count > 0, torch.einsum("rjt,j->rt", x, (share / share.sum()).to(x)), 0.0)
