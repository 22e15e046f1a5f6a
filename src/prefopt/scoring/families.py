"""Model families: attention that sees the packed tree, and how each family's head makes logits.

A dense mask given to a transformers model *replaces* the mask that it would have made: sliding windows would be lost
silently. So an attention implementation of our own is registered instead, with the mask function that transformers
hands to it for each layer type. That function speaks of positions (causal, within a window, ...): asked with the
positions of the tree, and restricted to prompt and own branch, it gives the exact mask of that layer type.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .tree import Tree

PACKED = frozenset(
    {"llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "mixtral", "qwen3_moe"}
    | {"gpt2", "gpt_neox", "opt", "granite", "cohere", "smollm3", "stablelm"}
)
"""Families (config.model_type) whose packed log-probs and gradients a test proves equal to the padded ones."""

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")  # frequencies depend on the longest row of a batch
MLPS, ATTENTIONS = ("mlp", "block_sparse_moe"), ("self_attn", "attn", "attention")  # what layers call them
SMALL_TREE = 128  # tokens; attention of trees that are no longer costs less padded together than one by one
PREFIX = "prefopt_"  # of the attention implementation that stands before the one the model was loaded with
_tree: ContextVar[Tree | None] = ContextVar("tree", default=None)


def packs(config: PretrainedConfig) -> bool:
    """Whether the packed layout is proven for this model; if not it takes the plain padded path."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {r.get("rope_type") for r in (rope, *rope.values()) if isinstance(r, dict)}
    return config.model_type in PACKED and not kinds.intersection(LENGTH_DEPENDENT_ROPE)


def logit_scale(config: PretrainedConfig) -> float:
    """The factor on head outputs: Cohere multiplies, Granite divides."""
    if config.model_type.startswith("granite"):
        return 1.0 / getattr(config, "logits_scaling", 1.0)
    return float(getattr(config, "logit_scale", None) or 1.0)


def logit_cap(config: PretrainedConfig) -> float | None:
    return getattr(config, "final_logit_softcapping", None)


def see_trees(config: PretrainedConfig) -> None:
    """Put tree attention before the implementation that `config` names; without a tree it hands everything on.

    The name stays for good: a layer that is recomputed for gradient checkpointing runs in the backward pass.
    """
    plain = config._attn_implementation or "eager"
    if plain.startswith(PREFIX):
        return
    AttentionInterface.register(PREFIX + plain, partial(_attend, plain))
    AttentionMaskInterface.register(PREFIX + plain, partial(_mask, plain))
    config._attn_implementation = PREFIX + plain


@dataclass
class _Tail:
    """Shared by attention and MLP of the last layer: which tokens of the current tree are read after it."""

    needed: Tensor | None = None


def trim_tail(backbone: nn.Module) -> None:
    """Compute the last layer's MLP for needed tokens only: a prompt's other tokens end in attention's keys and values.

    Saves 4 to 5 % of a step on HH dialogues with 8 layers. The attention before it says which tokens, so that a layer
    recomputed in the backward pass does the same.
    """
    stack = getattr(backbone, "layers", getattr(backbone, "h", None))
    if stack is None:
        return  # OPT: its MLP is not a module
    last = stack[-1]
    mlp, attention = (next((getattr(last, n) for n in names if hasattr(last, n)), None) for names in (MLPS, ATTENTIONS))
    if mlp is not None and attention is not None:
        attention.tail = mlp.tail = _Tail()
        mlp.forward = MethodType(_needed_only, mlp)


def _needed_only(self: Any, hidden: Tensor) -> Tensor:
    needed, self.tail.needed = self.tail.needed, None
    if needed is None:
        return type(self).forward(self, hidden)
    return torch.zeros_like(hidden).index_copy(1, needed, type(self).forward(self, hidden.index_select(1, needed)))


@contextlib.contextmanager
def seeing(tree: Tree) -> Iterator[None]:
    """Models called inside make their masks for `tree`."""
    token = _tree.set(tree)
    try:
        yield
    finally:
        _tree.reset(token)


class TreeMask:
    """What travels through a model in the place of an attention mask (so a recomputed layer finds it too)."""

    def __init__(self, tree: Tree, allowed: Callable[..., Tensor]):
        self.tree, self.allowed = tree, allowed
        self.lengths = [s.length for s in tree.segments]
        self._made: dict[torch.dtype, list[Tensor]] = {}
        self._side_by_side: dict[torch.dtype, _Padded] = {}
        deepest = max(s.depth for s in tree.segments) - 1  # its query sees position 0: no window cuts anything off
        self.causal = bool(allowed(0, 0, torch.tensor(deepest), torch.tensor(0)))

    def additive(self, dtype: torch.dtype) -> list[Tensor]:
        """For each tree a mask [U, U]: 0 where a query sees a key, -inf elsewhere; made once for all layers."""
        if dtype not in self._made:
            positions, branches = (x[0].split(self.lengths) for x in (self.tree.position_ids, self.tree.branch))
            self._made[dtype] = [self._one(p, b, dtype) for p, b in zip(positions, branches, strict=True)]
        return self._made[dtype]

    def padded(self, dtype: torch.dtype) -> _Padded | None:
        """All trees side by side, if they are small and there are several; made once for all layers."""
        if len(self.lengths) < 2 or max(self.lengths) > SMALL_TREE:
            return None
        if dtype not in self._side_by_side:
            self._side_by_side[dtype] = self._padded(dtype)
        return self._side_by_side[dtype]

    def _padded(self, dtype: torch.dtype) -> _Padded:
        width, device = max(self.lengths), self.tree.input_ids.device
        lengths = torch.tensor(self.lengths)
        starts = (lengths.cumsum(0) - lengths)[:, None]
        inside = torch.arange(width)[None] < lengths[:, None]
        at = torch.where(inside, starts + torch.arange(width), starts)  # padding repeats a tree's first token
        at, place = at.flatten().to(device), inside.flatten().nonzero()[:, 0].to(device)
        position, branch = (x[0][at].view(-1, width) for x in (self.tree.position_ids, self.tree.branch))
        branch = torch.where(inside.to(device), branch, -1)  # a branch of its own, which sees the prompt and itself
        return _Padded(at, place, width, self._one(position, branch, dtype)[:, None])

    def _one(self, position: Tensor, branch: Tensor, dtype: torch.dtype) -> Tensor:
        """position, branch [..., U] -> [..., U, U]"""
        kin = (branch[..., None, :] == 0) | (branch[..., None, :] == branch[..., None])
        seen = kin & self.allowed(0, 0, position[..., None], position[..., None, :])
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


@dataclass(frozen=True)
class _Padded:
    """G trees as rows of one batch: where each place [G * U] comes from, which places are real, the mask [G, 1, U, U]."""

    at: Tensor
    place: Tensor
    width: int
    mask: Tensor

    def spread(self, x: Tensor) -> Tensor:
        """[1, heads, N, D] -> [G, heads, U, D]"""
        return x[0].index_select(1, self.at).unflatten(1, (-1, self.width)).transpose(0, 1)

    def gather(self, x: Tensor) -> Tensor:
        """[G, heads, U, D] -> [1, N, heads, D]"""
        return x.transpose(1, 2).flatten(0, 1).index_select(0, self.place)[None]


def _mask(plain: str, **kwargs: Any) -> Any:
    tree = _tree.get()
    if tree is not None:
        return TreeMask(tree, kwargs["mask_function"])
    return ALL_MASK_ATTENTION_FUNCTIONS[plain](**kwargs) if plain in ALL_MASK_ATTENTION_FUNCTIONS else None


def _attend(
    plain: str, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **kwargs: Any
) -> Any:
    if hasattr(module, "tail"):
        module.tail.needed = mask.tree.needed if isinstance(mask, TreeMask) else None
    if not isinstance(mask, TreeMask):
        eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        return ALL_ATTENTION_FUNCTIONS.get_interface(plain, eager)(module, query, key, value, mask, *args, **kwargs)
    return tree_attention(query, key, value, mask, *args, **kwargs), None


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: TreeMask,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> Tensor:
    """query [1, heads, N, D], key and value [1, groups, N, D] -> [1, N, heads, D].

    Small trees are padded to one batch, others come one by one: there a prompt without a window is plain causal
    attention, which skips the half above the diagonal, and its branches are one call with a mask: 1.15 times faster
    than the whole tree under one mask (HH dialogues, CPU).
    """
    attend: Callable[..., Tensor]
    if softcap is not None:
        attend = partial(_capped, dropout=dropout, scaling=scaling or query.shape[-1] ** -0.5, cap=softcap)
    else:
        attend = partial(
            F.scaled_dot_product_attention,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    if (small := mask.padded(query.dtype)) is not None:
        q, k, v = (small.spread(x) for x in (query, key, value))
        return small.gather(attend(q, k, v, attn_mask=small.mask))
    seen = []
    trees = zip(*(x.split(mask.lengths, 2) for x in (query, key, value)), mask.additive(query.dtype), strict=True)
    for segment, (q, k, v, m) in zip(mask.tree.segments, trees, strict=True):
        n = segment.prompt if mask.causal and segment.branches and softcap is None else 0
        if n:
            seen.append(attend(q[:, :, :n], k[:, :, :n], v[:, :, :n], is_causal=True))
        seen.append(attend(q[:, :, n:], k, v, attn_mask=m[n:]))
    return torch.cat([x.transpose(1, 2) for x in seen], 1)


def _capped(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, dropout: float, scaling: float, cap: float) -> Tensor:
    """Attention scores through cap * tanh(score / cap), as Gemma 2 has them."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.tanh(q @ k.transpose(2, 3) * (scaling / cap)) * cap + attn_mask
    return F.dropout(scores.softmax(-1, dtype=torch.float32).to(v.dtype), dropout) @ v
