"""What a reference was made from, as a name: a hash of weights, configuration and how numbers are computed."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from . import families
from .entry import core

VERSION = 1  # of the scoring code: raise it when the same weights give other numbers
VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures")


def identity_of(model: nn.Module, autocast: torch.dtype | None = None) -> str:
    """Hex digest (32 characters) of the model as it is now. sha256 over the tensors, in threads: about 1.4 GB/s each.

    An adapter that does not change the model yet (all its B zero) is left out: its random A would give every seed of
    a sweep a store of its own.
    """
    tensors = dict(core(model).named_parameters()) | dict(core(model).named_buffers())
    if idle_adapter(model):
        tensors = {name: t for name, t in tensors.items() if ".lora_" not in name}
    names = {name.replace(".base_layer.", "."): t for name, t in tensors.items()}
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(_digest, names.values())
        parts = sorted(f"{name} {digest}" for name, digest in zip(names, digests, strict=True))
    how = [VERSION, str(autocast), _plain_attention(core(model).config), _settings(core(model).config)]
    return hashlib.sha256("\n".join([json.dumps(how, sort_keys=True, default=str), *parts]).encode()).hexdigest()[:32]


def idle_adapter(model: nn.Module) -> bool:
    """Whether the model carries a LoRA that changes nothing yet."""
    ups = [p for name, p in model.named_parameters() if ".lora_B." in name or ".lora_embedding_A." in name]
    return bool(ups) and not any(bool(p.detach().any()) for p in ups)


def _digest(tensor: Tensor) -> str:
    t = tensor.detach().contiguous()
    digest = hashlib.sha256(f"{t.dtype} {tuple(t.shape)}".encode())
    if t.numel():
        digest.update(t.cpu().view(-1).view(torch.uint8).numpy().data)  # hashlib lets other threads run meanwhile
    return digest.hexdigest()


def _plain_attention(config: Any) -> str:
    return (config._attn_implementation or "eager").removeprefix(families.PREFIX)


def _settings(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in VOLATILE}
