"""What one model does: its samples, and its per-token numbers on samples and held-out pairs.

Policy and start model are observed one after the other, so that only one of them has to be in memory.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from prefopt.data.encode import Encoded, Encoder
from prefopt.errors import PrefoptError
from prefopt.rollout.numbers import Numbers, answers, token_numbers
from prefopt.rollout.text import Prompt, Sample, Sampling, encode_prompt, generate

Model = torch.nn.Module | Callable[[], torch.nn.Module]
"""A model, or a function that loads one; what it loads is freed after use."""


@dataclass(frozen=True)
class Observed:
    """`samples[prompt][k]` and their `numbers`; log-probs on the `others`' samples and on the `pairs`."""

    samples: list[list[Sample]]
    numbers: list[Numbers]
    others: list[Numbers]
    pairs: list[Numbers]


def observe(
    model: torch.nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    pairs: Sequence[Encoded],
    sampling: Sampling,
    encoder: Encoder,
    *,
    others: Sequence[Sequence[Sample]] = (),
    name: str = "model",
    progress: bool = True,
) -> Observed:
    """Samples `prompts`, then scores these samples, `others` (another model's samples of them) and `pairs`."""
    samples = generate(model, tokenizer, prompts, sampling, encoder=encoder, progress=progress,
                       description=f"sampling {name}")  # fmt: skip
    ids = [encode_prompt(encoder, p) for p in prompts]

    def on(groups: Sequence[Sequence[Sample]]) -> list[Encoded]:
        return [answers(p, [s.token_ids for s in group]) for p, group in zip(ids, groups, strict=True)]

    options: dict[str, Any] = {"progress": progress, "description": f"scoring {name}"}
    return Observed(
        samples,
        token_numbers(model, on(samples), ("policy", "entropy"), **options),
        token_numbers(model, on(others), **options) if others else [],
        token_numbers(model, pairs, **options) if pairs else [],
    )


@contextmanager
def opened(model: Model | None, policy: Model) -> Iterator[torch.nn.Module]:
    """The model; None means the policy with its adapter switched off."""
    if model is None:
        if not isinstance(policy, torch.nn.Module):
            raise PrefoptError("name the start model: only a loaded policy can be its own start, without its adapter")
        with adapter_off(policy) as start:
            yield start
    elif isinstance(model, torch.nn.Module):
        yield model
    else:
        loaded = model()
        try:
            yield loaded
        finally:
            del loaded
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@contextmanager
def adapter_off(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The model as it is without its adapter; nothing but the adapters' own switch is touched."""
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "_disable_adapters")]
    if not layers:
        raise PrefoptError("the policy has no adapter to switch off; name the start model to compare with")
    before = [m._disable_adapters for m in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield model
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer._disable_adapters = off
