"""Build the format task: a model that has learned to write anything, and rated lists of valid answers."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.errors import PrefoptError
from prefopt.worlds.cache import World, build_once, folder_once
from prefopt.worlds.formatted.truth import LETTERS, MARKS, VALID, reward
from prefopt.worlds.letters import (
    BOS,
    END,
    PAD,
    Size,
    fit,
    letter_tokenizer,
    new_model,
    one_thread,
    save,
    write_rows,
)

VERSION = "1"  # raise it whenever the built files change
ASKED, SHORTEST, LONGEST = 2, 4, 8  # letters of a prompt; characters of an answer
TOKENS = LONGEST + 1
DATA: dict[str, Any] = {"max_length": 1 + ASKED + TOKENS}
"""What the `data` section of every run on this world needs."""

SIZE = Size(hidden=64, layers=2, heads=4, inner=256)
STEPS, BATCH, RATE = 500, 64, 3e-3
KNOWN = 0.04  # share of valid answers in what the model has learned from
LIST, HELD_OUT = 4, 256


def prompts(count: int, seed: int = 0) -> list[str]:
    """Fresh prompts of two letters."""
    rng = random.Random(f"formatted prompts {seed}")  # noqa: S311
    return ["".join(rng.choices(LETTERS, k=ASKED)) for _ in range(count)]


def build(cache: Path | str | None = None, *, seed: int = 0, lists: int = 300, longer: bool = False) -> World:
    """The format task, from the cache or built, in about ten seconds.

    lists   rows of `lists`: four valid answers to one prompt with their true rewards, without ties; `train` holds the
            same as triples (gold the best, chosen the second, rejected the last)
    longer  only lists whose second best answer is longer than the last (the reward does not see length)

    `heldout` holds pairs of valid answers. Raises PrefoptError for fewer than one list.
    """
    if lists < 1:
        raise PrefoptError(f"lists = {lists}: at least 1")
    base = folder_once(
        "formatted-model", version=VERSION, settings={"seed": seed}, cache=cache, make=lambda to: _make_model(to, seed)
    )
    settings: dict[str, Any] = {"seed": seed, "lists": lists, "longer": longer}
    return build_once(
        "formatted", version=VERSION, settings=settings, cache=cache, make=lambda to: _make_world(to, base, **settings)
    )


def _make_model(folder: Path, seed: int) -> Mapping[str, Any]:
    with one_thread(seed):
        tokenizer = letter_tokenizer([PAD, BOS, END, *LETTERS, *MARKS], length=1 + ASKED + TOKENS)
        model = new_model(tokenizer, SIZE)
        loss = fit(model, _batches(tokenizer, seed), learning_rate=RATE)
        save(model, tokenizer, folder / "model")
    return {"parameters": model.num_parameters(), "loss": loss}


def _batches(tokenizer: Any, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    rng = random.Random(f"formatted {seed}")  # noqa: S311
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    for step in range(STEPS):
        texts = [p + (_valid(rng) if rng.random() < KNOWN else _other(rng)) for p in prompts(BATCH, 1000 * seed + step)]
        rows = tokenizer(texts).input_ids
        ids = torch.tensor([row + [end] + [pad] * (1 + ASKED + TOKENS - len(row) - 1) for row in rows])
        scored = ids != pad
        scored[:, : 1 + ASKED] = False
        yield ids, scored


def _valid(rng: random.Random) -> str:
    return "({})".format("".join(rng.choices(LETTERS, k=rng.randint(SHORTEST - 2, LONGEST - 2))))


def _other(rng: random.Random) -> str:
    """Letters and marks anywhere."""
    while VALID.fullmatch(text := "".join(rng.choices(LETTERS + MARKS, k=rng.randint(SHORTEST, LONGEST)))):
        pass
    return text


def _make_world(folder: Path, base: Path, *, seed: int, lists: int, longer: bool) -> dict[str, Any]:
    shutil.copytree(base / "model", folder / "model")
    rng = random.Random(f"formatted lists {seed} {longer}")  # noqa: S311
    rows = [_list(rng, prompt, longer) for prompt in prompts(lists, 10 * seed + 1)]
    write_rows(folder / "lists.jsonl", rows)
    write_rows(folder / "train.jsonl", [_triple(row) for row in rows])
    held_out = [_list(rng, prompt, False) for prompt in prompts(HELD_OUT, 10 * seed + 2)]
    write_rows(folder / "heldout.jsonl", [_triple(row) for row in held_out])
    write_rows(folder / "prompts.jsonl", ({"prompt": p} for p in prompts(HELD_OUT, 10 * seed + 3)))
    return {"lists": len(rows)}


def _list(rng: random.Random, prompt: str, longer: bool) -> dict[str, Any]:
    """Four different valid answers with different rewards, in no order."""
    while True:
        answers = [_valid(rng) for _ in range(LIST)]
        scores = reward([prompt] * LIST, answers)
        ranked = sorted(range(LIST), key=lambda i: -scores[i])
        if len(set(scores)) == LIST and (not longer or len(answers[ranked[1]]) > len(answers[ranked[-1]])):
            return {"prompt": prompt, "responses": answers, "scores": scores}


def _triple(row: Mapping[str, Any]) -> dict[str, Any]:
    ranked = sorted(zip(row["scores"], row["responses"], strict=True), reverse=True)
    named = dict(zip(("gold", "chosen", "rejected"), (ranked[0], ranked[1], ranked[-1]), strict=True))
    texts = {name: text for name, (_, text) in named.items()}
    return {"prompt": row["prompt"], **texts, **{f"{name}_score": score for name, (score, _) in named.items()}}
