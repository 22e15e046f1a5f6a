"""A Stable Diffusion pipeline on 8x8 one-channel latents that are the pixels themselves."""

from __future__ import annotations

from typing import Any

import torch

from ..words import sd_scheduler, text_encoder, word_tokenizer
from .truth import SIDE, captions

WIDTH = 32  # of the text encoder
TOKENS = 9  # longest caption with its two marks


def tiny_pipeline(seed: int = 0, prediction: str = "epsilon") -> Any:
    """An untrained pipeline: 180,000 parameters, cross-attention in the middle, text read as in Stable Diffusion."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    from ...models.pixels import GreyPixels

    tokenizer = word_tokenizer({word for text in captions(brightness=True) for word in text.split()}, TOKENS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=SIDE,
            in_channels=1,
            out_channels=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        pipeline: Any = StableDiffusionPipeline(
            vae=GreyPixels(),  # type: ignore[arg-type]
            text_encoder=text_encoder(tokenizer, WIDTH),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=sd_scheduler(prediction),
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
