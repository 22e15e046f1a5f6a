"""Image models: a diffusers pipeline folder, recognised by its parts; its denoiser made trainable, and saved again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PrefoptError
from ..scoring.conditioning import Kind
from ..scoring.schedules import Schedule
from .caption_length import TOKENIZERS, overlong
from .damage import refuse_damaged

ADAPTED = ("to_k", "to_q", "to_v", "to_out.0")
"""Attention projections that a LoRA changes unless told otherwise (the choice of diffusers' DPO scripts)."""
PIXEL_CHANNELS = 3
"""Of a picture: what a denoiser without VAE reads."""
ADAPTED_SD3 = (*ADAPTED, "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")


@dataclass(frozen=True)
class ImageModel:
    """A pipeline and what training needs to know about it.

    resolution  side of the square images in pixels; latents are [C, resolution / factor, resolution / factor]
    """

    pipeline: Any
    kind: Kind
    schedule: Schedule
    resolution: int
    source: str

    @property
    def denoiser(self) -> Any:
        return self.pipeline.transformer if self.kind == "sd3" else self.pipeline.unet

    @property
    def frozen(self) -> dict[str, nn.Module]:
        """The VAE and the text encoders, by name: they are read, never trained."""
        parts = self.pipeline.components.items()
        return {n: m for n, m in parts if isinstance(m, nn.Module) and m is not self.denoiser}

    @property
    def reads_score(self) -> bool:
        """Is it an SDXL refiner, told an aesthetic score where others are told the size of the picture?"""
        return bool(self.pipeline.config.get("requires_aesthetics_score"))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents of one image."""
        factor = self.pipeline.vae_scale_factor if self.pipeline.components.get("vae") is not None else 1
        return self.denoiser.config.in_channels, self.resolution // factor, self.resolution // factor

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """{"text": [N, L, D]} and, for SDXL and SD3, {"pooled": [N, E]}, by the pipeline's own rule.

        SDXL: hidden state -2 of both encoders side by side (its refiner has the second alone), pooled embedding of the
        last encoder only.
        """
        encode, texts = self.pipeline.encode_prompt, list(captions)
        device = (self.pipeline.text_encoder or self.pipeline.text_encoder_2).device
        if self.kind == "sd":
            text, _ = encode(texts, device, num_images_per_prompt=1, do_classifier_free_guidance=False)
            return {"text": text}
        prompts = {"prompt": texts, "prompt_2": texts} | ({"prompt_3": texts} if self.kind == "sd3" else {})
        text, _, pooled, _ = encode(**prompts, device=device, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def tokens_read(self, captions: Sequence[str]) -> list[tuple[Any, ...]]:
        """What the text encoders see of each caption: token ids, cut to their lengths, of all of them."""
        parts = self.pipeline.components
        found = []
        for name in TOKENIZERS:
            if (words := parts.get(name)) is not None:
                found.append(words(list(captions), truncation=True, max_length=words.model_max_length)["input_ids"])
        return [tuple(map(tuple, each)) for each in zip(*found, strict=True)]

    def overlong(self, captions: Sequence[str]) -> list[str]:
        """Those of the captions that no text encoder reads to their end."""
        parts = self.pipeline.components
        return overlong(captions, {name: parts[name] for name in TOKENIZERS if parts.get(name) is not None})

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [N, C, h, w] (float32) of the latents' posterior, in the denoiser's units.

        `pixels` [N, 3, H, W] in [-1, 1]. A pipeline without VAE works on pixels: their own mean, deviation 0.
        Raises PrefoptError for any other range: bytes, or NaN.
        """
        if not pixels.is_floating_point() or not bool((pixels.abs() <= 1 + 1e-4).all()):
            raise PrefoptError(
                f"pixels must be numbers in [-1, 1]; these are {pixels.dtype} in [{pixels.min():g}, {pixels.max():g}]. "
                "Divide bytes by 127.5 and take 1 off"
            )
        vae = self.pipeline.components.get("vae")
        if vae is None:
            return pixels.float(), torch.zeros_like(pixels, dtype=torch.float32)
        with _without_overflow(vae):
            posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        return (mean - self._shift(mean)) * self._scale(mean), std * self._scale(std)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] (float32, about -1 to 1) of latents [N, C, h, w] in the denoiser's units; without VAE
        they are the latents themselves. The VAE goes to where the latents are."""
        vae = self.pipeline.components.get("vae")
        if vae is None:
            return latents.float()
        x = latents.float()
        x = x / self._scale(x) + self._shift(x)
        if vae.device != x.device:
            vae.to(x.device)
        with _without_overflow(vae, kept=x.requires_grad and torch.is_grad_enabled()):
            return vae.decode(x.to(vae.dtype), return_dict=False)[0].float()

    def _shift(self, like: Tensor) -> Tensor | float:
        config = self.pipeline.vae.config
        if config.get("latents_mean") is not None:
            return torch.tensor(config.latents_mean).to(like)[:, None, None]
        return config.get("shift_factor") or 0.0

    def _scale(self, like: Tensor) -> Tensor | float:
        config = self.pipeline.vae.config
        if config.get("latents_std") is not None:
            return config.scaling_factor / torch.tensor(config.latents_std).to(like)[:, None, None]
        return config.scaling_factor


@contextmanager
def _without_overflow(vae: Any, kept: bool = False) -> Iterator[None]:
    """The VAE in float32 where half precision overflows in it, as in SDXL's. kept: after it too, for a backward pass."""
    dtype = vae.dtype
    overflows = dtype == torch.float16 and vae.config.get("force_upcast")
    if overflows:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if overflows and not kept:
            vae.to(dtype)


def load_image_model(
    path: str | Path, *, dtype: torch.dtype = torch.float32, resolution: int | None = None
) -> ImageModel:
    """Load a diffusers pipeline (a folder, or a hub name) and recognise its kind by its parts.

    Raises PrefoptError if it cannot be read, is of no supported kind, or its scheduler and denoiser do not fit.
    """
    from diffusers import DiffusionPipeline

    place, local = Path(path), Path(path).is_dir()
    if not local and (place.is_absolute() or str(path).startswith((".", "~"))):
        raise PrefoptError(f"{path}: there is no such folder; give a diffusers pipeline folder or a hub name")
    pipeline = read_pipeline(path, DiffusionPipeline, torch_dtype=dtype)
    return image_model(pipeline, source=str(path), resolution=resolution)


def read_pipeline(path: str | Path, kind: Any, **options: Any) -> Any:
    """What `kind.from_pretrained` (of diffusers) makes of a folder or hub name. PrefoptError if it cannot be read."""
    from . import pixels  # noqa: F401 - a part that diffusers loads only if its module is there

    local = Path(path).is_dir()
    absent = _absent(Path(path)) if local else {}
    try:
        return kind.from_pretrained(str(path), local_files_only=local, **absent | options)
    except Exception as error:  # diffusers raises a dozen types for a damaged folder
        raise PrefoptError(f"{path}: diffusers cannot load this pipeline: {error}") from error


def pipeline_index(folder: Path) -> dict[str, Any]:
    """What a folder's model_index.json says: "_class_name", and of each part where it is from. PrefoptError if it is not
    there, or is none."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise PrefoptError(f"{folder}: no model_index.json, so this is not a diffusers pipeline folder")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PrefoptError(f"{path} is no JSON ({error}); save the pipeline again") from None
    if not isinstance(index, dict):
        raise PrefoptError(
            f"{path} holds a {type(index).__name__}, not the parts of a pipeline; save the pipeline again"
        )
    return index


def _absent(folder: Path) -> dict[str, None]:
    """The parts that were saved as absent (SD3's T5): diffusers wants to be told so again."""
    parts = {name: entry for name, entry in pipeline_index(folder).items() if isinstance(entry, list) and entry}
    for name, entry in parts.items():
        if entry[0] is not None and not (folder / name).is_dir():
            raise PrefoptError(
                f"{folder}: the part '{name}' that model_index.json names is missing; save the pipeline again"
            )
    return {name: None for name, entry in parts.items() if entry[0] is None}


def image_model(pipeline: Any, *, source: str = "pipeline", resolution: int | None = None) -> ImageModel:
    """What `load_image_model` makes, from a pipeline that is already in memory. All parts become frozen."""
    kind = _kind(pipeline, source)
    schedule = Schedule.of(pipeline.scheduler)
    if (kind == "sd3") != (schedule.prediction == "flow"):
        raise PrefoptError(
            f"{source}: the scheduler says '{schedule.prediction}' ({type(pipeline.scheduler).__name__}), which a "
            f"{'flow transformer' if kind == 'sd3' else 'diffusion UNet'} cannot have been trained on; "
            "save the pipeline with the scheduler of its training"
        )
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            refuse_damaged(part.requires_grad_(False).eval(), f"{source}: {name}")
    model = ImageModel(pipeline, kind, schedule, 0, source)
    size = _resolution(model, resolution)
    return ImageModel(pipeline, kind, schedule, size, source)


def _kind(pipeline: Any, source: str) -> Kind:
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    parts = pipeline.components
    encoders = [n for n in ("text_encoder", "text_encoder_2", "text_encoder_3") if parts.get(n) is not None]
    unet: Any = parts.get("unet")
    transformer: Any = parts.get("transformer")
    kind: Kind | None = None
    if isinstance(transformer, SD3Transformer2DModel) and encoders[:2] == ["text_encoder", "text_encoder_2"]:
        kind = "sd3"
    elif isinstance(unet, UNet2DConditionModel) and unet.config.class_embed_type is None:  # type: ignore[attr-defined]
        added = unet.config.addition_embed_type  # type: ignore[attr-defined]
        if encoders == ["text_encoder"] and added is None:
            kind = "sd"
        elif encoders in (["text_encoder", "text_encoder_2"], ["text_encoder_2"]) and added == "text_time":
            kind = "sdxl"
    if kind is None:
        denoiser = unet if transformer is None else transformer
        raise PrefoptError(
            f"{source}: a {type(pipeline).__name__} with {type(denoiser).__name__} and {encoders or 'no text encoder'} "
            "is of no supported kind. Supported: Stable Diffusion (UNet2DConditionModel, one CLIP encoder), SDXL (two, "
            "with time ids) and its refiner (the second alone), SD3 (SD3Transformer2DModel, two CLIP encoders, T5 optional)"
        )
    _check_channels(pipeline, kind, source)
    return kind


def _check_channels(pipeline: Any, kind: Kind, source: str) -> None:
    """The denoiser must map latents to latents, and read exactly what its text encoders give."""
    net = (pipeline.transformer if kind == "sd3" else pipeline.unet).config
    vae = pipeline.components.get("vae")
    if vae is None and net.in_channels != PIXEL_CHANNELS:
        raise PrefoptError(
            f"{source}: there is no VAE, and the denoiser reads {net.in_channels} channels, which are no pixels "
            f"({PIXEL_CHANNELS}): save the pipeline with the VAE that it was trained with"
        )
    latent = vae.config.latent_channels if vae is not None else net.in_channels
    if net.in_channels != latent or net.out_channels != latent:
        raise PrefoptError(
            f"{source}: the denoiser maps {net.in_channels} to {net.out_channels} channels, the latents have {latent}; "
            "inpainting models and learned variances are not supported"
        )
    if kind == "sdxl":
        reads = pipeline.unet.add_embedding.linear_1.in_features
        ids = 5 if pipeline.config.get("requires_aesthetics_score") else 6
        gives = ids * net.addition_time_embed_dim + pipeline.text_encoder_2.config.projection_dim
        if reads != gives:
            raise PrefoptError(
                f"{source}: the UNet reads {reads} added features, but the pooled text and {ids} time ids give {gives}; "
                "a refiner has requires_aesthetics_score = true in model_index.json, and 5 time ids"
            )


def _resolution(model: ImageModel, asked: int | None) -> int:
    side = model.denoiser.config.sample_size
    factor = model.pipeline.vae_scale_factor if model.pipeline.components.get("vae") is not None else 1
    if asked is None:
        if not isinstance(side, int):
            raise PrefoptError(f"{model.source}: sample_size {side} is not one number; give denoising.resolution")
        return side * factor
    step = factor * (model.denoiser.config.patch_size if model.kind == "sd3" else 1)
    if asked <= 0 or asked % step:
        raise PrefoptError(f"resolution {asked} must be a positive multiple of {step} for {model.source}")
    return asked


# ------------------------------------------------------------------------------------------------ training and saving
def make_trainable(model: ImageModel, adapter: Mapping[str, Any] | None = None) -> nn.Module:
    """The denoiser, all of it trainable, or with a LoRA (the keys of `AdapterConfig`) on its attention.

    Trainable parameters are float32 whatever the base's type. Raises PrefoptError for an adapter that fits nothing.
    """
    net = model.denoiser
    if adapter is None:
        for parameter in net.requires_grad_(True).parameters():
            parameter.data = parameter.data.float()
        return net
    from peft import LoraConfig

    default = ADAPTED_SD3 if model.kind == "sd3" else ADAPTED
    rank = adapter.get("r") or 8
    config = LoraConfig(
        r=rank,
        lora_alpha=adapter.get("alpha") or rank,
        lora_dropout=adapter.get("dropout") or 0.0,
        use_rslora=bool(adapter.get("use_rslora")),
        use_dora=bool(adapter.get("use_dora")),
        target_modules=adapter.get("target_modules") or list(default),
    )
    try:
        net.add_adapter(config)
    except ValueError as error:
        raise PrefoptError(f"model.adapter does not fit {type(net).__name__}: {error}") from error
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return net


def save_image_model(model: ImageModel, folder: Path) -> None:
    """The whole pipeline, or, if the denoiser carries a LoRA, `pytorch_lora_weights.safetensors`.

    Plain diffusers loads the first by `DiffusionPipeline.from_pretrained(folder)` and the second by
    `pipeline.load_lora_weights(folder)` on the starting pipeline; alpha and rank travel in the file's metadata.
    """
    net = model.denoiser
    if not getattr(net, "peft_config", None):
        model.pipeline.save_pretrained(folder)
        return
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    part = "transformer" if model.kind == "sd3" else "unet"
    weights = get_peft_model_state_dict(net)
    weights = weights if part == "transformer" else convert_state_dict_to_diffusers(weights)
    weights = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    settings = net.peft_config["default"].to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])
    layers = {f"{part}_lora_layers": weights, f"{part}_lora_adapter_metadata": settings}
    type(model.pipeline).save_lora_weights(str(folder), **layers)
