"""Scorers of pictures: (images, prompts) -> one number each, higher is better, without gradient.

`KIND:FOLDER` names one, with a folder (or hub name) that transformers loads; `,key=value` behind it are its options. Each
is a reward too, so that it stands wherever a reward does. All read pictures and prompts with the folder's own processor.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..data.images import load_image
from ..data.latents import fingerprint
from ..errors import PrefoptError, first_line
from ..models.damage import refuse_damaged
from ..models.preference import text_embedding

SCORERS: dict[str, type[ImageScorer]] = {}
BATCH = 32


class ImageScorer:
    """One scorer, loaded. `published` is the hub name that KIND alone stands for."""

    kind: ClassVar[str]
    published: ClassVar[str] = ""
    options: ClassVar[tuple[str, ...]] = ("processor",)  # what may stand behind the folder

    def __init__(self, place: str, **options: str):
        """place: a folder or hub name; processor: another one's, where it has none. PrefoptError if it cannot be read."""
        self.place, self.given = place, options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = load_processor(options.get("processor", place), self.name)
        self.model: nn.Module = self.load(place).requires_grad_(False).eval().to(self.device)

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):
            SCORERS[cls.kind] = cls

    @property
    def name(self) -> str:
        return ",".join([f"{self.kind}:{self.place}", *(f"{k}={v}" for k, v in self.given.items())])

    @property
    def identity(self) -> str:
        """What its answers depend on."""
        return f"{self.kind} {self.given} {fingerprint({'model': self.model})} {self.processor}"

    def load(self, place: str) -> Any:
        """The network: what `values` asks."""
        raise NotImplementedError

    def values(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """[n] of preprocessed pictures and their prompts."""
        raise NotImplementedError

    def preprocess(self, images: Sequence[Any]) -> Tensor:
        """[n, 3, h, w] as the network reads pictures (PIL images, or what `load_image` takes)."""
        opened = [i.convert("RGB") if hasattr(i, "convert") else load_image(i) for i in images]
        return self.processor.image_processor(opened, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def score(self, images: Sequence[Any], prompts: Sequence[str]) -> list[float]:
        """One number for each picture under its prompt."""
        if len(images) != len(prompts):
            raise PrefoptError(f"{self.name}: {len(images)} images for {len(prompts)} prompts; give one prompt each")
        found: list[float] = []
        for start in range(0, len(images), BATCH):
            pixels = self.preprocess(images[start : start + BATCH])
            values = self.values(pixels.to(self.device), list(prompts[start : start + BATCH]))
            found += values.double().cpu().tolist()
        return found

    def __call__(self, prompts: Sequence[str], responses: Sequence[Any]) -> list[float]:
        """As a reward."""
        return self.score(responses, prompts)


class ClipType(ImageScorer):
    """A CLIPModel: what a picture and its prompt have in common."""

    def load(self, place: str) -> Any:
        return load_clip(place, self.name)

    def values(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        words = clip_words(self.processor.tokenizer, self.model, prompts).to(self.device)
        image = self.embed(pixels)
        return self.scaled((image * text_embedding(self.model, words)).sum(-1))

    def embed(self, pixels: Tensor) -> Tensor:
        """[n, D] normalised embeddings of preprocessed pictures."""
        return image_embedding(self.model, pixels)

    def scaled(self, cosine: Tensor) -> Tensor:
        """The score of a cosine [n]."""
        raise NotImplementedError


class ClipScore(ClipType):
    """100 max(cos, 0) (2104.08718, as torchmetrics scales it)."""

    kind, published = "clip-score", "openai/clip-vit-large-patch14"

    def scaled(self, cosine: Tensor) -> Tensor:
        return 100 * cosine.clamp(min=0)


class PickScore(ClipType):
    """exp(logit_scale) cos (2305.01569): differences are logits of "is preferred". Also what clip-preference trains."""

    kind, published = "pickscore", "yuvalkirstain/PickScore_v1"

    def scaled(self, cosine: Tensor) -> Tensor:
        return self.model.logit_scale.exp() * cosine  # type: ignore[operator]


class Hps(ClipType):
    """100 cos of its own CLIP (2306.09341)."""

    kind = "hpsv2"

    def scaled(self, cosine: Tensor) -> Tensor:
        return 100 * cosine


def load_scorer(spec: str) -> ImageScorer:
    """The scorer that `KIND:FOLDER[,key=value]` names, or KIND alone where there is a published one.

    Raises PrefoptError for an unknown kind or option, and for a folder that does not hold such a model.
    """
    kinds = scorer_kinds()
    kind, _, rest = spec.partition(":")
    if kind not in kinds:
        close = difflib.get_close_matches(kind, kinds, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(sorted(kinds))}"
        raise PrefoptError(f"scorer {spec!r}: no kind '{kind}'; {hint}")
    place, *items = rest.split(",")
    options = dict(item.partition("=")[::2] for item in items)
    made = kinds[kind]
    for key, value in options.items():
        if key not in made.options or not value:
            raise PrefoptError(
                f"scorer {spec!r}: '{key}' is no option; there are {', '.join(made.options)}, each key=value"
            )
    if not place and not made.published:
        raise PrefoptError(f"scorer {spec!r}: name a folder, {kind}:FOLDER")
    return made(place or made.published, **options)


def names_scorer(spec: str) -> bool:
    """Whether a specification is one of these, and not a function's or a folder's."""
    return spec.partition(":")[0] in scorer_kinds() and (":" in spec or not Path(spec).expanduser().exists())


def scorer_kinds() -> Mapping[str, type[ImageScorer]]:
    """Every kind of scorer, by name; those of other files register when they are imported."""
    from . import heads, step_aware  # noqa: F401

    return SCORERS


# ------------------------------------------------------------------------------------------------ CLIP by parts
def load_clip(place: str, who: str) -> Any:
    """A CLIPModel, whole. Raises PrefoptError for anything else."""
    from transformers import CLIPModel

    return load_transformer(CLIPModel, place, who, "clip")


def load_transformer(model: Any, place: str, who: str, kind: str) -> Any:
    """A transformers model of one architecture with all its weights."""
    from transformers import AutoConfig

    place = _place(place, who)
    try:
        config = AutoConfig.from_pretrained(place)
        if config.model_type != kind:
            raise PrefoptError(f"{who}: {place} holds a {config.model_type} model, expected {kind} ({model.__name__})")
        made, told = model.from_pretrained(place, output_loading_info=True, ignore_mismatched_sizes=True)
    except PrefoptError:
        raise
    except Exception as e:  # transformers raises a dozen types for what it cannot read
        raise PrefoptError(f"{who}: {place} cannot be loaded as a {model.__name__}: {first_line(e, 200)}") from None
    if told["missing_keys"]:
        lacking = ", ".join(sorted(told["missing_keys"])[:3])
        raise PrefoptError(f"{who}: {place} lacks weights ({lacking}); its scores would be random")
    if told["mismatched_keys"]:
        names = ", ".join(sorted(str(key[0]) for key in told["mismatched_keys"])[:3])
        raise PrefoptError(f"{who}: {place} has weights of other shapes than its config.json says ({names})")
    refuse_damaged(made, f"{who}: {place}")
    return made


def _place(place: str, who: str) -> str:
    """A folder, or a hub name. PrefoptError for a path that leads nowhere."""
    folder = Path(place).expanduser()
    if not folder.is_dir() and place.startswith((".", "/", "~")):
        raise PrefoptError(f"{who}: there is no folder {place}")
    return str(folder) if folder.is_dir() else place


def load_processor(place: str, who: str) -> Any:
    """Image processor and tokenizer of a folder."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    place = _place(place, who)
    try:
        found = AutoProcessor.from_pretrained(place)
        if hasattr(found, "image_processor") and hasattr(found, "tokenizer"):
            return found
        return _Both(AutoImageProcessor.from_pretrained(place), AutoTokenizer.from_pretrained(place))
    except Exception as e:
        raise PrefoptError(
            f"{who}: {place} has no processor (how pictures and prompts are read): {first_line(e, 200)}. Save one with it, "
            "or say processor=FOLDER"
        ) from None


class _Both:
    """A processor of a folder that holds its halves."""

    def __init__(self, image_processor: Any, tokenizer: Any):
        self.image_processor, self.tokenizer = image_processor, tokenizer

    def __repr__(self) -> str:
        return f"{self.image_processor} {self.tokenizer}"


def clip_words(tokenizer: Any, model: Any, prompts: Sequence[str]) -> Any:
    """Token ids and mask of prompts, cut to what the text tower reads (77)."""
    longest = model.config.text_config.max_position_embeddings
    return tokenizer(list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")


def image_embedding(model: Any, pixels: Tensor) -> Tensor:
    """[n, D] normalised."""
    pooled = model.vision_model(pixel_values=pixels.to(model.dtype)).pooler_output
    return nn.functional.normalize(model.visual_projection(pooled), dim=-1)


def linear_layers(state: Mapping[str, Tensor]) -> Iterator[nn.Linear]:
    """The linear layers of a head's weights in their order, whatever its modules are called."""

    def place(key: str) -> list[tuple[bool, int, str]]:
        return [(not w.isdigit(), int(w) if w.isdigit() else 0, w) for w in key.split(".")]

    for key in sorted((k for k, x in state.items() if k.endswith("weight") and x.dim() == 2), key=place):
        out, width = state[key].shape
        bias = state.get(key.removesuffix("weight") + "bias")
        layer = nn.Linear(width, out, bias=bias is not None)
        layer.load_state_dict({"weight": state[key]} | ({} if bias is None else {"bias": bias}))
        yield layer
