"""Two rewards that conflict, on answers that can all be written down: the world of MODPO's trained front in small.

Four letters, answers of five: 1,024 answers to each of six prompts. `likes` is the share of the prompt's own letter,
`changes` the share of neighbours that differ. The model has learned a mix of answers of either kind. Answers have no end
token: they are cut at five letters (`DATA`), and other tokens than the four letters are ruled out.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.worlds import letters

LETTERS, PROMPTS, LENGTH = "abcd", "pqrstu", 5
TOKENS = LENGTH
VOCABULARY = (*LETTERS, *PROMPTS, letters.END)
SIZE = letters.Size(hidden=32, layers=2, heads=2, inner=64)
STEPS, BATCH, RATE = 300, 128, 3e-3
SHARPNESS = 8.0  # log-odds of a Bradley-Terry label for a whole reward
DATA: dict[str, Any] = {"max_length": 1 + LENGTH}
"""What the `data` section of every run on this world needs."""


@dataclass(frozen=True)
class Rivals:
    """A built world: the model, and pairs labelled by either reward."""

    model: Path
    likes: Path
    changes: Path

    @property
    def train(self) -> Path:
        return self.likes


def likes(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Share of the letters that are the prompt's own (p and t: a, q and u: b, r: c, s: d)."""
    return [y.count(own(x)) / LENGTH for x, y in zip(prompts, responses, strict=True)]


def changes(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Share of neighbouring letters that differ."""
    return [sum(a != b for a, b in itertools.pairwise(y)) / (LENGTH - 1) for y in responses]


def own(prompt: str) -> str:
    return LETTERS[PROMPTS.index(prompt) % len(LETTERS)]


def build(folder: Path, *, seed: int, pairs: int) -> Rivals:
    """The model, and `pairs` pairs of its samples for each reward."""
    world = Rivals(folder / "model", folder / "likes.jsonl", folder / "changes.jsonl")
    if world.changes.is_file():  # written last
        return world
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = letters.letter_tokenizer(VOCABULARY, length=1 + TOKENS)
    with letters.one_thread(seed):
        model = letters.new_model(tokenizer, SIZE)
        letters.rule_out(model, range(len(LETTERS), len(VOCABULARY)))
        letters.fit(model, _batches(np.random.default_rng([seed, 0])), learning_rate=RATE)
        letters.save(model, tokenizer, world.model)
        rng = random.Random(seed)  # noqa: S311
        for stream, (reward, file) in enumerate(((likes, world.likes), (changes, world.changes))):
            asked = [PROMPTS[i % len(PROMPTS)] for i in range(int(1.1 * pairs))]
            found = letters.answers(model, tokenizer, asked, 2, TOKENS, seed=10 * seed + stream)
            sides = [
                [s.text for s in group] if all(len(s.text) == LENGTH for s in group) else ["", ""] for group in found
            ]
            rows = letters.Judge(reward, SHARPNESS, (0.0,)).pairs(asked, sides, rng, ties=True)
            letters.write_rows(file, letters.first_rows(rows, pairs, "pairs"))
    return world


def _batches(rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Half of the answers hold the prompt's letter in three places of five, half change their letter nine times of ten."""
    for _ in range(STEPS):
        x = rng.integers(len(PROMPTS), size=BATCH)
        fond = np.where(rng.random((BATCH, LENGTH)) < 0.6, x[:, None] % 4, rng.integers(4, size=(BATCH, LENGTH)))
        steps = np.where(rng.random((BATCH, LENGTH)) < 0.9, rng.integers(1, 4, size=(BATCH, LENGTH)), 0)
        restless = (rng.integers(4, size=(BATCH, 1)) + steps.cumsum(1)) % 4
        answer = np.where(rng.random((BATCH, 1)) < 0.5, fond, restless)
        ids = torch.from_numpy(np.concatenate([x[:, None] + len(LETTERS), answer], 1))
        scored = torch.ones(ids.shape, dtype=torch.bool)
        scored[:, 0] = False
        yield ids, scored


@torch.no_grad()
def everything(model: torch.nn.Module) -> Tensor:
    """[6, 1024] exact log-probability of every answer to every prompt."""
    answers = torch.tensor(list(itertools.product(range(len(LETTERS)), repeat=LENGTH)))
    rows = []
    for prompt in range(len(PROMPTS)):
        ids = torch.cat([torch.full((len(answers), 1), len(LETTERS) + prompt), answers], 1)
        logp = model(input_ids=ids[:, :-1]).logits.double().log_softmax(-1)
        rows.append(logp.gather(2, ids[:, 1:, None])[..., 0].sum(1))
    return torch.stack(rows)


def all_rewards() -> tuple[Tensor, Tensor]:
    """[6, 1024] both rewards of what `everything` enumerates."""
    texts = ["".join(y) for y in itertools.product(LETTERS, repeat=LENGTH)]
    made = [[reward([x] * len(texts), texts) for x in PROMPTS] for reward in (likes, changes)]
    first, second = (torch.tensor(m, dtype=torch.float64) for m in made)
    return first, second


def steps_of(passes: int, pairs: int, batch: int) -> int:
    """Optimiser steps of so many passes over the pairs."""
    return passes * math.ceil(pairs / batch)
