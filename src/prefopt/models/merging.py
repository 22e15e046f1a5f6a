"""Weights in weight space: offsets of tuned networks from their base, mixed (Diffusion-NPO, 2505.11245; Self-NPO)."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import PrefoptError
from ..files import write_atomically


def merged(
    base: Mapping[str, Tensor],
    negative: Mapping[str, Tensor],
    positive: Mapping[str, Tensor] | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> dict[str, Tensor]:
    """theta_neg = base + alpha (positive - base) + beta (negative - base), weight by weight, in the base's types.

    alpha near 1 keeps the negative network correlated with an aligned positive one: errors of two networks that know
    nothing of each other would add up under guidance. The official scripts fix beta = 1 and call 1 - alpha
    `merge_weight`. positive None: the base guides itself, and alpha says nothing.
    Raises PrefoptError for alpha or beta outside [0, 1], and for networks whose names or shapes differ.
    """
    for name, value in {"alpha": alpha, "beta": beta}.items():
        if not 0 <= value <= 1:
            raise PrefoptError(f"{name} = {value:g} must lie in [0, 1]")
    others = {"negative": negative} | ({} if positive is None else {"positive": positive})
    for name, other in others.items():
        _check_fits(base, other, name)
    shares = {"negative": beta, "positive": alpha}
    result = {}
    for key, start in base.items():
        if not start.is_floating_point():
            result[key] = start.clone()
            continue
        wide = torch.promote_types(start.dtype, torch.float32)
        origin = start.to(wide)
        offset = sum(shares[name] * (other[key].to(origin) - origin) for name, other in others.items())
        result[key] = (origin + offset).to(start.dtype)
    return result


def _check_fits(base: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str) -> None:
    lone = sorted(set(base) ^ set(other))
    if lone:
        where = "the base" if lone[0] in base else f"the {name} network"
        raise PrefoptError(
            f"only {where} has the weight '{lone[0]}' ({len(lone)} such): merge networks of one architecture"
        )
    for key, x in base.items():
        if other[key].shape != x.shape:
            raise PrefoptError(
                f"weight '{key}': {list(other[key].shape)} in the {name} network, {list(x.shape)} in the base"
            )


def merge_folders(
    base: str, negative: str, output: Path, *, positive: str | None = None, alpha: float = 1.0, beta: float = 1.0,
    guided: bool = False,
) -> None:  # fmt: skip
    """Writes a pipeline folder: the base with the merged denoiser; LoRAs are fused into their start first.

    guided: the folder is of a two-network pipeline instead, the positive network (or the base) guided by the merged
    one; `prefopt.pipelines.load` opens it. Raises PrefoptError for folders that cannot be read or do not fit.
    """
    from ..pipelines import denoiser_name, with_negative
    from .opening import open_pipeline

    if output.exists() and any(output.iterdir()):
        raise PrefoptError(f"output {output} holds other files; nothing is overwritten: give a new folder")
    if positive is None and alpha != 1:
        raise PrefoptError(f"alpha = {alpha:g} has no effect without a positive network")
    pipeline = open_pipeline(base)
    part = denoiser_name(pipeline)
    network: Any = getattr(pipeline, part)
    away = _weights(_alike(negative, base, type(network)))
    gc.collect()  # the parts beside it
    aligned = None if positive is None else _alike(positive, base, type(network))
    theta = merged(_weights(pipeline), away, None if aligned is None else _weights(aligned), alpha, beta)
    if guided:
        made: Any = type(network).from_config(network.config).to(network.dtype)
        made.load_state_dict(theta)
        pipeline = with_negative(aligned or pipeline, made)
    else:
        network.load_state_dict(theta)
    pipeline.save_pretrained(output)
    lines = {"base": base, "negative": negative, "positive": positive, "alpha": alpha, "beta": beta}
    write_atomically(output / "merge.txt", "".join(f"{k}: {v}\n" for k, v in lines.items()))


def _alike(path: str, start: str, kind: type[Any]) -> Any:
    """The pipeline of a folder, whose denoiser is of the same kind as the start's."""
    from ..pipelines import denoiser_name
    from .opening import open_pipeline

    pipeline = open_pipeline(path, start=start)
    network: Any = getattr(pipeline, denoiser_name(pipeline))
    if type(network) is not kind:
        raise PrefoptError(f"{path} holds a {type(network).__name__}, {start} a {kind.__name__}: they cannot be merged")
    return pipeline


def _weights(pipeline: Any) -> dict[str, Tensor]:
    """The denoiser's, on the CPU."""
    from ..pipelines import denoiser_name

    network: Any = getattr(pipeline, denoiser_name(pipeline))
    return {k: v.cpu() for k, v in network.state_dict().items()}
