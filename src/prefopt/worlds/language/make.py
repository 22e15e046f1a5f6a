"""Build the toy language: a Markov chain, a model that has learned it, its samples, and their labels."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.errors import PrefoptError
from prefopt.worlds.cache import World, build_once, folder_once
from prefopt.worlds.language.truth import LETTERS, reward
from prefopt.worlds.letters import (
    END,
    Judge,
    Size,
    answers,
    first_rows,
    fit,
    letter_tokenizer,
    load,
    new_model,
    one_thread,
    rates,
    rule_out,
    save,
    write_rows,
)

VERSION = "1"  # raise it whenever the built files change
TOKENS = 6
DATA: dict[str, Any] = {"max_length": 1 + TOKENS}
"""What the `data` section of every run on this world needs."""

SIZE = Size(hidden=32, layers=1, heads=2, inner=64)
STEPS, BATCH, RATE = 250, 128, 3e-3
SPARE = {True: 1.02, False: 1.4}  # more pairs are sampled than needed: some are of equal answers, or rewards
LIST = 4  # answers in a ranked list


def prompts(count: int, seed: int = 0) -> list[str]:
    """All twelve prompts in turn: `seed` changes nothing."""
    return [LETTERS[i % len(LETTERS)] for i in range(count)]


def build(
    cache: Path | str | None = None,
    *,
    seed: int = 0,
    pairs: int = 4000,
    heldout: int = 1000,
    lists: int = 256,
    temperature: float = 1.0,
    label_noise: float | Sequence[float] = 0.0,
    ties: bool = True,
) -> World:
    """The toy language, from the cache or built, in about five seconds.

    pairs        rows of `train`: two samples of the reference to one prompt
    temperature  of the Bradley-Terry labels of `train`: log-odds = difference in reward / temperature; 0: the better
                 answer wins
    label_noise  probability that a label of `train` is flipped; several: one for each annotator, and a column
                 `annotator` with 0, 1, ...
    ties         whether `train` may hold pairs of equal reward

    `heldout` is labelled by the reward alone and has no ties; `lists` scores four different answers; `prompts` are the
    twelve letters; `unpaired` holds the answers of `train` one by one, with label true for a chosen one. The dials of
    labels do not touch the model. Raises PrefoptError for dials out of range.
    """
    settings = {
        "seed": seed,
        "pairs": pairs,
        "heldout": heldout,
        "lists": lists,
        "temperature": float(temperature),
        "label_noise": list(rates(label_noise)),
        "ties": ties,
    }
    if min(pairs, heldout) < 1 or lists < 1 or not temperature >= 0:
        raise PrefoptError("pairs, heldout and lists must be at least 1, temperature at least 0")
    judge = Judge(reward, 1 / temperature if temperature else math.inf, rates(label_noise))
    base = folder_once(
        "language-model", version=VERSION, settings={"seed": seed}, make=lambda to: _make_model(to, seed), cache=cache
    )
    return build_once(
        "language", version=VERSION, settings=settings, cache=cache,
        make=lambda to: _make_world(to, base, judge, settings),
    )  # fmt: skip


def _make_model(folder: Path, seed: int) -> Mapping[str, Any]:
    with one_thread(seed):
        tokenizer = letter_tokenizer([*LETTERS, END], length=1 + TOKENS)
        model = new_model(tokenizer, SIZE)
        rule_out(model, [tokenizer.eos_token_id])
        loss = fit(model, _batches(np.random.default_rng([seed, 0])), learning_rate=RATE)
        save(model, tokenizer, folder / "model")
    return {"parameters": model.num_parameters(), "loss": loss}


def _batches(rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Fresh sequences of a Markov chain whose rows lie between a few likely letters and all alike."""
    n = len(LETTERS)
    chain = 0.6 * rng.dirichlet([0.3] * n, size=n) + 0.4 / n
    edges = chain.cumsum(1)
    for _ in range(STEPS):
        ids = np.empty((BATCH, 1 + TOKENS), dtype=np.int64)
        ids[:, 0] = rng.integers(n, size=BATCH)
        for t in range(TOKENS):
            ids[:, t + 1] = (edges[ids[:, t]] < rng.random((BATCH, 1))).sum(1).clip(max=n - 1)
        scored = torch.ones(ids.shape, dtype=torch.bool)
        scored[:, 0] = False
        yield torch.from_numpy(ids), scored


def _make_world(folder: Path, base: Path, judge: Judge, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    shutil.copytree(base / "model", folder / "model")
    seed, rng = settings["seed"], random.Random(f"language {settings['seed']}")  # noqa: S311
    with one_thread(seed):
        model, tokenizer = load(base / "model")

        def sampled(count: int, each: int, stream: int) -> tuple[list[str], list[list[str]]]:
            asked = rng.choices(LETTERS, k=count)
            found = answers(model, tokenizer, asked, each, TOKENS, seed=1000 * seed + stream)
            return asked, [[s.text for s in group] for group in found]

        train = judge.pairs(*sampled(int(settings["pairs"] * SPARE[settings["ties"]]) + 8, 2, 1), rng, settings["ties"])
        exact = Judge(reward, math.inf, (0.0,))
        heldout = exact.pairs(*sampled(int(settings["heldout"] * SPARE[False]) + 8, 2, 2), rng, ties=False)
        listed = [
            {"prompt": p, "responses": group, "scores": reward([p] * LIST, group)}
            for p, group in zip(*sampled(int(settings["lists"] * 1.1) + 8, LIST, 3), strict=True)
            if len(set(group)) == LIST
        ]
    train = first_rows(train, settings["pairs"], "pairs")
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "heldout.jsonl", first_rows(heldout, settings["heldout"], "held-out pairs"))
    write_rows(folder / "lists.jsonl", first_rows(listed, settings["lists"], "lists"))
    write_rows(folder / "prompts.jsonl", ({"prompt": letter} for letter in LETTERS))
    sides = (("chosen", True), ("rejected", False))
    write_rows(
        folder / "unpaired.jsonl",
        ({"prompt": r["prompt"], "completion": r[side], "label": label} for r in train for side, label in sides),
    )
    return {
        "mean_reward": round(fmean(r[f"{side}_score"] for r in train for side, _ in sides), 6),
        "labels_that_agree_with_reward": round(fmean(r["chosen_score"] > r["rejected_score"] for r in train), 6),
    }
