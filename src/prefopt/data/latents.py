"""Latents and text embeddings, computed once: one small file per image and per caption, named by what it depends on.

A file's name is the SHA-256 of the weights that made it and of the image's bytes (or the caption), so that runs, epochs
and data sets share them, a killed run goes on where it stopped, and nothing stale is ever read. Latents are kept as
mean and standard deviation of their posterior, because training samples them anew in every epoch.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import PrefoptError
from ..files import cache_folder
from ..models.diffusion import ImageModel
from ..scoring.conditioning import AESTHETIC_SCORES, CONDITIONS, time_ids
from .example import Example
from .fields import short
from .images import image_of
from .rule import log


@dataclass(frozen=True)
class EncodedImages:
    """One caption and its k images, as the denoiser reads them."""

    index: int
    mean: Tensor  # [k, V, C, h, w] of V views: the image, and if asked the flipped image
    std: Tensor  # [k, V, C, h, w]
    condition: dict[str, Tensor]  # "text" [L, D], "pooled" [E], "time_ids" [6]
    pairs: tuple[tuple[int, int], ...]
    notes: Mapping[str, Any]
    held_out: bool = False
    captions: dict[str, Tensor] | None = None  # the same for each image's own caption [k, ...], in place of `condition`


@dataclass
class ImageSet:
    """Image examples whose latents and captions lie in the cache; made by `encode_examples`."""

    examples: list[Example]
    images: list[list[list[Path]]]  # example -> image -> view
    captions: list[Path]
    shared: dict[str, Tensor]  # conditions that are the same for all
    held_out: bool = False
    blank: tuple[int, ...] = ()  # [C, h, w] of a caption without images: it gets one of zeros
    own_captions: list[list[Path]] | None = None  # example -> image
    users: Sequence[Tensor] = ()  # [n, p, d] of each example: embeddings of its user, of which one is drawn
    tokens: np.ndarray = field(init=False)  # [n] cost of each example: its number of images

    def __post_init__(self) -> None:
        self.tokens = np.array([max(1, len(e.responses)) for e in self.examples])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> EncodedImages:
        latents = [[read_cached(view) for view in image] for image in self.images[index]]
        if latents:
            mean = torch.stack([torch.stack([v["mean"] for v in image]) for image in latents])
            std = torch.stack([torch.stack([v["std"] for v in image]) for image in latents])
        else:
            mean = std = torch.zeros(1, 1, *self.blank)
        condition, example = read_cached(self.captions[index]) | self.shared, self.examples[index]
        if self.users:
            condition["user"] = self.users[index]
        own = None if self.own_captions is None else self._own(self.own_captions[index])
        return EncodedImages(index, mean, std, condition, example.pairs, example.notes, self.held_out, own)

    def _own(self, paths: list[Path]) -> dict[str, Tensor]:
        each = [read_cached(path) | self.shared for path in paths]
        return {name: torch.stack([x[name] for x in each]) for name in each[0]}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what is trained on: latents, captions, pairs and annotations."""
        digest = hashlib.sha256()
        for example, images, caption in zip(self.examples, self.images, self.captions, strict=True):
            names = [caption.name, *(str(v.relative_to(v.parents[1])) for image in images for v in image)]
            digest.update(repr((names, example.pairs, sorted(example.notes.items()))).encode())
        for draws in self.users:
            digest.update(draws.contiguous().numpy().tobytes())
        if self.own_captions is not None:
            digest.update(repr([[path.name for path in paths] for paths in self.own_captions]).encode())
        return digest.hexdigest()


def encode_examples(
    examples: Sequence[Example],
    model: ImageModel,
    *,
    flip: bool = False,
    held_out: bool = False,
    cache: Path | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> ImageSet:
    """Encode what the cache does not hold yet; `flip`: the mirrored images too.

    Raises PrefoptError, naming file and row, for images that cannot be decoded and for latents that are not finite.
    """
    cache = cache or cache_folder("latents")
    images, wanted = _places(examples, model, cache, ("", "-flipped") if flip else ("",))
    for some in _batches(wanted, batch_size, progress, "images to latents"):
        pixels = torch.stack([_pixels(path, value, e, model.resolution) for path, value, e in some])
        for (path, _, example), mean, std in zip(some, *model.encode_images(pixels), strict=True):
            if not bool(torch.isfinite(mean).all() & torch.isfinite(std).all()):
                raise PrefoptError(f"{example.origin}: the VAE's latents are not finite; load the model in float32")
            _write(path, {"mean": mean, "std": std})
    captions = encode_captions([str(e.prompt) for e in examples], model, cache=cache, progress=progress)
    own = None
    if any(e.captions for e in examples):
        said = encode_captions([c for e in examples for c in e.captions], model, cache=cache, progress=progress)
        rest = iter(said)
        own = [[next(rest) for _ in e.captions] for e in examples]
    return ImageSet(list(examples), images, captions, same_for_all(model), held_out, model.latent_shape, own)


def encode_captions(
    captions: Sequence[str],
    model: ImageModel,
    *,
    cache: Path | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Path]:
    """Where the embeddings of each caption lie: {"text": [L, D], "pooled": [E]}; equal captions share a file."""
    encoders = {n: m for n, m in model.frozen.items() if n.startswith("text_encoder")}
    folder = (cache or cache_folder("latents")) / f"text-{fingerprint(encoders)[:16]}"
    paths = [folder / f"{_digest(c.encode())}.safetensors" for c in captions]
    wanted = dict(zip(paths, captions, strict=True))
    if cut := set(model.overlong(captions)):
        overlong = [caption for caption in captions if caption in cut]
        log.warning(
            "%d of %d captions are longer than any text encoder reads, and are cut there; the first: %s",
            len(overlong), len(captions), short(overlong[0], 80),
        )  # fmt: skip
    for some in _batches(list(wanted.items()), batch_size, progress, "captions to embeddings"):
        made = model.encode_captions([c for _, c in some])
        for n, (path, caption) in enumerate(some):
            if not all(bool(torch.isfinite(x[n]).all()) for x in made.values()):
                raise PrefoptError(f"the embedding of the caption {caption!r} is not finite; load the model in float32")
            _write(path, {name: x[n] for name, x in made.items()})
    return paths


def empty_condition(model: ImageModel, *, cache: Path | None = None) -> dict[str, Tensor]:
    """The condition of a dropped caption: the text encoders' answer to ""."""
    condition = read_cached(encode_captions([""], model, cache=cache, progress=False)[0])
    return condition | same_for_all(model, empty=True)


def same_for_all(model: ImageModel, empty: bool = False) -> dict[str, Tensor]:
    """The conditions that no caption changes; empty: those beside the empty caption, where a refiner's score is lower."""
    if "time_ids" not in CONDITIONS[model.kind]:
        return {}
    return {"time_ids": time_ids(model.resolution, AESTHETIC_SCORES[empty] if model.reads_score else None)}


def to_pixels(image: Any, resolution: int) -> Tensor:
    """[3, R, R] in [-1, 1] of a PIL image: shorter side resized to R (bilinear), centre cropped."""
    from PIL import Image

    width, height = image.size
    scale = resolution / min(width, height)
    size = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    image = image.convert("RGB").crop((left, top, left + resolution, top + resolution))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def fingerprint(parts: Mapping[str, nn.Module]) -> str:
    """SHA-256 over names, types and values of the weights of these modules, and of their configurations."""
    digest = hashlib.sha256()
    for part, module in sorted(parts.items()):
        digest.update(f"{part} {_settings(module)}".encode())
        for name, x in sorted(module.state_dict().items()):
            digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
            digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """The configuration without what says only where it came from and which version wrote it."""
    config = getattr(module, "config", {})
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    volatile = ("transformers_version", "dtype")
    return sorted((k, v) for k, v in values.items() if not k.startswith("_") and k not in volatile)


def _places(
    examples: Sequence[Example], model: ImageModel, cache: Path, views: Sequence[str]
) -> tuple[list[list[list[Path]]], list[tuple[Path, Any, Example]]]:
    """The file of every view of every image, and (file, image, example) of all of them, each once."""
    vae = {n: m for n, m in model.frozen.items() if n == "vae"}
    folder = cache / f"latents-{fingerprint(vae)[:16]}-{model.resolution}"
    wanted: dict[Path, tuple[Path, Any, Example]] = {}
    places = []
    for example in examples:
        names = [_digest(content_of(image, example)) for image in example.responses]
        row = [[folder / f"{name}{view}.safetensors" for view in views] for name in names]
        for image, paths in zip(example.responses, row, strict=True):
            wanted |= {p: (p, image, example) for p in paths if p not in wanted}
        places.append(row)
    return places, list(wanted.values())


def _pixels(path: Path, image: Any, example: Example, resolution: int) -> Tensor:
    """[3, R, R] of the view that belongs into this file."""
    pixels = to_pixels(image_of(image, example), resolution)
    return pixels.flip(-1) if path.stem.endswith("-flipped") else pixels


def content_of(value: Any, example: Example) -> bytes:
    """The bytes that decide how an image looks, without decoding it where that can be avoided."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, (str, Path)) and len(str(value)) < 4096:
        path = Path(example.file).parent / Path(value).expanduser()
        if path.is_file():
            return path.read_bytes()
    image = image_of(value, example)
    return f"{image.size}".encode() + image.tobytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _batches(items: list, size: int, progress: bool, name: str) -> Iterable[list]:
    """Batches of the items (file first) of which any file is not there yet.

    They are cut from all items, because rounding depends on the company in a batch: so a run that was killed here ends
    with the very latents of one that was not.
    """
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    batches = [b for b in batches if not all(path.exists() for path, *_ in b)]
    with tqdm(total=sum(map(len, batches)), desc=name, disable=not progress or not batches) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def read_cached(path: Path) -> dict[str, Tensor]:
    """What `encode_examples` or `encode_captions` left there."""
    from safetensors.torch import load_file

    return load_file(path)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Whole or not there, also when two processes write the same file; what is there stays."""
    from safetensors.torch import save

    if path.exists():
        return

    path.parent.mkdir(parents=True, exist_ok=True)
    data = save({name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()})
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(name, path)
