"""Checkpoints that are whole or not there, with the method's own state beside the model's."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WHOLE = "whole"  # a file whose presence says that everything else in the folder is complete
STATES, MODULES = "method_states.safetensors", "method_modules.safetensors"
NETWORKS = "networks.safetensors"  # those that are trained beside the policy


def save_method(folder: Path, states: Mapping[str, Tensor], modules: nn.ModuleDict) -> None:
    if states:
        save_tensors(folder / STATES, states)
    if len(modules):
        save_tensors(folder / MODULES, modules.state_dict())


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)


def load_method(folder: Path, modules: nn.ModuleDict, device: torch.device) -> dict[str, Tensor]:
    """The states; parameters are loaded into `modules`."""
    if (folder / MODULES).exists():
        modules.load_state_dict(load_file(folder / MODULES))
    if not (folder / STATES).exists():
        return {}
    return {k: v.to(device) for k, v in load_file(folder / STATES).items()}


def mark_whole(folder: Path) -> None:
    """The last thing written: a run killed before this line resumes from the checkpoint before."""
    (folder / WHOLE).touch()


def latest(output: Path, remove_halves: bool = True) -> Path | None:
    """The newest whole checkpoint; halves left by a killed run are removed (by one process)."""
    found = sorted(output.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[-1]))
    whole = [p for p in found if (p / WHOLE).exists()]
    for half in set(found) - set(whole):
        if remove_halves:
            shutil.rmtree(half, ignore_errors=True)
    return whole[-1] if whole else None


def save_trainable(model: nn.Module, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
    """What training changes of a network without `save_pretrained` of its own, as model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    tensors = model.state_dict() if state_dict is None else state_dict
    kept = {k: v.detach().cpu().contiguous() for k, v in tensors.items() if k in trainable}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def check_loaded(model: nn.Module, result: Any) -> None:
    """What `load_state_dict(strict=False)` says of weights saved by `save_trainable`: all that is trained was there."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}  # the rest is the start's
    if wrong := [*trained.intersection(result.missing_keys), *result.unexpected_keys]:
        raise ValueError(f"'{min(wrong)}' is there and not trained, or trained and not there")
