"""Build the rated task: a Markov chain, a model that has learned it, and rated lists of its samples."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import pstdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.errors import PrefoptError
from prefopt.worlds.cache import World, build_once, folder_once
from prefopt.worlds.letters import (
    BOS,
    END,
    PAD,
    Judge,
    Rows,
    Size,
    answers,
    first_rows,
    fit,
    letter_tokenizer,
    load,
    new_model,
    one_thread,
    save,
    write_rows,
)
from prefopt.worlds.rated.truth import LETTERS, reward

VERSION = "1"  # raise it whenever the built files change
ASKED, SHORTEST, LONGEST = 3, 6, 10
TOKENS = LONGEST + 1
DATA: dict[str, Any] = {"max_length": 1 + ASKED + TOKENS}
"""What the `data` section of every run on this world needs."""

SIZE = Size(hidden=64, layers=2, heads=4, inner=256)
STEPS, BATCH, RATE = 400, 64, 3e-3
LIST, HELD_OUT = 4, 256


def prompts(count: int, seed: int = 0) -> list[str]:
    """Fresh prompts of three letters."""
    rng = random.Random(f"rated prompts {seed}")  # noqa: S311
    return ["".join(rng.choices(LETTERS, k=ASKED)) for _ in range(count)]


def build(cache: Path | str | None = None, *, seed: int = 0, lists: int = 300, noise: float = 0.6) -> World:
    """The rated task, from the cache or built, in about ten seconds.

    lists  rows of `lists`: four different samples of the model to one prompt, with ratings as `scores`
    noise  standard deviation of a rating's error, in units of the true reward's among these samples

    `train` holds the best rated against the worst rated; `heldout` pairs in the true order. Raises PrefoptError for dials
    out of range.
    """
    if lists < 1 or not noise >= 0:
        raise PrefoptError(f"lists = {lists}, noise = {noise}: at least 1 and 0")
    base = folder_once(
        "rated-model", version=VERSION, settings={"seed": seed}, cache=cache, make=lambda to: _make_model(to, seed)
    )
    settings: dict[str, Any] = {"seed": seed, "lists": lists, "noise": float(noise)}
    return build_once(
        "rated", version=VERSION, settings=settings, cache=cache, make=lambda to: _make_world(to, base, **settings)
    )


def _make_model(folder: Path, seed: int) -> Mapping[str, Any]:
    with one_thread(seed):
        tokenizer = letter_tokenizer([PAD, BOS, END, *LETTERS], length=1 + ASKED + TOKENS)
        model = new_model(tokenizer, SIZE)
        loss = fit(model, _batches(tokenizer, np.random.default_rng([seed, 0])), learning_rate=RATE)
        save(model, tokenizer, folder / "model")
    return {"parameters": model.num_parameters(), "loss": loss}


def _batches(tokenizer: Any, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Fresh answers of a Markov chain whose rows lie between a few likely letters and all alike."""
    n = len(LETTERS)
    edges = (0.5 * rng.dirichlet([0.3] * n, size=n) + 0.5 / n).cumsum(1)
    first, end, pad = tokenizer.convert_tokens_to_ids(LETTERS[0]), tokenizer.eos_token_id, tokenizer.pad_token_id
    for _ in range(STEPS):
        ids = np.full((BATCH, 1 + ASKED + TOKENS), pad, dtype=np.int64)
        ids[:, 0] = tokenizer.bos_token_id
        ids[:, 1 : 1 + ASKED] = first + rng.integers(n, size=(BATCH, ASKED))
        for t in range(1 + ASKED, 1 + ASKED + LONGEST):
            drawn = (edges[ids[:, t - 1] - first] < rng.random((BATCH, 1))).sum(1).clip(max=n - 1)
            ids[:, t] = first + drawn
        ends = 1 + ASKED + rng.integers(SHORTEST, LONGEST + 1, size=BATCH)
        at = np.arange(ids.shape[1])
        ids = np.where(at < ends[:, None], ids, np.where(at == ends[:, None], end, pad))
        scored = torch.from_numpy((at <= ends[:, None]) & (at > ASKED))
        yield torch.from_numpy(ids), scored


def _make_world(folder: Path, base: Path, *, seed: int, lists: int, noise: float) -> dict[str, Any]:
    shutil.copytree(base / "model", folder / "model")
    rng = random.Random(f"rated labels {seed}")  # noqa: S311
    with one_thread(seed):
        model, tokenizer = load(folder / "model")

        def sampled(count: int, each: int, stream: int) -> tuple[list[str], list[list[str]]]:
            asked = prompts(count, 10 * seed + stream)
            found = answers(model, tokenizer, asked, each, TOKENS, seed=10 * seed + stream)
            return asked, [[s.text for s in group] for group in found]

        asked, said = sampled(lists + 16, LIST, 1)
        exact = Judge(reward, math.inf, (0.0,))
        held_out = exact.pairs(*sampled(HELD_OUT + 16, 2, 2), rng, ties=False)
    truth = [reward([p] * LIST, group) for p, group in zip(asked, said, strict=True)]
    spread = pstdev([x for scores in truth for x in scores])
    rows: Rows = [
        {"prompt": p, "responses": group, "scores": [x + rng.gauss(0, noise * spread) for x in scores], "true": scores}
        for p, group, scores in zip(asked, said, truth, strict=True)
        if len(set(group)) == LIST and all(group)
    ]
    rows = first_rows(rows, lists, "lists")
    write_rows(folder / "lists.jsonl", rows)
    write_rows(folder / "train.jsonl", [_extremes(row) for row in rows])
    write_rows(folder / "heldout.jsonl", first_rows(held_out, HELD_OUT, "held-out pairs"))
    write_rows(folder / "prompts.jsonl", ({"prompt": p} for p in prompts(HELD_OUT, 10 * seed + 3)))
    return {"spread": spread}


def _extremes(row: Mapping[str, Any]) -> dict[str, Any]:
    ranked = sorted(zip(row["scores"], row["responses"], strict=True))
    (low, worst), (high, best) = ranked[0], ranked[-1]
    return {"prompt": row["prompt"], "chosen": best, "rejected": worst, "chosen_score": high, "rejected_score": low}
