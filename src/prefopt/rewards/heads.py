"""Scorers that are a small head on a frozen encoder: aesthetics on CLIP's image embedding, ImageReward on BLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PrefoptError, first_line
from .images import ImageScorer, image_embedding, linear_layers, load_clip, load_transformer

HEADS = ("head.safetensors", "head.pth", "head.pt")


class WithHead(nn.Module):
    """An encoder and its head: linear layers without activations between them (dropout is for training only)."""

    def __init__(self, encoder: Any, head: nn.Sequential):
        super().__init__()
        self.encoder, self.head = encoder, head


class Aesthetic(ImageScorer):
    """A linear MLP (768-1024-128-64-16-1) on the normalised CLIP image embedding, about 1 to 10; prompts are not read.

    The head is `head.safetensors` (or .pth) beside the CLIPModel, or `head=FILE`.
    """

    kind = "aesthetic"
    options = ("processor", "head")
    model: WithHead

    def load(self, place: str) -> Any:
        clip = load_clip(place, self.name)
        return WithHead(clip, _head(self, place, clip.config.projection_dim))

    def values(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self.model.head(image_embedding(self.model.encoder, pixels)).squeeze(-1)


class ImageReward(ImageScorer):
    """(head(text state at [CLS], which attends to the picture) - mean) / std (2304.05977), about N(0, 1).

    A BlipForImageTextRetrieval folder whose text encoder reads the picture, its head beside it or `head=FILE`; mean and
    std are the published model's unless given.
    """

    kind = "imagereward"
    options = ("processor", "head", "mean", "std")
    WORDS = 35  # tokens of a prompt that are read
    model: WithHead

    def load(self, place: str) -> Any:
        from transformers import BlipForImageTextRetrieval

        self.mean, self.std = (self._number(k, v) for k, v in (("mean", 0.16717), ("std", 1.0333)))
        if not self.std > 0:
            raise PrefoptError(f"{self.name}: std must be greater than 0")
        blip = load_transformer(BlipForImageTextRetrieval, place, self.name, "blip")
        return WithHead(blip, _head(self, place, blip.config.text_config.hidden_size))

    def _number(self, key: str, usual: float) -> float:
        try:
            return float(self.given.get(key, usual))
        except ValueError:
            raise PrefoptError(f"{self.name}: {key} is no number") from None

    def values(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        blip: Any = self.model.encoder
        longest = min(self.WORDS, blip.config.text_config.max_position_embeddings)
        words = self.processor.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.device)
        seen = blip.vision_model(pixel_values=pixels.to(blip.dtype))[0]
        said = blip.text_encoder(
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        )
        return (self.model.head(said[0][:, 0]).squeeze(-1) - self.mean) / self.std


def _head(scorer: ImageScorer, place: str, width: int) -> nn.Sequential:
    """The head's layers. PrefoptError where it is not there or does not fit what it stands on."""
    path = _head_file(scorer, place)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise PrefoptError(f"{scorer.name}: the head {path} cannot be read: {first_line(e)}") from None
    layers = list(linear_layers({k: x.float() for k, x in state.items()}))
    widths = [width, *(layer.out_features for layer in layers)]
    if [layer.in_features for layer in layers] != widths[:-1] or widths[-1] != 1:
        shapes = ", ".join(f"{layer.in_features}-{layer.out_features}" for layer in layers) or "none"
        raise PrefoptError(
            f"{scorer.name}: the head {path} has the linear layers {shapes}; it must lead from {width} numbers to 1"
        )
    return nn.Sequential(*layers)


def _head_file(scorer: ImageScorer, place: str) -> Path:
    if "head" in scorer.given:
        found = Path(scorer.given["head"]).expanduser()
        if not found.is_file():
            raise PrefoptError(f"{scorer.name}: there is no file {found}")
        return found
    for name in HEADS:
        local = Path(place).expanduser() / name
        if local.is_file():
            return local
    raise PrefoptError(f"{scorer.name}: {place} has no head ({', '.join(HEADS)}); give head=FILE")
