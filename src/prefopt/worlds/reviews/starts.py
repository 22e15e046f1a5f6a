"""Other models of the reviews world: where training may start, and one that others may learn from.

`build_starts()` gives a folder with three models in the plain library's format:

base     as large as the world's own model, and has read as much; but every review stood behind the prompt of another
         film, so that it writes reviews and does not heed prompts: a pretrained model
sft      base, after two passes over the world's demonstrations (`sft.jsonl`)
source   a model with a tokenizer of its own, which has read the better-liked third of the corpus: a model to learn from
         (InfiFPO), not to start from

The world's own model, which has read three times as many prompts with their own reviews, is the third start.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from prefopt.worlds.cache import folder_once
from prefopt.worlds.reviews import make, truth
from prefopt.worlds.reviews.corpus import films, review
from prefopt.worlds.reviews.sft import Size, encode, fit, fit_tokenizer, new_model, save

VERSION = "1"  # raise it whenever the built files change
PASSES = 2  # over the demonstrations
LIKED = 1 / 3  # share of the corpus that the source has read
VOCABULARY = 0.5  # of the source, as a share of the world's


def build_starts(cache: Path | str | None = None, *, seed: int = 0, size: str = "full", progress: bool = True) -> Path:
    """The folder with base/, sft/ and source/, from the cache or built (about three minutes on one core).

    They go with `build(seed=seed, size=size)`, whose tokenizer base and sft have. Raises PrefoptError.
    """
    world = make.build(cache, seed=seed, size=size, progress=progress)
    return folder_once(
        "reviews-starts",
        version=f"{make.VERSION}.{VERSION}",
        settings={"seed": seed, "size": size},
        make=lambda folder: _make(folder, world.root, make.SIZES[size], seed, progress),
        cache=cache,
    )


def _make(folder: Path, world: Path, size: Size, seed: int, progress: bool) -> Mapping[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in floating point depend on it
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            titles, _ = make.split_titles(random.Random(f"reviews {seed}"))  # noqa: S311
            return _models(folder, world, size, titles, random.Random(f"starts {seed}"), progress)  # noqa: S311
    finally:
        torch.set_num_threads(threads)


def _models(
    folder: Path, world: Path, size: Size, titles: list[str], rng: random.Random, progress: bool
) -> Mapping[str, Any]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(world / "model")
    corpus = films(rng, size.batch * size.steps, titles)
    prompts, reviews = [film.prompt for film in corpus], [review(rng, film) for film in corpus]
    others = rng.sample(prompts, len(prompts))
    raw = replace(size, sharpness=1.0)  # sharpened when they are saved: training goes on from what was trained
    base = new_model(tokenizer, size)
    losses = {"base": fit(base, encode(tokenizer, others, reviews), raw, rng, progress)}
    _save(base, tokenizer, size, folder / "base")
    shown = [json.loads(line) for line in (world / "sft.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = encode(tokenizer, [row["prompt"] for row in shown], [row["completion"] for row in shown])
    losses["sft"] = fit(base, rows, replace(raw, steps=max(1, PASSES * len(rows) // size.batch)), rng, progress)
    _save(base, tokenizer, size, folder / "sft")
    liked = sorted(zip(truth.reward(prompts, reviews), prompts, reviews), reverse=True)[: int(LIKED * len(corpus))]
    texts = [prompt + text for _, prompt, text in liked]
    own = fit_tokenizer(texts, int(VOCABULARY * size.vocabulary))
    source = new_model(own, size)
    losses["source"] = fit(source, encode(own, [p for _, p, _ in liked], [t for *_, t in liked]), raw, rng, progress)
    _save(source, own, size, folder / "source")
    return {f"loss_{name}": loss for name, loss in losses.items()}


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, size: Size, folder: Path) -> None:
    """Sharpened as the world's own model is; the given one stays as it was trained."""
    sharp = copy.deepcopy(model)
    with torch.no_grad():
        sharp.model.norm.weight.mul_(size.sharpness)
    save(sharp, tokenizer, folder)
