"""Tiny CLIP and BLIP folders in the real format, as plain transformers saves them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from prefopt.worlds.shapes.pipelines import word_tokenizer

SIDE = 16


def image_processor() -> Any:
    from transformers import CLIPImageProcessor

    sizes: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return CLIPImageProcessor(**sizes)


def save_clip(folder: Path, seed: int = 5, width: int = 16) -> Path:
    """A CLIPModel with its processor; initialised wide, so that pictures and prompts differ."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    words = word_tokenizer()
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = shape | ends | {"vocab_size": len(words), "max_position_embeddings": 12, "projection_dim": 8}
    vision = shape | {"image_size": SIDE, "patch_size": 8, "projection_dim": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
    draw(model, seed)
    model.logit_scale.data.fill_(3.0)
    model.save_pretrained(folder)
    CLIPProcessor(image_processor(), words).save_pretrained(folder)
    return folder


def draw(model: Any, seed: int, scale: float = 0.2) -> None:
    """Weights far enough from 0 to tell inputs apart, without the global random state."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=g))


def save_head(path: Path, widths: tuple[int, ...], seed: int = 1) -> list[torch.nn.Linear]:
    """A head in the names of the published ones (`layers.N`, with gaps where they have dropout)."""
    g = torch.Generator().manual_seed(seed)
    layers: list[torch.nn.Linear] = []
    state: dict[str, torch.Tensor] = {}
    for n, (inner, outer) in enumerate(pairwise(widths)):
        layer = torch.nn.Linear(inner, outer)
        for parameter in layer.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=g)
        layers.append(layer)
        state |= {f"layers.{2 * n}.weight": layer.weight.data, f"layers.{2 * n}.bias": layer.bias.data}
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    return layers


def save_blip(folder: Path) -> Path:
    """A BlipForImageTextRetrieval with its processor."""
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square", "in", "the", "left"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = shape | {"vocab_size": len(words), "max_position_embeddings": 40, "encoder_hidden_size": 16}
    vision = shape | {"image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=8))
    draw(model, 3)
    model.save_pretrained(folder)
    processor = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    BlipProcessor(processor, tokenizer).save_pretrained(folder)
    return folder
