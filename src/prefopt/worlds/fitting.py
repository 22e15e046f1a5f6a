"""Pretraining of the image worlds' models: one cycle of AdamW, and denoising of captioned latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..models.diffusion import ImageModel
from ..scoring.conditioning import CONDITIONS, predict, time_ids
from ..scoring.schedules import noised, target


def fit_denoiser(
    model: ImageModel,
    latents: tuple[Tensor, Tensor],
    said: Tensor,
    captions: Sequence[str],
    generator: torch.Generator,
    *,
    steps: int,
    batch: int,
    rate: float,
    dropout: float,
    progress: bool,
    name: str,
    weight: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Trains the denoiser on latents (mean, std [N, C, h, w]) under the captions numbered `said` [N]; the weights
    kept are a moving average. Returns the last mean error per element.

    dropout  share of empty captions
    weight   signal-to-noise ratios [R] -> what each squared error counts; None: all count the same
    """
    net = model.denoiser.requires_grad_(True).to(memory_format=torch.channels_last).train()
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    mean, std = latents
    conditions = model.encode_captions([*captions, ""])
    conditions["time_ids"] = time_ids(model.resolution).expand(len(captions) + 1, 6)
    history: list[float] = []
    for step in optimised(net, steps, rate, progress, name):
        rows = torch.randint(len(mean), (batch,), generator=generator)
        clean = mean[rows] + std[rows] * torch.randn(mean[rows].shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        level = model.schedule.level(torch.stack([model.schedule.draw(generator) for _ in rows]))
        signal, sigma = level.signal.float(), level.sigma.float()
        empty = torch.rand(batch, generator=generator) < dropout
        caption = torch.where(empty, len(captions), said[rows])
        condition = {n: conditions[n][caption] for n in CONDITIONS[model.kind]}
        answer = predict(net, model.kind, noised(clean, noise, signal, sigma), level.time, condition)
        error = (answer - target(model.schedule.prediction, clean, noise, signal, sigma)).square().mean((1, 2, 3))
        step((error if weight is None else error * weight((signal / sigma).square())).mean())
        average.update_parameters(net)
        history.append(float(error.detach().mean()))
    net.load_state_dict(average.module.state_dict())
    net.requires_grad_(False).to(memory_format=torch.contiguous_format).eval()
    return float(np.mean(history[-50:]))


def to_pixels(pictures: np.ndarray) -> Tensor:
    """[N, H, W, 3] uint8 -> [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def optimised(net: nn.Module, steps: int, rate: float, progress: bool, name: str) -> Iterator:
    """`steps` times a function that takes the loss and makes one AdamW step (one cycle of the rate)."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    for _ in tqdm(range(steps), desc=name, disable=not progress):
        yield step
