"""Pipelines of diffusers with a second network as the negative branch of guidance (2505.11245, 2505.11777).

    eps = eps_negative(x, t, "" or the negative prompt) + scale * (eps(x, t, prompt) - eps_negative(...))

Ordinary guidance subtracts what the same network says to the empty prompt, which no alignment method trains; here what
is subtracted comes from weights that were trained towards what people like less.

    from prefopt.pipelines import load, with_negative, guided_by
    pipeline = load("folder")                            # written by `prefopt merge --guided`, or save_pretrained
    pipeline = with_negative(sd_pipeline, negative_unet)  # SD, SDXL or SD3, the parts are shared
    with guided_by(any_pipeline, negative_unet):         # image to image, ControlNet, ... with the usual two-fold batch
        any_pipeline(...)
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import nn

from .errors import PrefoptError
from .models.diffusion import pipeline_index, read_pipeline

log = logging.getLogger("prefopt")


def denoiser_name(pipeline: Any) -> str:
    """`unet`, or `transformer`."""
    for name in ("unet", "transformer"):
        if isinstance(getattr(pipeline, name, None), nn.Module):
            return name
    raise PrefoptError(f"a {type(pipeline).__name__} has neither a unet nor a transformer to guide")


@contextmanager
def guided_by(pipeline: Any, negative: nn.Module) -> Iterator[None]:
    """Inside, the pipeline's negative branch is computed by `negative`.

    Pipelines of diffusers compute both branches as one batch, the negative half first; the halves are sent to their
    networks here. Calls without guidance (scale <= 1) must stay outside: their batch has no halves.
    Raises PrefoptError where the networks' weights differ in name or shape.
    """
    positive = getattr(pipeline, denoiser_name(pipeline))
    _check_alike(positive, negative)
    own = positive.forward  # possibly a hook's, of offloading

    def forward(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("skip_layers") is not None:  # SD3's guidance by left-out layers has a batch of its own
            return own(*args, **kwargs)
        both = len(args[0] if args else kwargs["hidden_states"])
        halves = [_half(both, side, (args, kwargs)) for side in (0, 1)]
        made = [net(*a, **k)[0] for net, (a, k) in zip((negative, own), halves, strict=True)]
        return (torch.cat(made),)

    positive.forward = forward
    try:
        yield
    finally:
        del positive.forward
        if positive.forward != own:
            positive.forward = own


def _half(both: int, side: int, x: Any) -> Any:
    """The first or the second half of every tensor that runs over the batch."""
    if isinstance(x, torch.Tensor):
        return x.chunk(2)[side] if x.dim() and len(x) == both else x
    if isinstance(x, Mapping):
        return {k: _half(both, side, v) for k, v in x.items()}
    return type(x)(_half(both, side, v) for v in x) if isinstance(x, (list, tuple)) else x


def _check_alike(positive: nn.Module, negative: Any) -> None:
    if not isinstance(negative, nn.Module):
        raise PrefoptError(
            f"the negative network is a {type(negative).__name__}: give a network, or a pipeline's folder"
        )
    one, two = ({k: v.shape for k, v in net.state_dict().items()} for net in (positive, negative))
    if one != two:
        name = min(k for k in one.keys() | two.keys() if one.get(k) != two.get(k))
        raise PrefoptError(
            f"the negative network is of another architecture: '{name}' is {_shape(two.get(name))} there, "
            f"{_shape(one.get(name))} in the positive one"
        )


def _shape(shape: Any) -> str:
    return "missing" if shape is None else str(list(shape))


class _TwoNetworks:
    """What the three classes share: a call is the parent's, with the negative half sent to the negative network."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See the parent."""
        call: Any = super().__call__  # type: ignore[misc]
        given = inspect.signature(call).bind(*args, **kwargs)
        given.apply_defaults()
        scale = given.arguments["guidance_scale"]
        if not scale > 1:
            log.warning("guidance_scale %g: without guidance the negative network has no effect", scale)
            return call(*args, **kwargs)
        negative = getattr(self, f"negative_{denoiser_name(self)}")
        with guided_by(self, negative):
            return call(*args, **kwargs)


class NegativeStableDiffusionPipeline(_TwoNetworks, StableDiffusionPipeline):
    """Stable Diffusion whose negative branch is `negative_unet`; everything else is the parent's."""

    model_cpu_offload_seq = "text_encoder->image_encoder->negative_unet->unet->vae"

    def __init__(
        self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, negative_unet: Any, scheduler: Any,
        safety_checker: Any = None, feature_extractor: Any = None, image_encoder: Any = None,
        requires_safety_checker: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
            requires_safety_checker,
        )  # fmt: skip
        self.register_modules(negative_unet=negative_unet)  # type: ignore[attr-defined]


class NegativeStableDiffusionXLPipeline(_TwoNetworks, StableDiffusionXLPipeline):
    """SDXL whose negative branch is `negative_unet`; everything else is the parent's."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->negative_unet->unet->vae"

    def __init__(
        self, vae: Any, text_encoder: Any, text_encoder_2: Any, tokenizer: Any, tokenizer_2: Any, unet: Any,
        negative_unet: Any, scheduler: Any, image_encoder: Any = None, feature_extractor: Any = None,
        force_zeros_for_empty_prompt: bool = True, add_watermarker: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, unet, scheduler, image_encoder, feature_extractor,
            force_zeros_for_empty_prompt, add_watermarker,
        )  # fmt: skip
        self.register_modules(negative_unet=negative_unet)  # type: ignore[attr-defined]


class NegativeStableDiffusion3Pipeline(_TwoNetworks, StableDiffusion3Pipeline):
    """SD3 whose negative branch is `negative_transformer`; everything else is the parent's."""

    model_cpu_offload_seq = (
        "text_encoder->text_encoder_2->text_encoder_3->image_encoder->negative_transformer->transformer->vae"
    )

    def __init__(
        self, transformer: Any, negative_transformer: Any, scheduler: Any, vae: Any, text_encoder: Any, tokenizer: Any,
        text_encoder_2: Any, tokenizer_2: Any, text_encoder_3: Any = None, tokenizer_3: Any = None,
        image_encoder: Any = None, feature_extractor: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(
            transformer, scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, text_encoder_3, tokenizer_3,
            image_encoder, feature_extractor,
        )  # fmt: skip
        self.register_modules(negative_transformer=negative_transformer)  # type: ignore[attr-defined]


CLASSES: dict[str, Any] = {
    c.__name__: c
    for c in (NegativeStableDiffusionPipeline, NegativeStableDiffusionXLPipeline, NegativeStableDiffusion3Pipeline)
}


def with_negative(pipeline: Any, negative: Any) -> Any:
    """A two-network pipeline of the parts of `pipeline` (Stable Diffusion, SDXL or SD3), which are shared, not copied."""
    kind = next((c for c in CLASSES.values() if type(pipeline) in c.__bases__), None)
    if kind is None:
        names = ", ".join(c.__bases__[1].__name__ for c in CLASSES.values())
        raise PrefoptError(f"a {type(pipeline).__name__} has no two-network form here ({names} have); use guided_by")
    part = denoiser_name(pipeline)
    _check_alike(getattr(pipeline, part), negative)
    known = inspect.signature(kind.__init__).parameters
    settings = {k: v for k, v in pipeline.config.items() if k in known and k not in pipeline.components}
    made = kind(**pipeline.components, **settings, **{f"negative_{part}": negative.to(getattr(pipeline, part).device)})
    made.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
    return made


def load(folder: str | Path, **options: Any) -> DiffusionPipeline:
    """A two-network pipeline from a folder that one was saved into; `options` are those of diffusers' from_pretrained."""
    place = Path(folder)
    name = pipeline_index(place).get("_class_name")
    if name not in CLASSES:
        raise PrefoptError(f"{folder} holds a {name}, not one of {', '.join(CLASSES)}: load it with diffusers")
    return read_pipeline(place, CLASSES[name], **options)
