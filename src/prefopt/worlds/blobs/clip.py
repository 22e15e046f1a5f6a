"""A tiny CLIPModel that reads this world's pictures and captions: what a preference model is trained from."""

from __future__ import annotations

from pathlib import Path

import torch

from ..words import word_tokenizer
from .truth import LEVELS, PLACES, SIDE

WIDTH, BLOCKS, PATCH = 48, 2, 2
TOKENS = 10


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """An untrained CLIPModel with its processor, as plain transformers saves it: 90,000 parameters, patches of 2x2."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    words = {"a", "blob", "in", "the", *LEVELS, *(word for place in PLACES for word in place.split())}
    tokenizer = word_tokenizer(words, TOKENS)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 2,
    }
    text = shape | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    vision = shape | {"image_size": SIDE, "patch_size": PATCH}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    model.save_pretrained(folder)
    sides = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    processor = CLIPImageProcessor(**sides)  # type: ignore[arg-type]
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return folder
