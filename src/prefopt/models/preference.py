"""CLIP-type preference models: exp(logit_scale) cos(picture, prompt), plain or knowing the noise level (2406.04314)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from ..errors import PrefoptError

MODULATION = "time_modulation.safetensors"
WIDTH = 256  # of the sinusoidal embedding of a time


class TimeModulation(nn.Module):
    """Shift, scale and gate of every block of a vision tower from the time; at its start the tower is what it was.

    sinusoidal (cos, then sin) -> Linear-SiLU-Linear; per block SiLU-Linear to (shift, scale, gate) of attention and of
    the MLP; a last one to (shift, scale) of the pooled state. Weights and biases start at 0, biases of gates at 1.
    """

    def __init__(self, width: int, blocks: int):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(blocks))
        self.pooled = nn.Linear(width, 2 * width)
        for layer in (*self.blocks, self.pooled):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for layer in self.blocks:
            gates: Any = layer.bias
            gates.data.view(6, width)[[2, 5]] = 1.0

    def forward(self, time: Tensor) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """Of times [n]: six [n, 1, width] for each block, and two [n, width]."""
        from diffusers.models.embeddings import get_timestep_embedding

        wave = get_timestep_embedding(time.float(), WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
        c = nn.functional.silu(self.embed(wave.to(self.pooled.weight.dtype)))
        return [layer(c)[:, None].chunk(6, -1) for layer in self.blocks], self.pooled(c).chunk(2, -1)


class PreferenceModel(nn.Module):
    """A CLIPModel as a scorer of pictures, its vision tower modulated by the time where it is step-aware."""

    def __init__(self, clip: Any, modulation: TimeModulation | None = None):
        super().__init__()
        self.clip, self.modulation = clip, modulation

    @classmethod
    def of(cls, clip: Any, step_aware: bool) -> PreferenceModel:
        """A fresh one: before training it scores as `clip` does, at all times."""
        vision = clip.config.vision_config
        return cls(clip, TimeModulation(vision.hidden_size, vision.num_hidden_layers) if step_aware else None)

    def forward(
        self, pixels: Tensor, words: Mapping[str, Tensor], group: Tensor | None = None, time: Tensor | None = None
    ) -> Tensor:
        """[R] scores of preprocessed pictures [R, 3, h, w] under prompts [G]; group [R]: whose, else one each.

        time [R] is what a step-aware model needs.
        """
        text = text_embedding(self.clip, words)
        seen = normalize(self.clip.visual_projection(self._pooled(pixels.to(text.dtype), time)), dim=-1)
        return self.clip.logit_scale.exp() * (seen * (text if group is None else text[group])).sum(-1)

    def _pooled(self, pixels: Tensor, time: Tensor | None) -> Tensor:
        tower = self.clip.vision_model
        if self.modulation is None:
            return tower(pixel_values=pixels).pooler_output
        if time is None:
            raise PrefoptError("a step-aware preference model needs the time of every picture")
        blocks, (shift, scale) = self.modulation(time)
        h = tower.pre_layrnorm(tower.embeddings(pixels))
        for layer, (shift1, scale1, gate1, shift2, scale2, gate2) in zip(tower.encoder.layers, blocks, strict=True):
            seen, _ = layer.self_attn(hidden_states=layer.layer_norm1(h) * (1 + scale1) + shift1, attention_mask=None)
            h = h + gate1 * seen
            h = h + gate2 * layer.mlp(layer.layer_norm2(h) * (1 + scale2) + shift2)
        return tower.post_layernorm(h[:, 0]) * (1 + scale) + shift

    def save(self, folder: Path) -> None:
        """A CLIPModel folder; of a step-aware model the modulation beside it."""
        self.clip.save_pretrained(folder)
        if self.modulation is not None:
            from safetensors.torch import save_file

            state = {k: x.detach().cpu().contiguous() for k, x in self.modulation.state_dict().items()}
            save_file(state, folder / MODULATION)


def load_modulation(clip: Any, place: str, who: str) -> TimeModulation:
    """What `save` left of a step-aware model. PrefoptError where it is not there or is not of this CLIPModel."""
    from safetensors.torch import load_file

    path = Path(place).expanduser() / MODULATION
    if not path.is_file():
        raise PrefoptError(f"{who}: {place} holds no {MODULATION}: it is no step-aware preference model")
    made = PreferenceModel.of(clip, step_aware=True).modulation
    assert made is not None
    try:
        made.load_state_dict(load_file(path))
    except Exception as e:
        raise PrefoptError(f"{who}: {path} does not fit its CLIPModel: {str(e).splitlines()[0]}") from None
    return made


def is_clip(folder: str | Path) -> bool:
    """Whether a folder holds a CLIPModel, by its configuration alone."""
    try:
        content = json.loads((Path(folder).expanduser() / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return content.get("model_type") == "clip" and "vision_config" in content


def text_embedding(clip: Any, words: Mapping[str, Tensor]) -> Tensor:
    """[n, D] normalised embeddings of tokens ("input_ids", "attention_mask" [n, L])."""
    pooled = clip.text_model(input_ids=words["input_ids"], attention_mask=words["attention_mask"]).pooler_output
    return normalize(clip.text_projection(pooled), dim=-1)


def as_clip_reads(pixels: Tensor, image_processor: Any) -> Tensor:
    """Pictures [n, 3, H, W] in [-1, 1] (a decoder's) as the image processor of CLIP, or one like it, would hand them on, in
    torch and with a gradient: clamped, resized (bicubic; the shorter side, or to a height and width), cropped to the
    centre where it says so, normalised."""
    size = image_processor.size
    x = (pixels.float() / 2 + 0.5).clamp(0, 1)
    height, width = x.shape[-2:]
    if side := size.get("shortest_edge"):
        short = min(height, width)
        target = (side * height // short, side * width // short)
    else:
        target = (size["height"], size["width"])
    if target != (height, width):
        x = interpolate(x, target, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    if getattr(image_processor, "do_center_crop", False):
        crop = image_processor.crop_size
        top, left = (target[0] - crop["height"]) // 2, (target[1] - crop["width"]) // 2
        x = x[..., top : top + crop["height"], left : left + crop["width"]]
    mean, std = (
        torch.tensor(v, device=x.device)[:, None, None] for v in (image_processor.image_mean, image_processor.image_std)
    )
    return (x - mean) / std
