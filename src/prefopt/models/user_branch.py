"""Attention to a user beside the attention to the text (PPD, 2501.06655), in a UNet of diffusers.

    Z = softmax(Q K^T / sqrt(d)) V + lam softmax(Q (u W_k')^T / sqrt(d)) (u W_v')

That is the form of diffusers' IP-Adapter processors, which therefore carry it: the tokens u [N, p, d_u] go in by
`added_cond_kwargs={"image_embeds": [u]}`, in pipelines by `ip_adapter_image_embeds`. W_v' starts at zero and nothing has
a bias, so a new branch changes nothing, and u = 0 never does: bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PrefoptError

FILE = "user_branch.safetensors"


class _Projection(nn.Linear):
    """Without bias, in float32 under a half-precision backbone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class _AsTheyAre(nn.Module):
    """Where IP-Adapter projects an image, users are tokens already."""

    image_projection_layers = (None,)  # how many conditions there are, which pipelines ask

    def forward(self, tokens: list[Tensor]) -> list[Tensor]:
        return tokens


def insert_user_branch(unet: Any, width: int, *, lam: float = 1.0, seed: int = 0) -> None:
    """Puts a new branch for tokens of `width` numbers into every text attention; everything else is frozen.

    W_k' starts as the text's own key projection where the widths agree, else at random by `seed`.
    Raises PrefoptError for a denoiser without text attention of its own.
    """
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    layers = dict(_text_attentions(unet))
    generator = torch.Generator().manual_seed(seed)
    unet.requires_grad_(False)
    processors = dict(unet.attn_processors)
    for name, attention in layers.items():
        size, text = attention.to_k.out_features, attention.to_k.in_features
        processor = IPAdapterAttnProcessor2_0(size, width, num_tokens=(1,), scale=lam)
        key, value = (_Projection(width, size, bias=False) for _ in range(2))
        with torch.no_grad():
            value.weight.zero_()
            if width == text:
                key.weight.copy_(attention.to_k.weight)
            else:
                key.weight.normal_(std=width**-0.5, generator=generator)
        processor.to_k_ip, processor.to_v_ip = nn.ModuleList([key]), nn.ModuleList([value])
        processors[f"{name}.processor"] = processor.to(attention.to_k.weight.device)
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = _AsTheyAre()
    unet.config.encoder_hid_dim_type = "ip_image_proj"  # in memory only: the UNet's own files stay as they are


def _text_attentions(unet: Any) -> Iterator[tuple[str, Any]]:
    import diffusers

    kind: Any = diffusers.UNet2DConditionModel
    if not isinstance(unet, kind):
        raise PrefoptError(
            f"a user branch stands beside a UNet's attention to the text; in {type(unet).__name__} text and image share "
            "one attention, and the paper does not say what a branch would be there. Take an SD or SDXL model"
        )
    if unet.encoder_hid_proj is not None:
        raise PrefoptError("this UNet reads a further condition already (encoder_hid_proj): a user branch has no place")
    found = [(n, m) for n, m in unet.named_modules() if n.endswith("attn2") and getattr(m, "is_cross_attention", True)]
    if not found:
        raise PrefoptError("this UNet has no cross-attention to the text, beside which a user branch could stand")
    yield from found


def branch_weights(unet: nn.Module) -> dict[str, Tensor]:
    """{"LAYER.to_k", "LAYER.to_v"}: W_k'^T and W_v'^T [size, width] of every text attention."""
    weights: dict[str, Tensor] = {}
    for name, parameter in unet.named_parameters():
        layer, mark, which = name.partition(".processor.to_")
        if mark and which in ("k_ip.0.weight", "v_ip.0.weight"):
            weights[f"{layer}.to_{which[0]}"] = parameter
    return weights


def save_user_branch(unet: nn.Module, folder: Path, lam: float) -> None:
    """Writes FILE into the folder: the branch's weights, and lam in the file's metadata."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().cpu().contiguous() for k, v in branch_weights(unet).items()}
    save_file(weights, folder / FILE, metadata={"lam": repr(lam), "paper": "2501.06655"})


def load_user_branch(unet: Any, folder: Path, lam: float | None = None) -> int:
    """Puts the branch of a folder into a UNet, and says how many numbers its tokens have; lam: other than it was trained
    with.

    Raises PrefoptError if the folder holds none, or one of another architecture.
    """
    from safetensors import safe_open

    path = folder / FILE
    if not path.is_file():
        raise PrefoptError(f"{folder} holds no user branch ({FILE}): it is written by `prefopt train ppd`")
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        trained = float((file.metadata() or {}).get("lam", 1.0))
    width = next(iter(weights.values())).shape[1]
    insert_user_branch(unet, width, lam=trained if lam is None else lam)
    places = branch_weights(unet)
    wrong = [k for k in sorted(weights.keys() | places.keys()) if k not in places or k not in weights
             or weights[k].shape != places[k].shape]  # fmt: skip
    if wrong:
        raise PrefoptError(f"{path} is of another UNet: '{wrong[0]}' does not fit")
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(weights[name])
    unet.requires_grad_(False)
    return width
