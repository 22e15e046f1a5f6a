"""Tiny pipelines in the real format: Stable Diffusion, SDXL and SD3, small enough to run on two cores."""

from __future__ import annotations

from typing import Any, Literal

import torch

from .. import words as words_of
from ..words import sd_scheduler, text_encoder
from .render import COLOURS, ONE, SHAPES, SIZE, TWO

PipelineKind = Literal["sd", "sd-v", "sdxl", "sd3"]
LATENTS = 4  # channels of the latents
SIDE = SIZE // 4  # the VAE halves twice
WIDTH = 32  # of each text encoder
TOKENS = 12  # longest caption with its two marks


def tiny_pipeline(kind: PipelineKind = "sd", seed: int = 0) -> Any:
    """An untrained diffusers pipeline of 32x32 images: sd (epsilon), sd-v (v-prediction), sdxl, sd3 (flow)."""
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae, tokenizer = _vae(shift=0.0 if kind == "sd3" else None), word_tokenizer()
        parts = {
            "vae": vae,
            "tokenizer": tokenizer,
            "text_encoder": text_encoder(tokenizer, WIDTH, pooled=kind == "sd3"),
        }
        if kind in ("sdxl", "sd3"):
            parts |= {"tokenizer_2": tokenizer, "text_encoder_2": text_encoder(tokenizer, WIDTH, pooled=True)}
        if kind == "sd3":
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
            parts |= {
                "transformer": _transformer(),
                "text_encoder_3": None,
                "tokenizer_3": None,
                "scheduler": scheduler,
            }
            return _quiet(diffusers.StableDiffusion3Pipeline(**parts))
        parts |= {"unet": _unet(kind), "scheduler": sd_scheduler("v_prediction" if kind == "sd-v" else "epsilon")}
        if kind == "sdxl":
            parts["force_zeros_for_empty_prompt"] = False
            return _quiet(diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False))
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return _quiet(diffusers.StableDiffusionPipeline(**parts, **unused))


def word_tokenizer() -> Any:
    """A CLIPTokenizer whose tokens are the words of the world's captions."""
    words = {"a", "two", *COLOURS, *SHAPES, *(f"{s}s" for s in SHAPES), "in", "the"}
    return words_of.word_tokenizer(words | {word for place in ONE | TWO for word in place.split()}, TOKENS)


def _vae(shift: float | None) -> Any:
    from diffusers import AutoencoderKL

    channels = (8, 16, 32)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=4,  # few groups: a norm over single channels would hide the colours
        mid_block_add_attention=False,
        sample_size=SIZE,
        shift_factor=shift,  # the SD3 pipeline wants a number, the others ignore it
    )


def _unet(kind: PipelineKind) -> Any:
    from diffusers import UNet2DConditionModel

    added = {}
    if kind == "sdxl":
        size = 8
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": size,
            "projection_class_embeddings_input_dim": 6 * size + WIDTH,
        }
    return UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),  # attention where it is cheap, as in SDXL
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=2 * WIDTH if kind == "sdxl" else WIDTH,
        attention_head_dim=2,
        norm_num_groups=16,
        **added,
    )


def _transformer() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=1,
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_layers=3,
        num_attention_heads=4,
        attention_head_dim=16,
        caption_projection_dim=64,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=SIDE,
    )


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
