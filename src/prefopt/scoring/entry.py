"""The scoring entry: a forward that lives inside the model, so that every wrapper (DDP, FSDP, PEFT, accelerate,
DeepSpeed) stands before it as before any forward."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PrefoptError
from . import families
from .batch import Rows
from .inside import LOGITS, Listener, mean_logits
from .kernel import NUMBERS, Head, Reference, token_numbers
from .tree import Tree

log = logging.getLogger(__name__)
Want = Mapping[str, Iterable[str]] | Iterable[str]
"""Row set -> what is asked of it, or the same for all: "logps", "entropy", "token_kl", "log_collision", "reward",
"hidden", and features: "own", "pooled:last", "pooled:mean", "layers:all", "layers:last", "activations:GROUP,GROUP"."""
_told: set[str] = set()


def install(model: nn.Module) -> nn.Module:
    """Give a causal language model (or a sequence classifier with one label) its scoring entry.

    `model(tree=, rows={name: Rows}, want=, reference={name: Reference})` then answers {name: {want: [R, T]}} (reward:
    [R, 1]; hidden: [K, H] where the scored tokens are predicted; own: [R, T, H] at the scored tokens themselves; pooled:
    [R, H] at a row's last token or the mean over its scored ones; layers: [R, L, T, D] of every layer, and activations:
    [R, J, T] of every hook, where tokens are predicted, see `inside`). Called without `tree` the model behaves as before.
    Wrappers and adapters may be put around the model, or into it, before or after.
    """
    inner = core(model)
    if "tree_packed" in vars(inner):
        return model
    if inner.config.is_encoder_decoder:
        raise PrefoptError(f"{type(inner).__name__} is an encoder-decoder: text methods train decoder-only models")
    inner.tree_packed = families.packs(inner.config)
    if inner.tree_packed:
        families.see_trees(inner.config)
        families.trim_tail(inner.base_model)
    elif inner.config.model_type not in _told:
        _told.add(inner.config.model_type)
        log.warning(
            "family '%s' is not among those proven for packed trees: every response is computed with its own "
            "copy of the prompt, padded. Results are the same, steps take longer",
            inner.config.model_type,
        )
    inner.forward = MethodType(_entry_of(type(inner)), inner)
    if not inner.tree_packed and inner.get_output_embeddings() is not None:
        _check_head(inner)
    for linear in _linears(inner.get_output_embeddings()):
        linear.forward = MethodType(_head_forward, linear)
    return model


def core(model: Any) -> Any:
    """The model inside its wrappers."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _entry_of(kind: type[nn.Module]) -> Callable[..., Any]:
    """`_forward` under the signature of the model's own: generate looks there for what it may pass on."""

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _forward(self, *args, **kwargs)

    return forward


def _forward(
    self: Any,
    *args: Any,
    tree: Tree | None = None,
    rows: Mapping[str, Rows] | None = None,
    want: Want = ("logps",),
    reference: Mapping[str, Reference] | None = None,
    **kwargs: Any,
) -> Any:
    if tree is None:
        return type(self).forward(self, *args, **kwargs)
    rows = rows or {}
    asked = {name: tuple(want[name] if isinstance(want, Mapping) else want) for name in rows}
    with Listener(self, {w for wanted in asked.values() for w in wanted}) as listener:
        hidden, place = (_packed if self.tree_packed else _padded)(self, tree, listener)
    out: dict[str, dict[str, Tensor]] = {name: {} for name in rows}
    for name, r in rows.items():
        if "reward" in asked[name]:
            out[name]["reward"] = _score(self, hidden[place(r.last, r.path)])
        if "hidden" in asked[name]:
            out[name]["hidden"] = hidden[_scored(r, place)]
        for wanted in asked[name]:
            if wanted.partition(":")[0] in FEATURES:
                out[name][wanted] = _feature(self, wanted, hidden, r, place, listener)
    numbers = {name: tuple(n for n in NUMBERS if n in wanted) for name, wanted in asked.items()}
    for wanted in {n: None for n in numbers.values() if n}:
        group = {name: rows[name] for name in rows if numbers[name] == wanted}
        found = _numbers(self, hidden, place, group, wanted, reference or {})
        for name, values in found.items():
            out[name] |= values
    return out


Place = Callable[[Tensor, Tensor], Tensor]  # (positions in the packed row, paths) -> positions in `hidden`


FEATURES = ("own", "pooled", "layers", "activations")


def _feature(self: Any, wanted: str, hidden: Tensor, r: Rows, place: Place, listener: Listener) -> Tensor:
    """One of FEATURES, zero where nothing is scored."""
    kind, _, how = wanted.partition(":")
    if kind == "own":
        return r.spread(hidden[_scored(r, place, r.own)])
    if wanted == "pooled:last":
        return hidden[place(r.last, r.path)]
    if wanted == "pooled:mean":
        row = r.index // r.mask.shape[1]
        total = hidden.new_zeros(len(r.mask), hidden.shape[-1]).index_add(0, row, hidden[_scored(r, place, r.own)])
        return total / r.mask.sum(-1, keepdim=True).clamp(min=1)
    at = _scored(r, place)
    if kind == "layers":
        return r.spread(listener.layers(at, how)).transpose(1, 2)
    logits = _with_head(self, hidden[at], lambda h, head, _: mean_logits(h, head)) if LOGITS in how.split(",") else None
    return r.spread(listener.activations(at, logits)).transpose(1, 2)


def _packed(self: Any, tree: Tree, listener: Listener) -> tuple[Tensor, Place]:
    """Last hidden states [N, H] of the packed row. The mask of ones only keeps transformers from guessing where
    documents begin, for which it would wait for the device."""
    with families.seeing(tree):
        out = self.base_model(
            input_ids=tree.input_ids,
            attention_mask=torch.ones_like(tree.input_ids),
            position_ids=tree.position_ids,
            use_cache=False,
            **listener.options,
        )
    listener.take(out)
    return out.last_hidden_state[0], lambda at, path: at


def _padded(self: Any, tree: Tree, listener: Listener) -> tuple[Tensor, Place]:
    """Last hidden states [B * L, H] with every branch in a padded row of its own."""
    index, mask = tree.paths()
    ids = tree.input_ids[0][index] * mask
    out = self.base_model(input_ids=ids, attention_mask=mask, use_cache=False, **listener.options)
    listener.take(out)
    width, position = index.shape[1], tree.position_ids[0]
    return out.last_hidden_state.flatten(0, 1), lambda at, path: path * width + position[at]


def _scored(r: Rows, place: Place, at: Tensor | None = None) -> Tensor:
    """[K] where the hidden states that predict the scored tokens lie (or those at other positions [R, T])."""
    path = r.path[:, None].expand_as(r.at)
    return place((r.at if at is None else at).flatten()[r.index], path.flatten()[r.index])


def _numbers(
    self: Any,
    hidden: Tensor,
    place: Place,
    rows: Mapping[str, Rows],
    want: tuple[str, ...],
    reference: Mapping[str, Reference],
) -> dict[str, dict[str, Tensor]]:
    """One pass of the head over the scored tokens of all row sets."""
    at = torch.cat([_scored(r, place) for r in rows.values()])
    targets = torch.cat([r.target.flatten()[r.index] for r in rows.values()])
    told = Reference.join([reference[name] for name in rows]) if "token_kl" in want else None

    def score(hidden: Tensor, head: Head, base: Head) -> dict[str, Tensor]:
        against = Reference(told.hidden, base.detach()) if told is not None and told.head is None else told
        return token_numbers(hidden, head, targets, want, against)

    values = _with_head(self, hidden[at], score)
    sizes = [len(r.index) for r in rows.values()]
    found: dict[str, dict[str, Tensor]] = {name: {} for name in rows}
    for number, flat in values.items():
        for (name, r), part in zip(rows.items(), flat.split(sizes), strict=True):
            found[name][number] = r.spread(part)
    return found


def _with_head(self: Any, hidden: Tensor, use: Callable[[Tensor, Head, Head], Any]) -> Any:
    """use(hidden, head, head without adapter) through the head as a module, so that whoever shards or offloads its
    weight brings it in."""
    module = self.get_output_embeddings()
    if module is None:
        raise PrefoptError(f"{type(self).__name__} has no language-model head; this method needs log-probabilities")

    def score(hidden: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None = None) -> Any:
        return use(hidden, _head(self, weight, bias), _head(self, weight if base is None else base, bias))

    if hasattr(module, "lora_A"):
        return score(hidden, _merged(module), module.base_layer.bias, module.base_layer.weight)
    return module(hidden, score=score)


def _head(self: Any, weight: Tensor, bias: Tensor | None) -> Head:
    return Head(weight, bias, families.logit_scale(self.config), families.logit_cap(self.config))


def head_of(model: nn.Module) -> Head:
    """The head of a model that is whole on this device (a frozen reference)."""
    inner = core(model)
    module: Any = inner.get_output_embeddings()
    return _head(inner, module.weight, module.bias).detach()


def _head_forward(self: nn.Module, hidden: Tensor, score: Callable[..., Any] | None = None) -> Any:
    return type(self).forward(self, hidden) if score is None else score(hidden, self.weight, self.bias)


def _linears(head: nn.Module | None) -> list[Any]:
    """The layers that hold a head's weight; more than one where an adapter library keeps a trained copy."""
    found = [m for m in head.modules() if isinstance(m, nn.Linear)] if head is not None else []
    if head is not None and not found:
        raise PrefoptError(
            f"the head is a {type(head).__name__}, not a linear layer: its log-probabilities are not supported"
        )
    return found


@torch.no_grad()
def _check_head(model: Any) -> None:
    """An unlisted family may change logits after its head; then its log-probs would be wrong without a word."""
    module = model.get_output_embeddings()
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    ids = torch.zeros(1, 2, dtype=torch.long, device=module.weight.device)
    logits = model(input_ids=ids, use_cache=False).logits
    hook.remove()
    head = _head(model, module.weight, module.bias)
    told = token_numbers(seen[0][0], head, ids[0])["logps"]
    expected = torch.log_softmax(logits[0].float(), -1)[:, 0]
    if not torch.allclose(told, expected, atol=0.1 if module.weight.dtype.itemsize < 4 else 1e-4):
        raise PrefoptError(
            f"family '{model.config.model_type}' changes logits after its head in a way that is not known here; "
            "its log-probabilities cannot be computed"
        )


def _merged(module: Any) -> Tensor:
    """Weight of a head with LoRA, the deltas added."""
    if any(getattr(d, "p", 0.0) > 0 for d in module.lora_dropout.values()) or any(module.use_dora.values()):
        raise PrefoptError(
            "an adapter with dropout or DoRA on the output head is not supported: take the head out of target_modules"
        )
    weight = module.base_layer.weight
    if not module.merged and not module.disable_adapters:
        weight = weight + sum(module.get_delta_weight(name) for name in module.active_adapters if name in module.lora_A)
    return weight


def _score(self: Any, hidden: Tensor) -> Tensor:
    """[R, 1] the scalar head of a sequence classifier with one label."""
    score = getattr(self, "score", None)
    if score is None or getattr(self.config, "num_labels", 0) != 1:
        raise PrefoptError(
            f"{type(self).__name__} has no scalar head; a reward model is a sequence classifier with num_labels=1"
        )
    return score(hidden.to(next(score.parameters()).dtype)).float()
