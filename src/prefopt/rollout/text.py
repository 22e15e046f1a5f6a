"""Sampling answers from a causal language model with `transformers` generation, in batches.

A sample depends on (seed, position of its prompt, number of the sample) and on nothing else: each row carries its own
uniform numbers and picks the token where they cut the cumulative distribution. So the batch size, the order of the
batches and a restart do not change it (up to the rounding of the model itself), the global random state is never
touched, and two models that are asked with the same seed see the same random numbers, which makes paired
comparisons sharper.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prefopt.data.config import DataConfig
from prefopt.data.encode import Encoder
from prefopt.data.example import Example, Turns
from prefopt.errors import PrefoptError
from prefopt.scoring.modes import inference

Prompt = Turns | Example


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: temperature 0 is greedy; top_p 1 and top_k 0 switch the filters off.

    batch_size None: by the size of the model, from 256 answers at once for tiny ones to 8 for billions of parameters.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    n: int = 1
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        counts = {"max_new_tokens": (self.max_new_tokens, 1), "n": (self.n, 1), "top_k": (self.top_k, 0)}
        if self.batch_size is not None:
            counts["batch_size"] = (self.batch_size, 1)
        for name, (value, least) in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PrefoptError(f"sampling: {name} must be a whole number of at least {least}; got {value!r}")
        if not (self.temperature >= 0 and np.isfinite(self.temperature)):
            raise PrefoptError(f"sampling: temperature must be 0 (greedy) or more; got {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise PrefoptError(f"sampling: top_p must lie in (0, 1]; got {self.top_p!r}")

    def batch(self, model: torch.nn.Module) -> int:
        """Answers in one batch: caches grow about as fast as models do."""
        return self.batch_size or min(256, max(8, 20_000_000_000 // sum(p.numel() for p in model.parameters())))

    @property
    def plain(self) -> bool:
        """True if samples follow the model's own distribution, as an estimate of the KL needs."""
        return self.temperature == 1 and self.top_p == 1 and self.top_k == 0


@dataclass(frozen=True)
class Sample:
    """An answer: its text, its token ids (with the end token if it came), and whether it ended by itself."""

    text: str
    token_ids: list[int]
    finished: bool


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling | None = None,
    *,
    encoder: Encoder | None = None,
    first: int = 0,
    progress: bool = True,
    description: str = "sampling",
) -> list[list[Sample]]:
    """`sampling.n` answers to every prompt (a string, chat messages, or an `Example`), in the order of the prompts.

    `encoder` is the one of the training run, if its data section is not the default one (system message, template).
    `first` is the position of prompts[0] in the whole list when only a part is asked (it enters the seed).
    The model's training mode and its cache setting are as before when this returns.
    """
    sampling, encoder = sampling or Sampling(), encoder or prompt_encoder(tokenizer)
    ids = [encode_prompt(encoder, prompt) for prompt in prompts]
    ends = end_tokens(model, encoder)
    said = continuations(model, ids, ends, sampling, first=first, progress=progress, description=description)
    return [[_sample(tokens, ends, tokenizer) for tokens in group] for group in said]


@torch.no_grad()
def continuations(
    model: torch.nn.Module,
    ids: Sequence[list[int]],
    ends: Sequence[int],
    sampling: Sampling,
    *,
    first: int = 0,
    progress: bool = True,
    description: str = "sampling",
) -> list[list[list[int]]]:
    """`sampling.n` answers to every prompt of token ids, each up to and with the first of `ends` that comes."""
    rows = sorted(((i, k) for i in range(len(ids)) for k in range(sampling.n)), key=lambda row: -len(ids[row[0]]))
    answers: list[list[list[int]]] = [[[]] * sampling.n for _ in ids]
    size = sampling.batch(model)
    with inference(model), tqdm(total=len(rows), desc=description, unit="answer", delay=1, disable=not progress) as bar:
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            tokens = _batch([ids[i] for i, _ in batch], [(first + i, k) for i, k in batch], model, ends, sampling)
            for (i, k), new in zip(batch, tokens, strict=True):
                stop = next((j for j, token in enumerate(new) if token in ends), len(new) - 1)
                answers[i][k] = new[: stop + 1]
            bar.update(len(batch))
    return answers


def prompt_encoder(tokenizer: Any, data: DataConfig | None = None) -> Encoder:
    """Encodes prompts as training does with this data section, or the default one."""
    return Encoder(tokenizer, data or DataConfig(path="prompts"))


def encode_prompt(encoder: Encoder, prompt: Prompt) -> list[int]:
    """Token ids of what the model is fed before it answers: the same ids as in training."""
    example = prompt if isinstance(prompt, Example) else Example(prompt, ())
    ids = encoder.prompt_ids(example)
    if not ids:
        raise PrefoptError("a prompt has no tokens: give at least one character, or a tokenizer with a start token")
    return ids


def prompt_text(prompt: Any) -> str:
    """A prompt for people and reward functions: a lone user message as its text, a conversation with its roles."""
    if isinstance(prompt, Example):
        prompt = prompt.prompt
    if not isinstance(prompt, list):
        return str(prompt)
    turns = [(str(m.get("role", "")), m.get("content")) if isinstance(m, dict) else ("", m) for m in prompt]
    texts = [(role, c if isinstance(c, str) else json.dumps(c, ensure_ascii=False)) for role, c in turns]
    return texts[0][1] if len(texts) == 1 else "\n".join(f"{role}: {text}" for role, text in texts)


def end_tokens(model: torch.nn.Module, encoder: Encoder) -> list[int]:
    """Token ids that end an answer: those that training ends one with, and those of the model's generation config."""
    listed = getattr(getattr(unwrap(model), "generation_config", None), "eos_token_id", None)
    ids = {*(listed if isinstance(listed, list | tuple) else [listed]), encoder.eos, encoder.template_end} - {None}
    return sorted(ids)


def unwrap(model: Any) -> Any:
    """The model inside a data-parallel wrapper."""
    return model.module if hasattr(model, "module") and not hasattr(model, "generate") else model


def _batch(
    prompts: list[list[int]],
    keys: list[tuple[int, int]],
    model: torch.nn.Module,
    ends: Sequence[int],
    sampling: Sampling,
) -> list[list[int]]:
    width = max(map(len, prompts))
    pad = ends[0]
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    processors = LogitsProcessorList()
    if sampling.temperature > 0:
        if sampling.temperature != 1:
            processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k > 0:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        processors.append(_Draw(uniforms(sampling.seed, keys, sampling.max_new_tokens), width))
    # explicit neutral values: the model's own generation config (repetition penalty, ...) would otherwise bend the
    # distribution that is sampled away from the one that is trained and scored, or be warned about (top_k: the default)
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=False, num_beams=1, repetition_penalty=1.0, min_length=0,
        no_repeat_ngram_size=0, eos_token_id=list(ends), pad_token_id=pad, use_cache=True,
        temperature=1.0, top_p=1.0, top_k=50,
    )  # fmt: skip
    out = unwrap(model).generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors
    )
    return out[:, width:].tolist()


def uniforms(seed: int, keys: Sequence[tuple[int, int]], steps: int) -> np.ndarray:
    """[len(keys), steps] uniform numbers in [0, 1): row by row from (seed, prompt, sample), equal for any batch."""
    return np.stack([np.random.default_rng([seed, *key]).random(steps) for key in keys])


class _Draw(LogitsProcessor):
    """Leaves one token per row: where the row's uniform number cuts the cumulative distribution."""

    def __init__(self, numbers: np.ndarray, prompt_length: int):
        self.numbers, self.start = torch.from_numpy(np.minimum(numbers, 1 - 1e-12)), prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # double precision: a float32 sum over a large vocabulary is off by more than the rarest tokens' probability
        precise = torch.float32 if scores.device.type == "mps" else torch.float64
        cumulative = scores.softmax(-1, dtype=precise).cumsum(-1)
        cut = self.numbers[:, input_ids.shape[1] - self.start].to(cumulative)[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, cut, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def _sample(tokens: list[int], ends: Sequence[int], tokenizer: Any) -> Sample:
    finished = bool(tokens) and tokens[-1] in ends
    text = tokenizer.decode(tokens[:-1] if finished else tokens, skip_special_tokens=True)
    return Sample(text, tokens, finished)
