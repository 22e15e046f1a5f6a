"""Parts of tiny image pipelines: a real CLIP tokenizer whose tokens are the words of a world's captions, a real CLIP text
encoder of one layer, a scheduler; and a whole pipeline on pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch


def word_tokenizer(words: Iterable[str], longest: int) -> Any:
    """A CLIPTokenizer whose merges make each of these words one token; captions of up to `longest` with both marks."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    vocabulary = [*letters, *(f"{c}</w>" for c in letters)]
    merges: list[tuple[str, str]] = []
    for word in sorted(set(words)):
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        while len(symbols) > 1:
            pair = _first_merge(symbols, merges)
            if pair not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
            symbols = _merged(symbols, pair)
    vocabulary = list(dict.fromkeys([*vocabulary, "<|startoftext|>", "<|endoftext|>"]))
    ids = {token: n for n, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=longest)  # type: ignore[arg-type]


def _first_merge(symbols: list[str], merges: list[tuple[str, str]]) -> tuple[str, str]:
    """The merge that BPE would do next: the oldest that applies, or a new one at the front of the word."""
    pairs = list(pairwise(symbols))
    return min((p for p in pairs if p in merges), key=merges.index, default=pairs[0])


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def text_encoder(tokenizer: Any, width: int, *, pooled: bool = False) -> Any:
    """A CLIP text encoder of this width, with a projection of the pooled state where `pooled`.

    It stays as drawn: after the last norm each word is all but itself, easy to look up.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
    )
    return (CLIPTextModelWithProjection if pooled else CLIPTextModel)(config)


def sd_scheduler(prediction: str = "epsilon") -> Any:
    """DDIM on the noise schedule of Stable Diffusion."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def pixel_pipeline(
    captions: Iterable[str],
    longest: int,
    pixels: Callable[[], Any],
    blocks: Sequence[str],
    *,
    side: int,
    channels: int,
    width: int,
    prediction: str = "epsilon",
    seed: int = 0,
) -> Any:
    """An untrained Stable Diffusion pipeline of small pictures, whose UNet of two levels (16 and 32 wide) works on pixels.

    longest   tokens of a caption, with both marks
    pixels    makes what stands where the VAE would (models/pixels.py), of so many `channels`
    blocks    of the UNet's way down, as diffusers calls them; the way up mirrors them
    width     of the text encoder
    """
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    tokenizer = word_tokenizer({word for text in captions for word in text.split()}, longest)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(16, 32),
            down_block_types=tuple(blocks),
            up_block_types=tuple(block.replace("Down", "Up") for block in reversed(blocks)),
            layers_per_block=1,
            cross_attention_dim=width,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        pipeline: Any = StableDiffusionPipeline(
            vae=pixels(),
            text_encoder=text_encoder(tokenizer, width),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=sd_scheduler(prediction),
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
