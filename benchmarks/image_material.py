"""What both tools of the image benchmark are given: a pipeline with the proportions of Stable Diffusion 1.5, pairs of
pictures, and the same noise."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

SIDE = 256  # pixels; the VAE divides by 8
TEXT = "a photo of some red green blue yellow cat dog house tree near the sea at night in rain"
WORDS = TEXT.split()
ADAPTER = {"r": 8, "alpha": 8}
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


def make_pipeline(folder: Path) -> None:
    """Stable Diffusion's layout in every part; widths such that the VAE's encoder takes 1.39 times and the text encoder
    about 0.02 times the FLOPs of one forward of the UNet, as in Stable Diffusion 1.5 (1.390 and 0.017 at 512 pixels)."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from prefopt.worlds.words import sd_scheduler, word_tokenizer

    torch.manual_seed(0)
    tokenizer = word_tokenizer(WORDS, 77)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    channels = (26, 52, 108, 108)
    vae = AutoencoderKL(
        block_out_channels=channels, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, norm_num_groups=2,
        sample_size=SIDE,
    )  # fmt: skip
    # two heads: each of 32 numbers or more, the original's of 40; eight would be of 8, and slow out of proportion
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8, in_channels=4, out_channels=4, block_out_channels=(64, 128, 256, 256), layers_per_block=2,
        cross_attention_dim=256, attention_head_dim=2, norm_num_groups=16,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=sd_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)


class Share(NamedTuple):
    """FLOPs of one image's VAE encoding and one caption's text encoding, over those of one forward of the UNet."""

    unet: float  # FLOPs
    vae: float
    text: float


def shares(folder: Path) -> Share:
    from diffusers import StableDiffusionPipeline
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    pipe: Any = StableDiffusionPipeline.from_pretrained(folder)
    ids = torch.zeros(1, 77, dtype=torch.long)
    latents, text = torch.zeros(1, 4, SIDE // 8, SIDE // 8), torch.zeros(1, 77, pipe.text_encoder.config.hidden_size)
    found = []
    for call in (
        lambda: pipe.unet(latents, torch.tensor([1]), text),
        lambda: pipe.vae.encode(torch.zeros(1, 3, SIDE, SIDE)),
        lambda: pipe.text_encoder(ids),
    ):
        # fused attention on a CPU is not counted, so it is asked for as products of matrices
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            call()
        found.append(counter.get_total_flops())
    return Share(found[0], found[1] / found[0], found[2] / found[0])


def write_pairs(folder: Path, count: int) -> Path:
    """Smooth random pictures of the size that is trained, as PNG, and captions of a few words."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(count):
        names = [str(folder / f"{n}-{side}.png") for side in "ab"]
        for name in names:
            small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(name)
        rows.append({"prompt": " ".join(rng.choice(WORDS, 8)), "chosen": names[0], "rejected": names[1]})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def draws(index: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """prefopt's own draws for a pair in its first epoch with seed 0: timestep, noise [1, ...], the latents' [2, ...]."""
    seed = np.random.SeedSequence((0, 0, index)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(seed[0]))
    t = torch.randint(1000, (), generator=generator)
    torch.rand((), generator=generator)  # whether the caption is dropped: never
    noise = torch.randn((1, *shape), generator=generator)
    torch.randint(1, (2,), generator=generator)  # which view: there is one
    return t, noise, torch.randn((2, *shape), generator=generator)


def same_adapter(net: nn.Module) -> None:
    """The same start of the adapter in every process."""
    for name, parameter in net.named_parameters():
        if "lora_A" in name:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
