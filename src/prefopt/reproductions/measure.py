"""Measuring a trained text model: its place between reward and KL, and comparison of two frontiers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.frontier import Point, area, reward_at

Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


def frontier_point(
    policy: Path, start: Path, prompts: Path, reward: Reward, *, samples: int, seed: int, max_new_tokens: int = 80
) -> dict[str, float]:
    """Mean true reward and KL to the start (k1, nats per answer) of plain samples, each with its standard error.

    `prompts` is JSONL with a `prompt`; `samples` answers are drawn to each, at temperature 1; errors are over prompts.
    """
    from ..evaluation.divergence import kl_k1
    from ..evaluation.estimate import mean
    from ..evaluation.observe import observe
    from ..models.text import load_tokenizer
    from ..rollout.numbers import answers, token_numbers
    from ..rollout.text import Sampling, encode_prompt, prompt_encoder

    tokenizer = load_tokenizer(str(policy))
    encoder = prompt_encoder(tokenizer)
    texts = [json.loads(line)["prompt"] for line in prompts.read_text(encoding="utf-8").splitlines()]
    sampling = Sampling(max_new_tokens=max_new_tokens, n=samples, seed=seed, batch_size=256)
    seen = observe(_model(policy), tokenizer, texts, [], sampling, encoder)
    ids = [encode_prompt(encoder, text) for text in texts]
    said = [answers(p, [s.token_ids for s in group]) for p, group in zip(ids, seen.samples, strict=True)]
    before = token_numbers(_model(start), said)
    groups = [i for i, group in enumerate(seen.samples) for _ in group]
    new, old = ([row for numbers in part for row in numbers["policy"]] for part in (seen.numbers, before))
    flat = [s for group in seen.samples for s in group]
    value = mean(reward([texts[i] for i in groups], [s.text for s in flat]), groups)
    distance = kl_k1(new, old, groups)
    return {
        "kl": distance.value,
        "kl_se": distance.standard_error,
        "reward": value.value,
        "reward_se": value.standard_error,
        "tokens": float(np.mean([len(s.token_ids) for s in flat])),
    }


def _model(path: Path) -> Any:
    import torch

    from ..config import ModelConfig
    from ..models.text import load_text_model

    loaded = load_text_model(ModelConfig(path=str(path)), trainable=False).model  # type: ignore[call-arg]
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu")


def curve(points: Sequence[Mapping[str, float]], start: Mapping[str, float]) -> list[Point]:
    """(KL, reward) of a method's runs and of the model that they start from, which is every method's point at KL 0."""
    return [(0.0, start["reward"]), *((max(p["kl"], 0.0), p["reward"]) for p in points)]


def common_range(a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]]) -> tuple[float, float] | None:
    """The KLs that the runs of both methods span; None if they do not overlap."""
    low = max(min(p["kl"] for p in points) for points in (a, b))
    high = min(max(p["kl"] for p in points) for points in (a, b))
    return (max(low, 0.0), high) if high > max(low, 0.0) else None


def mean_lead(a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]], start: Mapping[str, float]) -> float:
    """Reward of a's frontier above b's at matched sqrt(KL), averaged over the common range; NaN without one."""
    common = common_range(a, b)
    return math.nan if common is None else area(curve(a, start), *common) - area(curve(b, start), *common)


def least_lead(
    a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]], start: Mapping[str, float], grid: int = 65
) -> float:
    """The smallest such difference anywhere in the common range; NaN without one."""
    common = common_range(a, b)
    if common is None:
        return math.nan
    low, high = common
    kls = [min(max(x * x, low), high) for x in np.linspace(math.sqrt(low), math.sqrt(high), grid)]
    return min(reward_at(curve(a, start), kl) - reward_at(curve(b, start), kl) for kl in kls)


def best(points: Sequence[Mapping[str, float]]) -> float:
    """The highest reward of a method's runs."""
    return max(p["reward"] for p in points)
