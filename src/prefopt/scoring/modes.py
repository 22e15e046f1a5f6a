"""How a network stands: its mode, its device, whether it is frozen, and how precise what it says is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import PrefoptError


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode restored after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def placed(net: nn.Module, device: torch.device) -> nn.Module:
    """The network on the device. One that is there is not walked through: of a UNet that takes milliseconds."""
    return net if next(net.parameters()).device == device else net.to(device)


def precision(net: nn.Module) -> torch.dtype:
    """What its answers are computed with: float32, or better where its weights are."""
    return torch.promote_types(next(net.parameters()).dtype, torch.float32)


def require_frozen(reference: nn.Module | None) -> None:
    """PrefoptError for a reference that could be trained."""
    if reference is not None and any(p.requires_grad for p in reference.parameters()):
        raise PrefoptError("the reference network is trainable; freeze it (requires_grad_(False)) before scoring")
