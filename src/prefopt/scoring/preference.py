"""Scores of pictures by a preference model that is trained: of the pictures as they are, or as predicted from noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..models.diffusion import ImageModel
from ..models.preference import as_clip_reads
from ..objectives.scores import Scores
from .base import PREDICTED, Draw, Needs, Scored, Shapes, moved
from .conditioning import guided
from .denoising import DenoisingScorer, ImageBatch, joined_notes
from .modes import placed
from .schedules import noised, split


@dataclass(frozen=True)
class PictureExample:
    """One prompt with k pictures as the preference model reads them."""

    index: int
    prompt: str
    pixels: Tensor  # [k, 3, h, w] preprocessed
    pairs: Sequence[tuple[int, int]]
    notes: Mapping[str, Any]


@dataclass
class PictureBatch:
    """G prompts with R pictures in all: preprocessed pixels, or latents that are noised first."""

    words: dict[str, Tensor]  # "input_ids", "attention_mask" [G, L]
    notes: dict[str, Tensor]
    pixels: Tensor | None = None  # [R, 3, h, w]
    images: ImageBatch | None = None
    filler: bool = False

    @property
    def size(self) -> int:
        """What it costs: pictures."""
        return len(self.notes["group"])

    def to(self, device: torch.device | str) -> PictureBatch:
        return moved(self, device)

    def counts(self) -> dict[str, Tensor]:
        """One number a picture."""
        return {"responses": torch.ones(self.size, 1, device=self.notes["group"].device)}


@dataclass
class Predicted:
    """What a frozen pipeline predicts of pictures at the noise level of their batch (2406.04314).

    x0hat from one guided answer at z_t = signal z_0 + sigma eps, u + guidance (c - u), decoded.
    """

    model: ImageModel
    draws: DenoisingScorer  # how pictures are drawn and noised
    guidance: float = 5.0

    @torch.no_grad()
    def __call__(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Pixels [R, 3, H, W], about -1 to 1, and the times [R]."""
        group = batch.notes["group"]
        net = placed(self.model.denoiser, batch.latents.device)
        signal, sigma = batch.signal.float()[group], batch.sigma.float()[group]
        seen = noised(batch.latents, batch.noise[group], signal, sigma)
        time = batch.time[group]
        condition = {n: x[group] for n, x in batch.condition.items()}
        answer = guided(net, self.model.kind, seen, time, condition, self.draws.empty, self.guidance)
        clean, _ = split(self.model.schedule.prediction, answer.float(), seen, signal, sigma)
        return self.model.decode_latents(clean), time


class PreferenceScorer:
    """The `Scorer` of preference models: "reward" of every picture under its prompt.

    words      prompts -> token ids and mask
    read       the image processor of the model
    predicted  makes the pictures of a step-aware model's training; its batches are of latents
    """

    def __init__(
        self,
        words: Callable[[Sequence[str]], Mapping[str, Tensor]],
        read: Any,
        *,
        notes: Sequence[str] = (),
        predicted: Predicted | None = None,
    ):
        self.words, self.read, self.notes, self.predicted = words, read, set(notes), predicted

    def offers(self) -> set[str]:
        own = {f"noising:{PREDICTED}"} if self.predicted else set()
        return {"scores:reward", "notes:group", *(f"notes:{n}" for n in self.notes)} | own

    def shapes(self, needs: Needs) -> Shapes:
        """A preference model has no features."""
        return {}

    def collate(self, draws: Sequence[Draw]) -> PictureBatch:
        """Tokens of the prompts beside their pictures."""
        examples = [d.example for d in draws]
        if self.predicted is not None:
            images = self.predicted.draws.collate([d._replace(example=d.example.encoded) for d in draws])
            return PictureBatch(self._words(examples), images.notes, images=images)
        notes = joined_notes(examples, [len(e.pixels) for e in examples])
        return PictureBatch(self._words(examples), notes, torch.cat([e.pixels for e in examples]))

    def _words(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        found = self.words([e.prompt for e in examples])
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def score(self, model: nn.Module, batch: PictureBatch, needs: Needs, grad: bool = True) -> Scored:
        """{"responses": {"reward": [R, 1]}}"""
        if not grad:
            return {}
        pixels, time = batch.pixels, None
        if self.predicted is not None:
            assert batch.images is not None
            decoded, time = self.predicted(batch.images)
            pixels = as_clip_reads(decoded, self.read)
        values = model(pixels, batch.words, group=batch.notes["group"], time=time)[:, None]
        return {"responses": {"reward": Scores(values, torch.ones_like(values))}}


@dataclass(frozen=True)
class LatentExample:
    """One prompt with the latents of its pictures."""

    index: int
    prompt: str
    encoded: Any  # data.latents.EncodedImages


@dataclass
class WithPrompts:
    """Latents with their prompts beside them, as training data."""

    latents: Any  # data.latents.ImageSet
    tokens: Any = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.latents.tokens

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> LatentExample:
        return LatentExample(index, str(self.latents.examples[index].prompt), self.latents[index])
