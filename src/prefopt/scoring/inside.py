"""What a forward knows beside its last hidden states: those of every layer, and activations inside the layers.

Activations are reduced to their mean over features while the forward runs, so that one number a token is kept of each
hook (MaPO, 2410.05102). Groups, for each layer: `mlp` the MLP's output; `attn` the outputs of the attention's
projections (queries, keys, values, output); `resid` inputs and outputs of the norms, outputs of attention and MLP; and
once the embedding's output and the last norm's input and output; `logits` the head's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import PrefoptError
from ..objectives.masks import GROUPS
from .families import ATTENTIONS, MLPS
from .kernel import Head

STACKS = ("layers", "h", "blocks")  # what families call their list of layers
LOGITS = "logits"


@dataclass(frozen=True)
class Hook:
    """A place in the model: what goes into or comes out of a module."""

    group: str
    module: nn.Module
    side: Literal["in", "out"] = "out"


def hooks(inner: Any, groups: Sequence[str]) -> list[Hook]:
    """The hooks of these groups in a transformers model, in a fixed order, without the head's.

    PrefoptError for a group that has none in this model.
    """
    backbone = inner.base_model
    last = _child(backbone, ("norm", "ln_f", "norm_f", "final_layer_norm", "final_layernorm"))
    found = [Hook("resid", backbone.get_input_embeddings())]
    for layer in layers(inner):
        mlp, attention = _child(layer, MLPS), _child(layer, (*ATTENTIONS, "self_attention"))
        found += [Hook("mlp", mlp)] if mlp is not None else []
        found += [Hook("attn", m) for m in (attention.children() if attention is not None else ()) if _projects(m)]
        norms = [m for m in layer.children() if "norm" in type(m).__name__.lower()]
        found += [Hook("resid", m, side) for m in norms for side in ("in", "out")]  # type: ignore[arg-type]
        found += [Hook("resid", m) for m in (attention, mlp) if m is not None]
    found += [Hook("resid", last, side) for side in ("in", "out")] if last is not None else []  # type: ignore[arg-type]
    for group in set(groups) - {LOGITS}:
        if not any(h.group == group for h in found):
            there = ", ".join(g for g in GROUPS if g == LOGITS or any(h.group == g for h in found))
            raise PrefoptError(
                f"{type(inner).__name__} has no activations of the group '{group}' that a hook finds; it has {there}"
            )
    return [h for h in found if h.group in groups]


def layers(inner: Any) -> Sequence[nn.Module]:
    """The list of layers of a transformers model."""
    backbone = inner.base_model
    stack: Any = _child(getattr(backbone, "decoder", backbone), STACKS)
    if stack is None:
        raise PrefoptError(f"{type(inner).__name__}: its list of layers is not found, so nothing can be hooked in it")
    return stack


def group_numbers(inner: Any, groups: Sequence[str]) -> list[int]:
    """[J] the group of each hook's activations, the head's last."""
    return [GROUPS.index(h.group) for h in hooks(inner, groups)] + [GROUPS.index(LOGITS)] * (LOGITS in groups)


def _child(module: Any, names: Sequence[str]) -> Any:
    return next((getattr(module, n) for n in names if hasattr(module, n)), None)


def _projects(module: nn.Module) -> bool:
    return hasattr(module, "in_features") or hasattr(module, "nf")  # nn.Linear, transformers' Conv1D, adapters on them


class Listener:
    """Listens to a forward: `layers:all`, `layers:last` and `activations:GROUP,GROUP` of what is wanted."""

    def __init__(self, inner: Any, wanted: set[str]):
        self.inner = inner
        kinds = {w.partition(":")[0]: w.partition(":")[2] for w in sorted(wanted)}
        self.states: Sequence[Tensor] | None = None
        self.options = {"output_hidden_states": True} if "layers" in kinds else {}
        self.hooks = hooks(inner, kinds["activations"].split(",")) if "activations" in kinds else []
        self.heard: dict[int, Tensor] = {}
        self._open = ExitStack()

    def __enter__(self) -> Listener:
        for number, hook in enumerate(self.hooks):
            self._open.enter_context(hook.module.register_forward_hook(self._hear(number, hook.side), with_kwargs=True))
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()

    def _hear(self, number: int, side: str) -> Callable[..., None]:
        def hear(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            x = (args[0] if args else next(iter(kwargs.values()))) if side == "in" else out
            x = x[0] if isinstance(x, tuple) else x
            self.heard[number] = x.detach().mean(-1, dtype=torch.float32).flatten()

        return hear

    def take(self, out: Any) -> None:
        """After the forward: `out` is what the backbone returned."""
        states = getattr(out, "hidden_states", None)
        self.states = None if states is None else states[1:]  # without the embedding's

    def layers(self, at: Tensor, which: str) -> Tensor:
        """[K, L, D] hidden states after each layer (the last one after the final norm) at K places."""
        states = self.states or ()
        if not states or len({x.shape[-1] for x in states}) > 1:
            raise PrefoptError(
                f"{type(self.inner).__name__} gives no hidden states of its layers, or of several widths"
            )
        return torch.stack([x.flatten(0, -2)[at] for x in (states[-1:] if which == "last" else states)], 1)

    def activations(self, at: Tensor, logits: Tensor | None) -> Tensor:
        """[K, J] what the hooks heard at K places, the head's last if there is one."""
        silent = [h for n, h in enumerate(self.hooks) if n not in self.heard]
        if silent:
            raise PrefoptError(f"{type(self.inner).__name__}: a hook of the group '{silent[0].group}' captured nothing")
        heard = [self.heard[n][at] for n in range(len(self.hooks))]
        return torch.stack(heard + ([] if logits is None else [logits]), 1)


def mean_logits(hidden: Tensor, head: Head) -> Tensor:
    """[K, H] -> [K] the mean logit over the vocabulary; [K, V] only where the family caps logits, row by row."""
    weight, h = head.weight.float(), hidden.float()
    if head.cap is None:
        bias = 0.0 if head.bias is None else head.bias.float().mean()
        return head.scale * (h @ weight.mean(0) + bias)
    rows = []
    for part in h.split(max(1, (1 << 24) // len(weight))):
        z = head.scale * torch.nn.functional.linear(part, weight, None if head.bias is None else head.bias.float())
        rows.append((head.cap * torch.tanh(z / head.cap)).mean(-1))
    return torch.cat(rows)
