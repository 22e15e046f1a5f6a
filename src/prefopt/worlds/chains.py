"""Chains of sums modulo ten, step by step, with branches that go wrong: the world of Tree TPO's claim in small.

A prompt is a number and four operations, "3+4*2-1*5a"; an answer does them one after the other, three letters a step:
operation, operand, result ("+47*24-13*55"). A list has five answers: the right one, three that leave it at a random
step, one that is wrong from the start. An answer's true value is the share of its results that are right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prefopt.files import write_jsonl
from prefopt.worlds import letters

DIGITS, OPERATIONS, STEPS, BRANCHES = "0123456789", "+-*", 4, 3
VOCABULARY = (*DIGITS, *OPERATIONS, "a", letters.END)
PROMPT, ANSWER = 2 * STEPS + 2, 3 * STEPS + 1  # tokens; the end token counts
SIZE = letters.Size(hidden=96, layers=2, heads=4, inner=192)
ERRS, NOISE = 0.5, 20.0  # how often a step of a branch goes wrong; the judge's standard deviation on [-100, 100]


@dataclass(frozen=True)
class Chains:
    """A built world: the model after SFT, lists to train on and held-out ones."""

    model: Path
    train: Path
    heldout: Path


def prompt(rng: random.Random) -> str:
    """A number and STEPS operations."""
    return rng.choice(DIGITS) + "".join(rng.choice(OPERATIONS) + rng.choice(DIGITS) for _ in range(STEPS)) + "a"


def result(value: int, operation: str, operand: int) -> int:
    return {"+": value + operand, "-": value - operand, "*": value * operand}[operation] % 10


def right(asked: str) -> list[str]:
    """The steps of the right answer."""
    return _continued(asked, [], random.Random(0), errs=0.0)  # noqa: S311


def value(asked: str, steps: list[str]) -> float:
    """The share of the results that are right."""
    return sum(a[-1:] == b[-1:] for a, b in zip(steps, right(asked), strict=False)) / STEPS


def _continued(asked: str, steps: list[str], rng: random.Random, errs: float) -> list[str]:
    """The steps gone on from the last result to the end; each goes wrong with probability `errs`."""
    made = list(steps)
    for k in range(len(steps), STEPS):
        before = int(made[-1][-1]) if made else int(asked[0])
        operation, operand = asked[1 + 2 * k], asked[2 + 2 * k]
        found = result(before, operation, int(operand))
        if rng.random() < errs:
            found = (found + rng.randrange(1, 10)) % 10
        made.append(f"{operation}{operand}{found}")
    return made


def tree(asked: str, rng: random.Random) -> dict[str, object]:
    """One list: answers in steps, their scores by a noisy judge, their true values."""
    best = right(asked)
    answers = [best] + [_continued(asked, best[: rng.randrange(STEPS)], rng, ERRS) for _ in range(BRANCHES)]
    first = (int(best[0][-1]) + rng.randrange(1, 10)) % 10
    answers.append(_continued(asked, [best[0][:-1] + str(first)], rng, ERRS))
    values = [value(asked, a) for a in answers]
    noisy = [200 * v - 100 + rng.gauss(0, NOISE) for v in values]
    scores = [100.0] + [round(max(-100.0, min(99.0, s)), 1) for s in noisy[1:]]
    texts = ["".join(a) for a in answers]
    return {"prompt": asked, "responses": texts, "steps": answers, "scores": scores, "values": values}


def build(folder: Path, *, seed: int, lists: int, heldout: int, demonstrations: int, fitted: int) -> Chains:
    """Lists, and a model that saw the right answers of the first `demonstrations` prompts (`fitted` batches of 64)."""
    rng = random.Random(seed)  # noqa: S311
    world = Chains(folder / "model", folder / "train.jsonl", folder / "heldout.jsonl")
    asked = [prompt(rng) for _ in range(max(lists, demonstrations) + heldout)]
    for file, of in ((world.train, asked[:lists]), (world.heldout, asked[-heldout:])):
        write_jsonl(file, [tree(a, rng) for a in of])
    if not world.model.is_dir():
        tokenizer = letters.letter_tokenizer(VOCABULARY, length=PROMPT + ANSWER)
        with letters.one_thread(seed):
            model = letters.new_model(tokenizer, SIZE)
            letters.fit(model, _batches(tokenizer, asked[:demonstrations], fitted, rng), learning_rate=1e-3)
        half = world.model.with_name(".model")
        letters.save(model, tokenizer, half)
        half.replace(world.model)  # whole or not at all
    return world


def _batches(tokenizer: object, asked: list[str], count: int, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    rows = torch.tensor([[VOCABULARY.index(x) for x in a + "".join(right(a))] + [len(VOCABULARY) - 1] for a in asked])
    scored = torch.zeros(64, rows.shape[1], dtype=torch.bool)
    scored[:, PROMPT:] = True
    for _ in range(count):
        yield rows[torch.tensor([rng.randrange(len(rows)) for _ in range(64)])], scored
