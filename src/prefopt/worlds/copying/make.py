"""Build the copy task: demonstrations, a model that has learned from them, its samples, and their labels."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from prefopt.errors import PrefoptError
from prefopt.worlds.cache import World, build_once, folder_once
from prefopt.worlds.copying.truth import LETTERS, concise, covered, share
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
    rates,
    save,
    write_rows,
)

VERSION = "1"  # raise it whenever the built files change
ASKED, TOKENS = 4, 16  # letters of a prompt; tokens of an answer at most
DATA: dict[str, Any] = {"max_length": 1 + ASKED + TOKENS}
"""What the `data` section of every run on this world needs."""

LENGTH_NEUTRAL: dict[str, Any] = {"reward": "share", "sharpness": 8.0}
LENGTH_BIASED: dict[str, Any] = {"reward": "covered", "sharpness": 4.0, "length_bonus": 0.15}
"""Dials of the two usual ways to label."""

REWARDS = {"share": share, "covered": covered, "concise": concise}
STEPS, BATCH, RATE = 350, 64, 3e-3
SHORTEST, LONGEST = 2, 12  # letters of a demonstration
MEAN = 6  # of geometric lengths
DEMONSTRATIONS, PROMPTS, LIST = 2048, 512, 4
SPARE = {"train": 1.04, "heldout": 1.3, "lists": 1.3}  # more is sampled than needed: some answers are equal


def prompts(count: int, seed: int = 0, *, apart: bool | None = None) -> list[str]:
    """Fresh prompts, of four different letters.

    apart: with True none holds two neighbours (a and b, c and d, ..., o and p), with False each consists of two pairs
    of neighbours: a model built with `apart` has never seen these letters together.
    """
    rng = random.Random(f"copying prompts {seed}")  # noqa: S311
    return [_prompt(rng, apart) for _ in range(count)]


def _prompt(rng: random.Random, apart: bool | None) -> str:
    if apart is False:
        couples = rng.sample(range(len(LETTERS) // 2), ASKED // 2)
        return "".join(rng.sample([LETTERS[2 * c + side] for c in couples for side in (0, 1)], ASKED))
    while True:
        found = rng.sample(range(len(LETTERS)), ASKED)
        if not apart or len({i // 2 for i in found}) == ASKED:
            return "".join(LETTERS[i] for i in found)


def build(
    cache: Path | str | None = None,
    *,
    seed: int = 0,
    copy: float = 0.7,
    pairs_from: float | None = None,
    pairs: int = 2048,
    heldout: int = 512,
    lists: int = 256,
    reward: str = "share",
    sharpness: float = 8.0,
    length_bonus: float = 0.0,
    label_noise: float | Sequence[float] = 0.0,
    layers: int = 2,
    hidden: int = 64,
    apart: bool = False,
    spread: bool = False,
) -> World:
    """The copy task, from the cache or built, in about twenty seconds (the first time for a model).

    copy          probability that a letter of a demonstration is the right one: 0.1 makes a "base" model, 0.7 the usual
                  one after supervised fine-tuning, 0.9 an "instruct" model
    pairs_from    `copy` of the model whose samples are labelled, if that is another one than the start
    pairs         rows of `train`: two samples to one prompt; the first rows are the same for any number
    reward        what the labels of `train` look at: "share", "covered" or "concise" (`truth.py`)
    sharpness     Bradley-Terry: log-odds = sharpness * difference in reward + length_bonus * difference in letters
    label_noise   probability that a label of `train` is flipped; several: one for each annotator, and a column
                  `annotator` with 0, 1, ...
    spread        demonstrations of geometric length (6 letters in the mean, 15 at most) instead of 2 to 12 evenly
    apart         no prompt of training holds two neighbouring letters (`prompts(..., apart=False)` gives others)

    `LENGTH_NEUTRAL` and `LENGTH_BIASED` are the two usual labellings: build(**LENGTH_BIASED). `heldout` is labelled by
    the reward alone, without ties; `lists` scores four different answers; `sft` are demonstrations. The dials of labels
    do not touch the models. Raises PrefoptError for dials out of range.
    """
    if reward not in REWARDS:
        raise PrefoptError(f"reward '{reward}': there are {', '.join(REWARDS)}")
    if min(pairs, heldout, lists, layers, hidden // 4) < 1 or hidden % 4:
        raise PrefoptError("pairs, heldout, lists and layers must be at least 1, hidden a multiple of 4")
    pairs_from = copy if pairs_from is None else pairs_from
    if not all(0 <= c <= 1 for c in (copy, pairs_from)):
        raise PrefoptError("copy and pairs_from are probabilities")
    judge = Judge(REWARDS[reward], sharpness, rates(label_noise), length_bonus)
    shape: dict[str, Any] = {"seed": seed, "layers": layers, "hidden": hidden, "apart": apart}
    shape |= {"spread": True} if spread else {}

    def model(chance: float) -> Path:
        return folder_once(
            "copying-model", version=VERSION, settings=shape | {"copy": chance}, cache=cache,
            make=lambda to: _make_model(to, chance, **shape),
        )  # fmt: skip

    start, sampler = model(copy), model(pairs_from)
    settings = shape | {"copy": copy, "pairs_from": pairs_from, "pairs": pairs, "heldout": heldout, "lists": lists}
    settings |= {"reward": reward, "sharpness": float(sharpness)}
    settings |= {"length_bonus": float(length_bonus), "label_noise": list(judge.label_noise)}
    return build_once(
        "copying", version=VERSION, settings=settings, cache=cache,
        make=lambda to: _make_world(to, start, sampler, judge, settings),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The model


def _make_model(
    folder: Path, copy: float, *, seed: int, layers: int, hidden: int, apart: bool, spread: bool = False
) -> Mapping[str, Any]:
    with one_thread(seed):
        tokenizer = letter_tokenizer([PAD, BOS, END, *LETTERS], length=1 + ASKED + TOKENS)
        model = new_model(tokenizer, Size(hidden, layers, heads=4, inner=4 * hidden))
        loss = fit(model, _batches(tokenizer, copy, seed, apart, spread), learning_rate=RATE)
        save(model, tokenizer, folder / "model")
    return {"parameters": model.num_parameters(), "loss": loss}


def _demonstration(rng: random.Random, copy: float, prompt: str, spread: bool) -> str:
    count = (
        min(TOKENS - 1, 1 + int(rng.expovariate(-math.log1p(-1 / MEAN)))) if spread else rng.randint(SHORTEST, LONGEST)
    )
    return "".join(prompt[i % ASKED] if rng.random() < copy else rng.choice(LETTERS) for i in range(count))


def _batches(tokenizer: Any, copy: float, seed: int, apart: bool, spread: bool) -> Iterator[tuple[Tensor, Tensor]]:
    rng = random.Random(f"copying {seed} {copy}")  # noqa: S311
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    width = 1 + ASKED + (TOKENS if spread else LONGEST + 1)
    for _ in range(STEPS):
        asked = [_prompt(rng, apart or None) for _ in range(BATCH)]
        rows = tokenizer([p + _demonstration(rng, copy, p, spread) for p in asked]).input_ids
        ids = torch.tensor([row + [end] + [pad] * (width - len(row) - 1) for row in rows])
        scored = ids != pad
        scored[:, : 1 + ASKED] = False
        yield ids, scored


# ---------------------------------------------------------------------------------------------------------------------
# Samples and labels


def _make_world(folder: Path, start: Path, sampler: Path, judge: Judge, settings: Mapping[str, Any]) -> dict[str, Any]:
    shutil.copytree(start / "model", folder / "model")
    seed, apart = settings["seed"], settings["apart"] or None
    rng = random.Random(f"copying labels {seed}")  # noqa: S311
    exact = Judge(judge.score, math.inf, (0.0,))
    with one_thread(seed):
        model, tokenizer = load(sampler / "model")

        def sampled(part: str, each: int, stream: int) -> tuple[list[str], list[list[str]]]:
            asked = prompts(int(settings[part] * SPARE.get(part, 1.04)) + 16, 10 * seed + stream, apart=apart)
            found = answers(model, tokenizer, asked, each, TOKENS, seed=10 * seed + stream)
            return asked, [[s.text for s in group] for group in found]

        train = judge.pairs(*sampled("pairs", 2, 1), rng, ties=True)
        heldout = exact.pairs(*sampled("heldout", 2, 2), rng, ties=False)
        listed = _lists(judge, *sampled("lists", LIST, 3))
    train = first_rows(train, settings["pairs"], "pairs")
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "heldout.jsonl", first_rows(heldout, settings["heldout"], "held-out pairs"))
    write_rows(folder / "lists.jsonl", first_rows(listed, settings["lists"], "lists"))
    write_rows(folder / "prompts.jsonl", ({"prompt": p} for p in prompts(PROMPTS, 10 * seed + 4, apart=apart)))
    sides = (("chosen", True), ("rejected", False))
    write_rows(
        folder / "unpaired.jsonl",
        ({"prompt": r["prompt"], "completion": r[side], "label": label} for r in train for side, label in sides),
    )
    shown = [
        (p, _demonstration(rng, settings["copy"], p, settings.get("spread", False)))
        for p in prompts(DEMONSTRATIONS, 10 * seed + 5, apart=apart)
    ]
    write_rows(folder / "sft.jsonl", ({"prompt": p, "completion": text} for p, text in shown))
    return {
        "mean_reward": round(fmean(r[f"{side}_score"] for r in train for side, _ in sides), 6),
        "mean_length": {side: round(fmean(len(r[side]) for r in train), 6) for side, _ in sides},
        "labels_that_agree_with_reward": round(fmean(r["chosen_score"] > r["rejected_score"] for r in train), 6),
    }


def _lists(judge: Judge, asked: Sequence[str], groups: Sequence[Sequence[str]]) -> Rows:
    return [
        {"prompt": p, "responses": list(group), "scores": judge.score([p] * LIST, group)}
        for p, group in zip(asked, groups, strict=True)
        if len(set(group)) == LIST and all(group)
    ]
