"""Weights that are no numbers, found when a model is loaded: what they spoil may show late, or only in pictures."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import PrefoptError


def refuse_damaged(part: nn.Module, who: str) -> None:
    """Raises PrefoptError where a weight of `part` is not finite; `who` names it in the message."""
    for name, x in part.named_parameters():
        if not bool(torch.isfinite(x).all()):
            raise PrefoptError(f"{who}: the weight {name} is not finite; the file is damaged or over-trained")
