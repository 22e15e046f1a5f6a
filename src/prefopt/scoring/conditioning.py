"""One call of a denoiser, whatever its kind: which argument the text, the pooled text and the sizes go to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import PrefoptError

Kind = Literal["sd", "sdxl", "sd3"]

CONDITIONS: dict[Kind, tuple[str, ...]] = {
    "sd": ("text",),
    "sdxl": ("text", "pooled", "time_ids"),
    "sd3": ("text", "pooled"),
}
"""What each kind is conditioned on: text [N, L, D], pooled [N, E] (SDXL, SD3), time_ids [N, 6] (SDXL; [N, 5] its refiner).

A UNet with a user branch (models/user_branch.py) reads "user" [N, p, d] too, through diffusers' door for image prompts.
"""


def check_condition(kind: Kind, condition: Mapping[str, Tensor], where: str, further: Iterable[str] = ()) -> None:
    """PrefoptError, beginning with `where`, if something that the model is conditioned on is not there."""
    for name in (*CONDITIONS[kind], *further):
        if name not in condition:
            raise PrefoptError(f"{where}: a {kind} model is conditioned on {name}, which is not there")


def predict(denoiser: nn.Module, kind: Kind, noisy: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
    """The network's answer [R, C, H, W] for noised latents [R, C, H, W] at times [R]; one condition per row.

    `denoiser` may be wrapped (DDP, FSDP): it is only called. Inputs are cast to the type of its parameters.
    """
    dtype = next(p.dtype for p in denoiser.parameters() if p.is_floating_point())
    text = condition["text"].to(dtype)
    noisy = noisy.to(dtype)
    user = {"image_embeds": [condition["user"].to(dtype)]} if "user" in condition else {}
    if kind == "sd3":
        pooled = condition["pooled"].to(dtype)
        out = denoiser(
            hidden_states=noisy,
            timestep=time.to(torch.promote_types(dtype, torch.float32)),  # bfloat16 rounds 997 to 996
            encoder_hidden_states=text,
            pooled_projections=pooled,
            return_dict=False,
        )
    elif kind == "sdxl":
        added = {"text_embeds": condition["pooled"].to(dtype), "time_ids": condition["time_ids"].to(dtype)} | user
        out = denoiser(noisy, time, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)
    else:
        more = {"added_cond_kwargs": user} if user else {}
        out = denoiser(noisy, time, encoder_hidden_states=text, return_dict=False, **more)
    return out[0]


def repeated(condition: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    """A condition without batch axis (the empty caption's) for each row of `like` [R, ...], on its device."""
    return {n: x.to(like.device).expand(len(like), *x.shape) for n, x in condition.items()}


def guided(
    denoiser: nn.Module,
    kind: Kind,
    noisy: Tensor,
    time: Tensor,
    condition: Mapping[str, Tensor],
    empty: Mapping[str, Tensor],
    guidance: float,
) -> Tensor:
    """The answer under classifier-free guidance [R, C, H, W]: unguided + guidance (conditional - unguided).

    empty: the condition of the empty caption, without batch axis. Both halves are one call of the network, and
    gradient flows through both; guidance 1 is the conditional answer alone.
    """
    if guidance == 1:
        return predict(denoiser, kind, noisy, time, condition)
    both = {n: torch.cat([empty[n].to(x).expand_as(x), x]) for n, x in condition.items()}
    free, told = predict(denoiser, kind, torch.cat([noisy, noisy]), torch.cat([time, time]), both).chunk(2)
    return free + guidance * (told - free)


AESTHETIC_SCORES = (6.0, 2.5)  # what SDXL's refiner is told of a picture, and in the empty branch of guidance


def time_ids(resolution: int, score: float | None = None) -> Tensor:
    """[6] SDXL's (original height, width, crop top, left, target height, width); officially (R,R,0,0,R,R).

    score: [5] of its refiner, which reads an aesthetic score instead of the target.
    """
    last = [resolution, resolution] if score is None else [score]
    return torch.tensor([resolution, resolution, 0, 0, *last], dtype=torch.float32)
