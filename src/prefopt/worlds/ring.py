"""Eight Gaussian modes on a ring in the plane, as a diffusion model whose scores are known exactly.

A point is a latent [2, 1, 1], a network is called as a UNet of diffusers is, so scorers and trainer see nothing unusual.
The reward is a smooth bounded step that prefers the four modes on the right.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.captions import EncodedPrompt
from ..scoring.schedules import Schedule

MODES, RADIUS, DEVIATION = 8, 2.0, 0.15
STEPS = 1000
STEEPNESS = 3.0
CENTRES = torch.tensor(
    [[RADIUS * math.cos(a), RADIUS * math.sin(a)] for a in (2 * math.pi * (k + 0.5) / MODES for k in range(MODES))]
)
PREFERRED = CENTRES[:, 0] > 0
SHAPE = (2, 1, 1)


def schedule() -> Schedule:
    """Cosine: abar_t = cos^2(pi/2 (t + 1) / (T + 1))."""
    t = (torch.arange(STEPS, dtype=torch.float64) + 1) / (STEPS + 1)
    return Schedule("epsilon", STEPS, torch.cos(math.pi / 2 * t) ** 2)


def reward(images: Tensor, prompts: list[str]) -> Tensor:
    """[N] in (0, 1) of points [N, 2, 1, 1]: sigmoid(3 x_1)."""
    return torch.sigmoid(STEEPNESS * images[:, 0, 0, 0])


def score(x: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """grad log p_t(x) [N, 2] of the ring noised to signal, sigma [N]."""
    var = (signal * DEVIATION) ** 2 + sigma**2
    towards = signal[:, None, None] * CENTRES.to(x) - x[:, None]  # [N, modes, 2]
    responsible = torch.softmax(-towards.square().sum(2) / (2 * var[:, None]), 1)
    return (responsible[..., None] * towards).sum(1) / var[:, None]


class Exact(nn.Module):
    """The ring itself as a network that predicts noise."""

    def __init__(self) -> None:
        super().__init__()
        abar = schedule().alphas_cumprod
        assert abar is not None
        self.levels = nn.Parameter(torch.stack([abar.sqrt(), (1 - abar).sqrt()]).float(), requires_grad=False)

    def forward(self, noisy: Tensor, time: Tensor, **_: Any) -> tuple[Tensor]:
        signal, sigma = self.levels[:, time]
        return (-sigma[:, None, None, None] * score(noisy.flatten(1), signal, sigma).view_as(noisy),)


class Net(nn.Module):
    """A multilayer perceptron (3 x 128) of a point and its time."""

    def __init__(self, width: int = 128, frequencies: int = 4) -> None:
        super().__init__()
        self.frequencies = frequencies
        sizes = [3 + 2 * frequencies, width, width, width]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, noisy: Tensor, time: Tensor, **_: Any) -> tuple[Tensor]:
        s = time.to(noisy)[:, None] / STEPS
        waves = [f(math.pi * 2**k * s) for k in range(self.frequencies) for f in (torch.sin, torch.cos)]
        return (self.layers(torch.cat([noisy.flatten(1), s, *waves], 1)).view_as(noisy),)


class Points:
    """A data set of `count` draws without a caption."""

    def __init__(self, count: int):
        self.tokens = np.ones(count, dtype=int)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> EncodedPrompt:
        return EncodedPrompt(index, "", NO_CAPTION)


NO_CAPTION = {"text": torch.zeros(1, 1)}


def measure(points: Tensor) -> dict[str, float]:
    """Of points [N, 2]: mean reward, how many preferred modes hold at least 2 % of them (within three deviations), and
    the mean distance to the nearest mode."""
    far = torch.cdist(points.double(), CENTRES.double())
    distance, nearest = far.min(1)
    near = distance < 3 * DEVIATION
    shares = torch.stack([((nearest == k) & near).double().mean() for k in range(MODES)])
    return {
        "reward": float(reward(points[:, :, None, None].double(), []).mean()),
        "modes": float((shares[PREFERRED] >= 0.02).sum()),
        "all_modes": float((shares >= 0.02).sum()),
        "distance": float(distance.mean()),
    }
